"""Curation of pairs: what each filter takes, and that nothing is lost unseen."""

from __future__ import annotations

import dataclasses
import json
import re

import grain
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rows import write_rows_artefact

from sbp_jax import artifacts, cli
from sbp_jax.data import documents as documents_module
from sbp_jax.data.documents import Document
from sbp_jax.data.vocabularies import BYTES_FILE, Bytes
from sbp_jax.errors import UserError
from sbp_jax.pair import filters, inspect_pairs, pairs
from sbp_jax.pair.embed import embed
from sbp_jax.pair.embedders import TfidfEmbedder
from sbp_jax.pair.stage import PAIRS, pair
from sbp_jax.report.results import read_pairs
from sbp_jax.text import minhash
from sbp_jax.text.ngram_index import NgramIndex
from sbp_jax.text.shingles import MEASURES, shingles

THRESHOLD = 0.5


def near_copies(count: int, seed: int) -> list[Document]:
    """Documents in families: a first one, and others with more or less of it changed or cut off."""
    rng = np.random.default_rng(seed)
    made: list[Document] = []
    while len(made) < count:
        first = [f"w{n}" for n in rng.integers(20_000, size=rng.integers(40, 400))]
        made.append(Document(str(len(made)), " ".join(first)))
        for _ in range(rng.integers(0, 5)):
            words = list(first)
            for place in rng.integers(len(words), size=rng.integers(0, 1 + len(words) // 12)):
                words[place] = f"w{rng.integers(20_000)}"
            begin, end = sorted(rng.integers(0, len(words) + 1, size=2))
            if rng.random() < 0.5:
                words = words[begin : max(end, begin + 5)]
            made.append(Document(str(len(made)), " ".join(words)))
    return made[:count]


@pytest.mark.parametrize("measure", MEASURES)
def test_minhash_takes_what_brute_force_takes(measure):
    made = near_copies(1000, seed=5)
    # Brute force: Python sets of every document, and every pair that has anything in common.
    sets = [set(shingles(d.text).tolist()) for d in made]
    by_shingle: dict[int, list[int]] = {}
    for number, one in enumerate(sets):
        for shingle in one:
            by_shingle.setdefault(shingle, []).append(number)
    met = {(a, b) for group in by_shingle.values() for a in group for b in group if a < b}
    rng = np.random.default_rng(0)
    others = {tuple(sorted(p)) for p in rng.integers(len(made), size=(15_000, 2)).tolist()}
    asked = sorted(met | {(a, b) for a, b in others if a != b})
    first, second = np.array(asked).T
    shared = np.array([len(sets[a] & sets[b]) for a, b in asked])
    whole = min if measure == "containment" else lambda a, b: a + b
    sizes = np.array([whole(len(sets[a]), len(sets[b])) for a, b in asked])
    if measure == "jaccard":
        sizes -= shared
    wanted = shared / np.maximum(sizes, 1) > THRESHOLD
    assert 150 < wanted.sum() < len(met)  # some are too far from one another
    found = filters.near_duplicates(made, made, THRESHOLD, "minhash", measure)(first, second)
    precision = (found & wanted).sum() / found.sum()
    recall = (found & wanted).sum() / wanted.sum()
    assert precision >= 0.99
    assert recall >= 0.97
    exact = filters.near_duplicates(made, made, THRESHOLD, measure=measure)(first, second)
    np.testing.assert_array_equal(exact, wanted)


def test_signatures_estimate_the_jaccard_index():
    rng = np.random.default_rng(1)
    hashes = rng.integers(2**63, size=3000, dtype=np.uint64)
    # |A ∩ B| = 100·s of 1000 each, so that J = s / (20 - s)
    sets = [hashes[:1000], *(hashes[1000 - 100 * s : 2000 - 100 * s] for s in range(11))]
    signed = minhash.signatures(sets)
    pairs_ = np.zeros(11, int), np.arange(1, 12)
    estimates = minhash.agreement(signed, signed, pairs_)
    true = np.array([s / (20 - s) for s in range(11)])
    assert np.abs(estimates - true).max() < 4 * np.sqrt(0.25 / minhash.SLOTS)
    sizes = np.full(11, 1000)
    low, high = minhash.bounds(estimates, sizes, sizes, "containment")
    assert ((low <= np.arange(11) / 10) & (np.arange(11) / 10 <= high)).all()
    assert (high - low).max() < 0.45  # they leave no doubt about most


def test_a_short_document_in_a_long_one_and_an_empty_one():
    long = " ".join(f"word{n}" for n in range(3000))
    made = [Document("long", long), Document("short", " ".join(long.split()[50:80]))]
    made += [Document("empty", ""), Document("blank", " ")]
    both = np.array([0, 1, 0, 2]), np.array([1, 0, 2, 3])
    for method in ("exact", "minhash"):
        taken = filters.near_duplicates(made, made, THRESHOLD, method)(*both)
        assert taken.tolist() == [True, True, False, False]


def test_same_feature():
    made = [Document(str(n), "x", f) for n, f in enumerate([{"url": "a"}, {"url": "a"}, {}, {}])]
    made += [Document("4", "x", {"url": "b", "package": "p"}), Document("5", "x", {"package": "p"})]
    asked = np.array([0, 0, 2, 0, 4]), np.array([1, 2, 3, 4, 5])
    assert filters.same_feature(made, made, ["url"])(*asked).tolist() == [True, *[False] * 4]
    both = filters.same_feature(made, made, ["url", "package"])(*asked)
    assert both.tolist() == [True, False, False, False, True]
    with pytest.raises(UserError, match=r"'host': expected some of \['package', 'url'\]"):
        filters.same_feature(made, made, ["host"])


def test_too_long_counts_as_the_cache_does():
    made = [Document(str(n), "x" * n) for n in range(6)]
    asked = np.array([3, 4, 3, 3]), np.array([4, 4, 5, 3])
    taken = filters.too_long(made, made, Bytes(), 3, 5)(*asked)  # d2 with its end
    assert taken.tolist() == [False, True, True, False]
    assert not filters.too_long(made, made, Bytes(), None, 6)(*asked).any()
    assert filters.too_long(made, made, Bytes(), 3, None)(*asked).tolist() == [0, 1, 0, 0]


def test_held_out_text_in_either_document():
    said = [" ".join(f"{name}{n}" for n in range(40)) for name in "abc"]
    made = [Document("0", said[0]), Document("1", said[1] + " and"), Document("2", said[2])]
    index = NgramIndex([("test", "before " + said[1])])
    asked = np.array([0, 1, 0]), np.array([1, 2, 2])
    assert filters.held_out(made, made, index, 0.5)(*asked).tolist() == [True, True, False]


NEIGHBOURS = np.array([[0, 1, 2], [1, 2, 0], [2, 1, 3], [3, 2, 1]])
PRODUCTS = np.array([[1, 0.9, 0.7], [1, 0.95, 0.9], [1, 0.95, 0.6], [1, 0.6, 0.5]], np.float32)


def selected(**options):
    chosen, removed = pairs.select(
        NEIGHBOURS, PRODUCTS, **{"same_corpus": True, "alpha": 0.0, **options}
    )
    found = {(p.seed, p.target) for p in chosen}
    candidates = pairs.candidates(NEIGHBOURS, PRODUCTS, same_corpus=True)
    assert len(found) == len(chosen)
    assert len(chosen) + removed.total == len(candidates)
    return found, removed


def both_ways(*found):
    return {*found, *((b, a) for a, b in found)}


def test_a_pair_is_a_candidate_in_both_directions():
    found, removed = selected()
    assert found == both_ways((0, 1), (0, 2), (1, 2), (1, 3), (2, 3))
    assert removed == pairs.Removed(self_pairs=4)


def test_mutual_only():
    found, removed = selected(mutual_only=True)
    assert found == both_ways((0, 1), (1, 2), (2, 3))
    assert removed.not_mutual == 4


def test_a_hub_loses_its_least_similar_partners():
    found, removed = selected(max_pairs_per_document=2)
    # 1 and 2 are full with each other and with 0; so nothing is left for 3.
    assert found == both_ways((0, 1), (1, 2), (0, 2))
    assert removed.hubs == 4
    found, removed = selected(max_pairs_per_document=1)
    assert found == both_ways((1, 2))
    # Of two corpora, 1 as a seed is another document than 1 as a target.
    chosen, _ = pairs.select(
        np.array([[1], [2]]),
        np.array([[0.9], [0.8]], np.float32),
        same_corpus=False,
        alpha=0.0,
        max_pairs_per_document=1,
    )
    assert {(p.seed, p.target) for p in chosen} == {(1, 0), (2, 1)}


def test_filters_see_what_the_ones_before_have_left():
    seen = {}

    def one(name, count):
        def taken(first, second):
            seen[name] = len(first)
            return np.arange(len(first)) < count

        return taken

    _, removed = selected(
        alpha=0.55,
        upper_bound=0.92,
        same_feature=one("same_feature", 1),
        too_long=one("too_long", 2),
        held_out=one("held_out", 1),
        near_duplicate=one("near_duplicates", 1),
    )
    assert seen == {"same_feature": 6, "too_long": 5, "held_out": 3, "near_duplicates": 2}
    assert (removed.self_pairs, removed.below_alpha, removed.above_upper_bound) == (4, 2, 2)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_candidate_is_a_pair_or_counted_once(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n, same = data.draw(st.integers(1, 12)), data.draw(st.booleans())
    indexed = n if same else data.draw(st.integers(1, 12))
    k = data.draw(st.integers(1, indexed))
    found = np.stack([rng.permutation(indexed)[:k] for _ in range(n)])
    found = np.where(rng.random(found.shape) < 0.1, -1, found)  # a search may come back with less
    products = rng.choice(np.array([np.nan, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0], np.float32), found.shape)
    bits = {name: rng.random((12, 12)) < 0.2 for name in ("feature", "long", "out", "copy")}

    def by(name):
        return lambda a, b: bits[name][a, b]

    limit = st.none() | st.integers(1, 3)
    most, cap = data.draw(limit), data.draw(limit)
    alpha = data.draw(st.sampled_from([-1.0, 0.3, 0.6, 1.0]))
    upper = data.draw(st.none() | st.just(0.8))
    mutual = same and data.draw(st.booleans())
    chosen, removed = pairs.select(
        found,
        products,
        same_corpus=same,
        alpha=alpha,
        upper_bound=upper,
        mutual_only=mutual,
        same_feature=by("feature"),
        too_long=by("long"),
        held_out=by("out"),
        near_duplicate=by("copy"),
        max_pairs_per_document=most,
        max_per_seed=cap,
    )
    there = {(int(s), t) for t, row in enumerate(found) for s in row if s >= 0}
    candidates = there | {(t, s) for s, t in there} if same else there
    kept = [(p.seed, p.target) for p in chosen]
    assert len(set(kept)) == len(kept)
    assert set(kept) <= candidates
    assert len(kept) + sum(dataclasses.astuple(removed)) == len(candidates)
    assert all(p.similarity > alpha and p.similarity <= (upper or 1) for p in chosen)
    assert not any(one[pair_] for one in bits.values() for pair_ in kept)
    assert not (same and any(a == b for a, b in kept))
    if cap:
        assert max(np.bincount([a for a, _ in kept], minlength=1)) <= cap
    if most and same:
        partners = {frozenset(pair_) for pair_ in kept}
        assert max(np.bincount([a for p in partners for a in p], minlength=1)) <= most
    if most and not same:
        for column in zip(*kept, strict=True):
            assert max(np.bincount(column)) <= most
    assert kept == sorted(
        kept, key=lambda p: (p[0], -next(q.similarity for q in chosen if (q.seed, q.target) == p))
    )


# --- the stage


def corpus(count: int, seed: int) -> list[Document]:
    """Documents about one of three topics; every fifth is of one package."""
    rng = np.random.default_rng(seed)
    topics = ("fourier transform signal", "sparse matrix solver", "random seed generator")
    made = []
    for number in range(count):
        words = [topics[number % 3].split()[rng.integers(3)] for _ in range(12)]
        words += [f"word{rng.integers(400)}" for _ in range(24 + number % 7)]
        rng.shuffle(words)
        features = {"package": f"package{number % 5}"}
        made.append(Document(f"doc-{seed}-{number}", " ".join(words), features))
    return made


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    directory = epath.Path(tmp_path_factory.mktemp("run"))
    made = corpus(60, seed=1)
    made.append(Document("copy", made[0].text + " and one more word", {"package": "other"}))
    seen = [Document("seen", made[7].text), *corpus(3, seed=9)]
    for name, found in {"real": made, "dev": corpus(20, seed=2), "heldout": seen}.items():
        out = write_rows_artefact(directory, f"rows/{name}", {"corpus": [[5] * 4 for _ in found]})
        documents_module.write(out / "corpus" / documents_module.FILE, found)
    embed(
        artifacts.Run(directory, "embed"),
        embedder=TfidfEmbedder(dimensions=16, max_document_frequency=0.5),
        documents={"train": "rows/real", "dev": "rows/dev"},
    )
    stage = artifacts.begin(
        artifacts.Run(directory, "vocab"), "vocab", config={}, inputs={}, code=()
    )
    artifacts.write_atomic(stage.work / BYTES_FILE, "")
    stage.commit({})
    return directory


DOCUMENTS = {"train": "rows/real", "dev": "rows/dev", "heldout": "rows/heldout"}


def paired(directory, scope, **changes):
    options = {"documents": DOCUMENTS, "alpha": 0.5, "neighbours": 20, **changes}
    pair(artifacts.Run(directory, scope), **options)
    records = grain.sources.ArrayRecordDataSource([str(directory / scope / PAIRS)])
    found = [json.loads(records[i]) for i in range(len(records))]
    statistics = json.loads((directory / scope / "statistics.json").read_text())
    assert len(found) + sum(statistics["filters"].values()) == statistics["candidates"]
    read = read_pairs(directory / scope)  # the report's table has every filter but the first
    assert list(read.removed.values()) == list(statistics["filters"].values())[1:]
    return found, statistics["filters"]


def test_the_stage_applies_all_of_them(run_directory):
    found, removed = paired(
        run_directory,
        "all",
        neighbours=10,
        upper_bound=1.5,
        mutual_only=True,
        same_feature=["package"],
        seed_tokens=305,
        target_tokens=306,
        exclude=["heldout"],
        near_duplicate_method="minhash",
        max_pairs_per_document=4,
        max_per_seed=2,
    )
    documents = {d.id: d for d in documents_module.Documents(run_directory / "rows/real")}
    packages = {name: one.features["package"] for name, one in documents.items()}
    for one in found:
        assert packages[one["seed_id"]] != packages[one["target_id"]]
        assert len(one["inputs"]) <= 305
        assert len(one["targets"]) < 306
        assert "doc-1-7" not in (one["seed_id"], one["target_id"])
    assert removed.pop("above_upper_bound") == 0
    assert min(removed.values()) > 0, list(removed.values())
    manifest = artifacts.read_manifest(run_directory / "all")
    assert set(manifest.inputs) >= {"exclude/heldout", "vocab"}
    assert manifest.counts["candidates"] == len(found) + sum(removed.values())


def test_both_methods_leave_the_same_pairs(run_directory):
    exact, removed = paired(run_directory, "exact")
    signed, _ = paired(run_directory, "signed", near_duplicate_method="minhash")
    assert exact == signed
    assert removed["near_duplicates"] == 2


def test_a_task_may_be_excluded(run_directory, monkeypatch):
    import seqio
    import tensorflow as tf

    text = next(iter(documents_module.Documents(run_directory / "rows/real"))).text

    def dataset(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensors({"inputs": text, "targets": "yes"})

    def made(vocabulary):
        seqio.TaskRegistry.remove("quiz_of_pairs")
        return seqio.TaskRegistry.add(
            "quiz_of_pairs",
            source=seqio.FunctionDataSource(dataset, splits=["test"]),
            preprocessors=[seqio.preprocessors.tokenize],
            output_features={n: seqio.Feature(vocabulary) for n in ("inputs", "targets")},
        )

    monkeypatch.setitem(globals(), "quiz", made)
    found, removed = paired(run_directory, "quiz", exclude=[f"{__name__}:quiz"])
    assert removed["held_out"] > 0
    ids = {one[key] for one in found for key in ("seed_id", "target_id")}
    assert not ids & {"doc-1-0", "copy"}
    assert "doc-1-1" in ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"same_feature": ["host"]}, r"'host': expected some of \['package'\]"),
        (
            {"same_feature": "package"},
            r"same_feature = 'package': expected a list, as \['package'\]",
        ),
        ({"exclude": "heldout"}, r"exclude = 'heldout': expected a list, as \['heldout'\]"),
        ({"exclude": ["test"]}, r"'test' is no split of pair.documents, .*heldout"),
        ({"exclude": ["train"]}, "'train' is what the pairs are made of"),
        ({"exclude": ["heldout"], "exclude_overlap": 0.0}, "exclude_overlap = 0.0"),
        ({"near_duplicate_method": "lsh"}, "'lsh': expected exact or minhash"),
        ({"near_duplicate_measure": "dice"}, "'dice': expected one of .*'jaccard'"),
        ({"mutual_only": True, "queries": "dev"}, "only 'dev' is searched for"),
        *(
            ({name: 0}, f"pair.{name} = 0: expected at least 1")
            for name in (
                "neighbours",
                "seed_tokens",
                "target_tokens",
                "max_pairs_per_document",
                "max_per_seed",
            )
        ),
        ({"alpha": None}, r"pair.alpha is not set: look with `sbp pair --inspect=FILE.html`"),
        (
            {"alpha": 1.5},
            r"no pair lies above alpha = 1.5: the largest similarity .* is [01]\.\d+; ",
        ),
        ({"target_tokens": 1}, r"left by the filters \(.*too_long \d+.*largest similarity"),
    ],
)
def test_mistakes_are_told_in_a_line(run_directory, options, message):
    with pytest.raises(UserError, match=message):
        paired(run_directory, "wrong", **options)
    assert not (run_directory / "wrong").exists()


