"""The stage `cache`: SeqIO tasks and mixtures become rows, and nothing goes missing on the way."""

from __future__ import annotations

import itertools
import json
import os
import sys

import numpy as np
import pytest
import seqio
import tensorflow as tf
from etils import epath

from sbp_jax import artifacts
from sbp_jax.data import cache as cache_module
from sbp_jax.data import documents, rows, vocab, vocabularies
from sbp_jax.data.cache import cache
from sbp_jax.data.shard import cache_shard
from sbp_jax.errors import UserError

TEXTS = [f"document {i} says {' '.join(str(i * k) for k in range(i % 17))}" for i in range(40)]
MODULE = "made_up_tasks"


@seqio.map_over_dataset
def first_four(example):
    return {**example, "targets": example["targets"][:4]}


def task(name, examples, features=("targets",), vocabulary=None, carried=(), after=()):
    """A task factory over examples in memory."""

    def factory(run_vocabulary):
        signature = {key: tf.TensorSpec([], tf.string) for key in ("id", *features, *carried)}
        source = seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_generator(
                lambda: iter(examples), output_signature=signature
            ),
            splits=["train"],
            num_input_examples={"train": len(examples)},
        )
        chosen = vocabulary or run_vocabulary
        seqio.TaskRegistry.remove(name)
        return seqio.TaskRegistry.add(
            name,
            source=source,
            preprocessors=[seqio.preprocessors.tokenize, *after],
            output_features={
                key: seqio.Feature(chosen, add_eos=key == "targets") for key in features
            },
        )

    return factory


def texts(items):
    return [{"id": f"id{i}", "targets": text} for i, text in enumerate(items)]


TASKS = """
from test_cache import TEXTS, first_four, seqio, task, texts

pairs = [{"id": f"{i}", "inputs": TEXTS[i], "targets": TEXTS[i + 1]} for i in range(20)]
plain = task("plain", texts(TEXTS))
more = task("more", texts([f"more of {i}" for i in range(9)]))
empty = task("empty", [])
blank = task("blank", texts(["", "words", ""]))
twice = task("twice", [*texts(TEXTS[:3]), *texts(TEXTS[:1])])
pairs = task("pairs", pairs, ("inputs", "targets"))
foreign = task("foreign", texts(TEXTS), vocabulary=seqio.ByteVocabulary())
far = task("far", [*texts(TEXTS[:7]), *texts(TEXTS[:1])])
partly = task(
    "partly",
    [
        *({"id": f"bad{i}", "targets": "", "rejected": "not JSON"} for i in range(12)),
        *({"id": f"good{i}", "targets": "fine", "rejected": ""} for i in range(2)),
    ],
    carried=("rejected",),
)
broken = task(
    "broken", [{"id": "a", "targets": b"caf\\xe9 au lait"}, {"id": "b", "targets": "good"}]
)
WORDS = [[f"w{i}x{j}" for j in range(24)] for i in range(2)]
evaluation = task(
    "evaluation", [{"id": f"q{i}", "targets": " ".join(words)} for i, words in enumerate(WORDS)]
)
leaky = task(
    "leaky",
    texts(
        [
            TEXTS[30],
            " ".join(["before", *WORDS[0], "after"]),
            TEXTS[31],
            " ".join([*WORDS[1][4:], "and some more words to end with"]),
        ]
    ),
)
shortened = task("shortened", texts(TEXTS), after=[first_four])
no_task = lambda vocabulary: 7


def mixed(vocabulary):
    plain(vocabulary), more(vocabulary)
    seqio.MixtureRegistry.remove("mixed")
    return seqio.MixtureRegistry.add("mixed", [("plain", 0.7), ("more", 0.3)])
"""