# --- the page to choose alpha by


def looked_at(same: bool = True):
    rng = np.random.default_rng(3)
    made = corpus(60, seed=1)
    made[5] = Document("<b>5</b>", made[5].text + " <script>alert(1)</script> \ud800\x00", {})
    made[6] = Document("copy of 5", made[5].text, {"<i>": "&amp;"})
    others = made if same else corpus(30, seed=2)
    found = np.stack([rng.permutation(60)[:12] for _ in others])
    products = rng.random(found.shape, np.float32)
    found[6 if same else 0, 0], products[6 if same else 0, 0] = 5, 2.0
    return pairs.candidates(found, products, same_corpus=same), made, others


@pytest.mark.parametrize("same", [True, False])
def test_bands_partition_the_neighbours(same):
    found, seeds, targets = looked_at(same)
    inspection = inspect_pairs.inspect(found, seeds, targets, neighbours=12, threshold=0.5)
    once = {
        (min(s, t), max(s, t)) if same else (s, t)
        for s, t in zip(found.seeds.tolist(), found.targets.tolist(), strict=True)
        if not (same and s == t)
    }
    assert sum(band.pairs for band in inspection.bands) == len(once) == sum(inspection.counts)
    assert [b.pairs_from for b in inspection.bands] == [
        sum(b.pairs for b in inspection.bands[n:]) for n in range(len(inspection.bands))
    ]
    assert inspection.bands[0].documents_from == inspection.documents
    top = inspection.bands[-1]
    assert top.pairs == top.measured == 1
    assert top.near_duplicates == (1.0 if same else 0.0)
    if same:
        one = top.examples[0]
        assert (one.word_overlap, one.length_ratio, one.shared_shingles) == (1, 1, 1)
    for band in inspection.bands:
        assert all(band.low <= one.similarity <= band.high for one in band.examples)


def test_the_page_stands_alone_and_escapes_what_documents_say():
    found, seeds, targets = looked_at()
    inspection = inspect_pairs.inspect(found, seeds, targets, neighbours=12, threshold=0.5)
    page = inspect_pairs.render("<pairs>", inspection)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;b&gt;5&lt;/b&gt;" in page
    assert "<i>" not in page
    assert not re.search(r"(src|href)=.(?!data:,|#)", page)
    page.encode()  # no surrogate is left
    again = inspect_pairs.inspect(found, seeds, targets, neighbours=12, threshold=0.5)
    assert inspect_pairs.render("<pairs>", again) == page


def test_the_command_writes_the_page_and_no_artefact(run_directory, tmp_path, capsys):
    file = tmp_path / "look.html"
    gin_file = tmp_path / "look.gin"
    gin_file.write_text(f"pair.documents = {DOCUMENTS!r}\npair.neighbours = 5\n")
    command = ["pair", "--scope=looked", f"--run_dir={run_directory}", f"--gin_file={gin_file}"]
    assert cli.main([*command, f"--inspect={file}"]) == 0
    assert "What are pairs of each similarity like?" in file.read_text()
    assert not (run_directory / "looked").exists()
    assert not (run_directory / "looked.partial").exists()
    assert cli.main(command) == 2
    assert "pair.alpha is not set" in capsys.readouterr().err
    absent = "--gin.pair.embeddings='nowhere'"
    assert cli.main([*command, absent, f"--inspect={file}"]) == 2
    assert "nowhere holds no finished artefact" in capsys.readouterr().err
    assert cli.main([*command, "--scope=more", f"--inspect={file}"]) == 2
    assert cli.main(["embed", f"--inspect={file}"]) == 2
    assert "takes no --inspect" in capsys.readouterr().err


def test_nothing_to_look_at():
    found, seeds, _ = looked_at()
    with pytest.raises(UserError, match="no two documents are neighbours"):
        inspect_pairs.inspect(
            found.where(found.seeds == found.targets), seeds, seeds, neighbours=1, threshold=0.5
        )