@pytest.fixture
def run_directory(tmp_path, monkeypatch):
    """A run with a vocabulary, and a module of tasks."""
    (tmp_path / f"{MODULE}.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    run = artifacts.Run(epath.Path(tmp_path / "run"), "vocab")
    stage = artifacts.begin(run, "vocab", config={}, inputs={}, code=())
    artifacts.write_atomic(
        stage.work / vocabularies.SENTENCEPIECE_FILE, vocab.train(lambda: TEXTS, 300, 1.0, "texts")
    )
    stage.commit({})
    return run.directory


def call(directory, attribute, scope="rows", **changes):
    name = f"{MODULE}:{attribute}" if isinstance(attribute, str) else attribute
    cache(artifacts.Run(directory, scope), **{"task": name, "length": 32, **changes})
    return directory / scope


def tokens_of(source: rows.RowSource) -> list[list[int]]:
    """Documents as they stand in rows: from a beginning to an end."""
    found, records = [], source.open()
    for index in range(source.rows):
        row = source.read(records, index)
        for segment in range(1, row.segment_ids.max() + 1):
            found.append(row.targets[row.segment_ids == segment].tolist())
    return found


def test_every_token_of_every_document_is_in_one_row(run_directory):
    out = call(run_directory, "plain")
    manifest = artifacts.read_manifest(out)
    pieces = vocabularies.load(run_directory / "vocab")
    wanted = [[*pieces.encode(text), vocab.EOS] for text in TEXTS]
    source = rows.open_rows(out).sources["plain"]
    found = tokens_of(source)
    # Long documents are split; what they are put together from is all there.
    assert sorted(itertools.chain(*found)) == sorted(itertools.chain(*wanted))
    short = [one for one in wanted if len(one) <= 32]
    assert all(one in found for one in short)
    assert manifest.counts["documents"] == 40
    assert manifest.counts["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert manifest.counts["tokens"] == sum(map(len, wanted))
    assert manifest.counts["sources"]["plain"]["split_documents"] == 40 - len(short)
    assert source.rows * 32 == manifest.counts["tokens"] + manifest.counts["padding"]


def test_documents_keep_their_ids_and_texts(run_directory):
    found = documents.Documents(call(run_directory, "plain", documents=True))
    assert [(d.id, d.text) for d in found] == [(f"id{i}", text) for i, text in enumerate(TEXTS)]


def test_a_mixture_keeps_its_sources_and_rates(run_directory):
    found = rows.open_rows(call(run_directory, "mixed", runner="inline")).sources
    assert {name: source.rate for name, source in found.items()} == {"plain": 0.7, "more": 0.3}
    assert {name: source.documents for name, source in found.items()} == {"plain": 40, "more": 9}
    assert not any(source.synthetic for source in found.values())


def test_pairs_are_cut_and_counted(run_directory):
    out = call(run_directory, "pairs", length=40, seed_length=6, target_length=12)
    counts = artifacts.read_manifest(out).counts["sources"]["pairs"]
    pieces = vocabularies.load(run_directory / "vocab")
    tokens = [pieces.encode(text) for text in TEXTS]
    assert counts["cut"]["d1"] == sum(len(tokens[i]) > 6 for i in range(20))
    assert counts["cut"]["d2"] == sum(len(tokens[i + 1]) + 1 > 12 for i in range(20))
    assert counts["documents"] == 20
    source = rows.open_rows(out).sources["pairs"]
    weights = sum(
        float(source.read(source.open(), i).loss_weights.sum()) for i in range(source.rows)
    )
    assert weights == sum(min(len(tokens[i + 1]) + 1, 12) for i in range(20))


def test_documents_without_a_token_are_counted(run_directory):
    counts = artifacts.read_manifest(call(run_directory, "blank")).counts["sources"]["blank"]
    assert counts["documents"] == 1
    assert counts["rejected"] == {"no tokens": {"documents": 2, "ids": ["id0", "id2"]}}


@pytest.mark.parametrize(
    ("attribute", "changes", "message"),
    [
        ("plain", {"split": "test"}, "has no split 'test'"),
        ("empty", {}, "task empty is empty"),
        ("none", {}, "unknown task 'made_up_tasks:none'"),
        ("no_task", {}, "returned 7, expected a seqio.Task"),
        ("twice", {}, "gives the id 'id0' twice"),
        ("foreign", {}, "tokenises 'id0' otherwise than the run's vocabulary"),
        ("plain", {"length": 1}, "cache.length = 1 is too short"),
        ("pairs", {}, "set cache.seed_length and cache.target_length"),
        ("pairs", {"length": 20, "seed_length": 6, "target_length": 15}, "too short"),
        ("plain", {"vocab": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_a_users_mistake_is_one_line(run_directory, attribute, changes, message):
    with pytest.raises(UserError, match=message):
        call(run_directory, attribute, **changes)
    assert not (run_directory / "rows").exists()


@pytest.mark.parametrize("spec", ["plain", "no.such.module:plain", "made_up_tasks:", ":x", "a:b@"])
def test_task_names_that_mean_nothing(run_directory, spec):
    with pytest.raises(UserError, match=r"expected module:attribute|no module"):
        cache(artifacts.Run(run_directory, "rows"), task=spec, length=32)


def test_it_is_the_same_every_time(run_directory):
    for scope in ("one", "two"):
        call(run_directory, "plain", scope)
    one, two = (rows.open_rows(run_directory / s).sources["plain"] for s in ("one", "two"))
    assert one.rows == two.rows
    for index in range(one.rows):
        np.testing.assert_array_equal(one.read(one.open(), index), two.read(two.open(), index))


def files_of(directory) -> dict[str, bytes]:
    """What a stage left, but for what holds its time."""
    return {
        f"{folder.name}/{name}": (folder / name).read_bytes()
        for folder, _, names in directory.walk()
        for name in names
        if name not in ("manifest.json", "config.gin")
    }


def test_workers_leave_what_one_leaves(run_directory):
    alone = call(run_directory, "plain", "alone", shards=3, documents=True, runner="inline")
    spread = call(run_directory, "plain", "spread", shards=3, documents=True)
    assert files_of(alone) == files_of(spread)
    assert {name.split("/")[-1] for name in files_of(spread)} == {
        f"{kind}-0000{shard}.array_record" for kind in ("rows", "documents") for shard in range(3)
    }
    manifests = [artifacts.read_manifest(out) for out in (alone, spread)]
    assert manifests[0].hash == manifests[1].hash
    whole = call(run_directory, "plain", "whole", documents=True)
    assert sorted(tokens_of(rows.open_rows(spread).sources["plain"])) == sorted(
        tokens_of(rows.open_rows(whole).sources["plain"])
    )
    ids = [d.id for d in documents.Documents(spread)]
    assert ids == [f"id{i}" for shard in range(3) for i in range(shard, 40, 3)]


def test_an_interrupted_stage_repeats_no_finished_shard(run_directory, monkeypatch):
    whole = call(run_directory, "plain", "whole", shards=4, runner="inline")
    done = []

    def until_the_third(shard):
        if len(done) == 2:
            half_written = shard.path("rows", "array_record")
            (half_written.parent / f".{half_written.name}.0").write_text("half")
            raise KeyboardInterrupt
        done.append(shard.index)
        cache_shard(shard)
        written = os.stat(shard.path("rows", "array_record"))
        cache_shard(shard)  # a cluster may ask again
        assert os.path.samestat(os.stat(shard.path("rows", "array_record")), written)

    monkeypatch.setattr(cache_module, "cache_shard", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        call(run_directory, "plain", shards=4, runner="inline")
    assert not artifacts.is_finished(run_directory / "rows")
    again = []

    def noted(shard):
        again.append(shard.index)
        cache_shard(shard)

    monkeypatch.setattr(cache_module, "cache_shard", noted)
    out = call(run_directory, "plain", shards=4, runner="inline")
    assert (done, again) == ([0, 1], [2, 3])
    assert files_of(out) == files_of(whole)
    assert artifacts.read_manifest(out).hash == artifacts.read_manifest(whole).hash


def test_an_id_that_two_shards_give_is_found(run_directory):
    with pytest.raises(UserError, match="task far gives the id 'id0' twice"):
        call(run_directory, "far", shards=2, runner="inline")


def test_a_mistake_in_a_shard_is_one_line_and_may_be_mended(run_directory):
    with pytest.raises(UserError) as caught:
        call(run_directory, "pairs", shards=2, runner="inline")
    assert "set cache.seed_length and cache.target_length" in caught.value.message
    mended = {"length": 40, "seed_length": 6, "target_length": 12}
    call(run_directory, "pairs", shards=2, runner="inline", **mended)


def test_what_the_source_rejects_is_counted_with_its_reason(run_directory):
    counts = artifacts.read_manifest(call(run_directory, "partly")).counts["sources"]["partly"]
    assert counts["documents"] == 2
    assert counts["rejected"] == {
        "not JSON": {"documents": 12, "ids": [f"bad{i}" for i in range(10)]}
    }


def test_bytes_that_are_no_utf_8_are_counted(run_directory):
    out = call(run_directory, "broken", documents=True)
    assert artifacts.read_manifest(out).counts["sources"]["broken"]["not_utf8"] == 1
    assert [d.text for d in documents.Documents(out)] == ["caf\ufffd au lait", "good"]


def test_documents_that_contain_evaluation_text_are_left_out_and_listed(run_directory):
    out = call(run_directory, "leaky", decontaminate=[f"{MODULE}:evaluation"], documents=True)
    counts = artifacts.read_manifest(out).counts["sources"]["leaky"]
    assert counts["rejected"] == {"contains evaluation": {"documents": 2, "ids": ["id1", "id3"]}}
    assert [d.id for d in documents.Documents(out)] == ["id0", "id2"]
    lines = (out / "leaky/removed-00000.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "id1", "contains": "evaluation q0", "containment": 1.0},
        {"id": "id3", "contains": "evaluation q1", "containment": pytest.approx(8 / 12)},
    ]
    kept = call(run_directory, "leaky", "kept", decontaminate=[f"{MODULE}:evaluation"], overlap=0.9)
    assert artifacts.read_manifest(kept).counts["documents"] == 3


def test_what_must_not_be_repeated_says_so(run_directory):
    assert rows.open_rows(call(run_directory, "plain", "free")).sources["plain"].repeat
    assert not rows.open_rows(call(run_directory, "plain", repeat=False)).sources["plain"].repeat


def test_a_task_that_tokenises_otherwise_is_read_as_it_is(run_directory):
    """Steps of a task's own after the tokenisation are not lost."""
    found = tokens_of(rows.open_rows(call(run_directory, "shortened")).sources["shortened"])
    pieces = vocabularies.load(run_directory / "vocab")
    assert sorted(found) == sorted([*pieces.encode(t)[:4], vocab.EOS] for t in TEXTS)
