"""Neighbour search: what every kind finds, on any devices, in any shards, and what it needs."""

from __future__ import annotations

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest
from test_embed import write_split
from test_pair import clustered, embedded, paired, run_directory

from sbp_jax import artifacts
from sbp_jax.errors import UserError
from sbp_jax.pair import exact, memory, scann_search, search, sharded
from sbp_jax.pair.embedders import unit
from sbp_jax.pair.vectors import open_vectors

assert run_directory  # a fixture


def with_ties(count: int, seed: int, dimensions: int = 8) -> np.ndarray:
    """Vectors of small whole numbers: their products are exact, and many are equal."""
    rng = np.random.default_rng(seed)
    return rng.integers(-2, 3, (count, dimensions)).astype(np.float32)


def by_numpy(vectors: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    products = queries @ vectors.T
    found = np.argsort(-products, axis=1, kind="stable")[:, :count]
    return found, np.take_along_axis(products, found, axis=1)


@dataclasses.dataclass(frozen=True)
class Held:
    """Vectors in memory, read as those of a disk are."""

    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dimensions(self) -> int:
        return self.vectors.shape[1]

    def read(self, start=0, stop=None) -> np.ndarray:
        return self.vectors[start:stop]

    def part(self, start, stop) -> Held:
        return Held(self.vectors[start:stop])


def neighbours(vectors, queries, count, kind, work, **changes):
    return search.neighbours(
        Held(vectors),
        Held(queries),
        count,
        kind,
        work=work,
        **{"identity": {}, "runner": "inline", **changes},
    )


def recall(vectors, queries, found, **changes):
    return search.recall(Held(vectors), Held(queries), found, **changes)


VECTORS, QUERIES = with_ties(9001, 1), with_ties(1100, 2)
BRUTE_FORCE = search.SearchPlan("brute_force")


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_exact_search_is_numpys_with_the_lowest_index_first(devices):
    index = search.ExactSearch().build(VECTORS, 50, jax.devices()[:devices])
    found, products = index.find(QUERIES, 50)
    expected, expected_products = by_numpy(VECTORS, QUERIES, 50)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(products, expected_products)


def test_similarities_have_the_same_bits_on_one_device_and_on_eight():
    vectors = clustered(9001, 48)
    one, eight = (
        search.ExactSearch().build(vectors, 20, jax.devices()[:count]).find(vectors[:1000], 20)
        for count in (1, 8)
    )
    np.testing.assert_array_equal(one[0], eight[0])
    np.testing.assert_array_equal(one[1], eight[1])


def test_bfloat16_changes_nothing_in_vectors_that_it_has_rounded():
    vectors = clustered(5000, 48).astype(ml_dtypes.bfloat16).astype(np.float32)
    half, whole = (
        search.ExactSearch(dtype=dtype).build(vectors, 20).find(vectors[:500], 20)
        for dtype in ("bfloat16", "float32")
    )
    np.testing.assert_array_equal(half[0], whole[0])
    np.testing.assert_allclose(half[1], whole[1], atol=1e-6)


def test_zero_of_either_sign_is_one_product():
    vectors = np.array([[-1], [1], [0], [-1]], np.float32)
    found, _ = search.ExactSearch().build(vectors, 4).find(np.zeros((1, 1), np.float32), 4)
    assert found.tolist() == [[0, 1, 2, 3]]


def test_approximate_search_gives_true_products_and_its_expected_recall():
    vectors = clustered(9001, 16)
    approximate = search.ExactSearch(expected_recall=0.9)
    found, products = approximate.build(vectors, 10).find(vectors[:300], 10)
    np.testing.assert_allclose(
        products, np.einsum("md,mkd->mk", vectors[:300], vectors[found]), atol=1e-5
    )
    assert recall(vectors, vectors[:300], found, sample=300) >= 0.9
    with pytest.raises(UserError, match=r"ExactSearch.dtype = 'int4': expected one of"):
        search.ExactSearch(dtype="int4")
    with pytest.raises(UserError, match=r"expected_recall = 1.0: expected a number between"):
        search.ExactSearch(expected_recall=1.0)


@pytest.mark.parametrize("kind", ["scann", "exact"])
def test_fewer_vectors_than_neighbours_and_no_queries(kind, tmp_path):
    vectors = clustered(5, 8)
    found, products = neighbours(vectors, vectors, 50, search.search(kind), tmp_path)
    assert found.shape == products.shape == (5, 5)
    assert [sorted(row) for row in found.tolist()] == [list(range(5))] * 5
    none, _ = neighbours(vectors, vectors[:0], 50, search.search(kind), tmp_path)
    assert none.shape == (0, 5)
    parts, _ = neighbours(vectors, vectors, 50, search.search(kind), tmp_path, shards=9)
    np.testing.assert_array_equal(parts, found)
    with pytest.raises(UserError, match=r"pair.search = 'faiss': expected one of"):
        search.search("faiss")


def test_leaves_with_too_few_vectors_are_no_neighbours_of_index_0():
    vectors = clustered(2000, 16)
    narrow = search.SearchPlan("tree", leaves=40, leaves_to_search=1, reorder=500)
    found, products = narrow.build(vectors, 400).find(vectors[:50], 400)
    assert np.isfinite(products).all()
    assert all(len(set(row)) == 400 for row in found.tolist())


def test_leaves_of_several_clusters_are_asked_in_time():
    rng = np.random.default_rng(0)
    centers, weights = rng.normal(size=(120, 64)), rng.exponential(size=120)
    chosen = rng.choice(120, 8000, p=weights / weights.sum())
    vectors = unit(centers[chosen] + 0.7 * rng.normal(size=(8000, 64)))
    tree = search.SearchPlan("tree", leaves=40, leaves_to_search=4, reorder=200)
    found, _ = tree.build(vectors, 11).find(vectors, 11)
    # 0.971; 0.950 with centroids as k-means leaves them.
    assert recall(vectors, vectors, found, sample=300, same=True) > 0.96


@pytest.mark.parametrize("sample", [1000, 100_000])
def test_a_tree_is_the_same_every_time(sample, monkeypatch):
    monkeypatch.setattr(scann_search, "SAMPLE", sample)
    monkeypatch.setattr(scann_search, "SAMPLE_PER_LEAF", 10)
    vectors = clustered(6000, 16)
    narrow = search.SearchPlan("tree", leaves=80, leaves_to_search=3, reorder=20)
    one, other = (narrow.build(vectors, 10).find(vectors, 10) for _ in range(2))
    np.testing.assert_array_equal(one[0], other[0])


def test_recall_is_measured_truly():
    vectors = clustered(3000, 32)
    bad = search.SearchPlan("tree", leaves=300, leaves_to_search=1, reorder=20)
    good = search.SearchPlan("tree", leaves=30, leaves_to_search=30, reorder=300)
    for plan, least, most in ((bad, 0.05, 0.8), (good, 0.97, 1.0), (BRUTE_FORCE, 1.0, 1.0)):
        found, _ = plan.build(vectors, 21).find(vectors, 21)
        measured = recall(vectors, vectors, found, sample=200, same=True)
        sample = np.sort(np.random.default_rng(0).choice(3000, 200, replace=False))
        products = vectors[sample] @ vectors.T
        products[np.arange(200), sample] = -np.inf
        true = np.argsort(-products, axis=1)[:, :10]
        mine = [[i for i in found[q] if i != q][:10] for q in sample]
        hits = [len(set(a) & set(b)) / 10 for a, b in zip(true, mine, strict=True)]
        assert measured == pytest.approx(np.mean(hits), abs=1e-6)
        assert least <= measured <= most


def test_recall_takes_one_of_two_equals_for_the_other():
    twice = np.concatenate([clustered(40, 8)] * 2)
    found, _ = by_numpy(twice, twice[:5], 11)
    other = (found + 40) % 80
    assert recall(twice, twice[:5], other, sample=5) == 1.0
    assert recall(twice, twice[:5], np.full((5, 11), 7), sample=5) <= 0.1


def test_low_recall_warns(caplog):
    vectors = clustered(100, 8)
    with caplog.at_level("WARNING"):
        recall(vectors, vectors, np.zeros((100, 10), np.int64), sample=50)
    assert "expected 0.97 or more" in caplog.text


def test_the_stage_says_its_recall_and_shards_change_nothing(run_directory):
    embedded(run_directory)
    whole, _ = paired(run_directory, search="exact")
    counts = artifacts.read_manifest(run_directory / "pairs").counts
    assert counts["recall_at_10"] == 1.0
    parts, _ = paired(run_directory, "parts", search="exact", shards=3, runner="inline")
    assert parts == whole
    assert not (run_directory / "parts.search").exists()
    with pytest.raises(UserError, match=r"pair.shards = 0: expected at least 1"):
        paired(run_directory, "none", shards=0)


@pytest.mark.parametrize(
    ("kind", "shards", "runner"),
    [("exact", 4, "inline"), ("scann", 3, "inline")],
)
def test_shards_find_what_one_index_finds(kind, shards, runner, tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "QUERIES", 700)  # several blocks in the merge
    found, products = neighbours(
        VECTORS, QUERIES, 30, search.search(kind), tmp_path, shards=shards, runner=runner
    )
    expected, expected_products = by_numpy(VECTORS, QUERIES, 30)
    np.testing.assert_array_equal(products, expected_products)
    if kind == "exact":  # ScaNN may choose among equals
        np.testing.assert_array_equal(found, expected)


def test_an_interrupted_search_goes_on_without_its_finished_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "QUERIES", 20)  # three blocks of the fifty
    built, asked = [], []
    build, find = search.ExactSearch.build, exact.ExactIndex.find

    def counted(self, vectors, count, devices=None):
        built.append(len(vectors))
        return build(self, vectors, count, devices)

    def interrupted(self, queries, count):
        asked.append(len(queries))
        if len(asked) == 8:  # in the midst of the third shard
            raise KeyboardInterrupt
        return find(self, queries, count)

    def ask(kind, count=10):
        return neighbours(VECTORS[:401], QUERIES[:50], count, kind, tmp_path, shards=4)

    monkeypatch.setattr(search.ExactSearch, "build", counted)
    monkeypatch.setattr(exact.ExactIndex, "find", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(search.search("exact"))
    found, _ = ask(search.search("exact"))
    assert built == [100, 100, 100, 100, 101]
    np.testing.assert_array_equal(found, by_numpy(VECTORS[:401], QUERIES[:50], 10)[0])
    ask(search.search("exact"), count=11)  # another question: nothing of the first is taken
    assert len(built) == 9


def test_a_mistake_in_a_worker_is_the_users(tmp_path):
    write_split(tmp_path / "vectors")
    rows = open_vectors(tmp_path / "vectors", "train")
    (tmp_path / "vectors/train/vectors-00000.npy").unlink()
    with pytest.raises(UserError, match=r"vectors-00000.npy cannot be read .*: run sbp embed"):
        search.neighbours(
            rows, rows, 2, search.search("exact"), work=tmp_path, identity={}, runner="inline"
        )


def test_a_kept_index_is_taken_for_its_own_vectors_and_settings_alone(tmp_path):
    vectors = clustered(2000, 16)
    plan = search.SearchPlan("tree", leaves=20, leaves_to_search=5, reorder=100)
    index = plan.build(vectors, 10)
    index.save(tmp_path / "index", vectors)
    (tmp_path / "index").rename(tmp_path / "moved")
    loaded = search.load(tmp_path / "moved", plan, vectors)
    for mine, other in zip(
        loaded.find(vectors[:60], 10), index.find(vectors[:60], 10), strict=True
    ):
        np.testing.assert_array_equal(mine, other)
    with pytest.raises(UserError, match="another settings and hash"):
        search.load(tmp_path / "moved", dataclasses.replace(plan, leaves_to_search=6), vectors)
    with pytest.raises(UserError, match="another vectors and hash"):
        search.load(tmp_path / "moved", plan, vectors[::-1])
    with pytest.raises(UserError, match="no finished search index"):
        search.load(tmp_path / "nowhere", plan, vectors)
    (tmp_path / "moved/scann_docids.pkl").write_bytes(b"x")
    with pytest.raises(UserError, match="expected no such file"):
        search.load(tmp_path / "moved", plan, vectors)


def test_a_search_takes_the_index_that_another_kept(tmp_path, monkeypatch):
    built = []
    build = search.SearchPlan.build
    monkeypatch.setattr(
        search.SearchPlan, "build", lambda *arguments: built.append(1) or build(*arguments)
    )
    vectors = clustered(300, 16)
    kind = search.ScannSearch(keep=str(tmp_path / "kept"))
    one, other = (neighbours(vectors, vectors, 5, kind, tmp_path / name) for name in "ab")
    assert len(built) == 1
    np.testing.assert_array_equal(one, other)
    neighbours(vectors[::-1], vectors, 5, kind, tmp_path / "c")
    assert len(built) == 2
    assert "keep" not in kind.settings  # where it lies decides no neighbour


@pytest.mark.parametrize("kind", ["scann", "exact"])
@pytest.mark.parametrize(("vectors", "gigabytes"), [(10**6, 2), (10**7, 4), (582 * 10**6, 100)])
def test_what_does_not_fit_is_refused_with_shards_that_do(kind, vectors, gigabytes):
    def check(shards):
        memory.refuse_what_does_not_fit(
            vectors, 1024, kind, neighbours=200, shards=shards, available=gigabytes * 10**9
        )

    with pytest.raises(UserError, match=r"set pair.shards = \d+") as refused:
        check(1)
    fitting = int(refused.value.message.split("pair.shards = ")[1].split(",")[0])
    check(fitting)
    with pytest.raises(UserError):
        check(fitting // 2)


def test_no_number_of_shards_helps_where_nothing_is_free(monkeypatch, tmp_path):
    def check(**changes):
        memory.refuse_what_does_not_fit(1000, 8, "scann", neighbours=5, **changes)

    with pytest.raises(UserError, match="no number of shards fits"):
        check(available=1000)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    3 kB\n")
    assert memory.available_memory(tmp_path / "meminfo") == 3072
    assert memory.available_memory(tmp_path / "nothing") is None
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(UserError, match="needs"):  # before anything is built
        neighbours(VECTORS, QUERIES, 3, search.search("scann"), tmp_path)


def test_the_forecast_counts_what_it_says():
    n, d = 10**6, 256
    raw = 4 * n * d
    tree = memory.forecast(n, d, "scann", neighbours=10)
    assert 3 * raw < tree < 4 * raw  # as read, as kept, residuals, hashes, the sample
    # As read, on the devices, and 16 blocks of 4,096 products of 1,024 queries twice.
    assert 2 * raw + 2**29 < memory.forecast(n, d, "exact", neighbours=10) < 2.1 * raw + 2**29
    brute = memory.forecast(10_000, d, "scann", neighbours=10)
    assert brute >= 2 * 4 * 10_000 * d
    with pytest.raises(UserError, match="expected 'scann' or 'exact'"):
        memory.forecast(n, d, "faiss")


def test_defaults_follow_the_size_unless_others_are_given():
    kind = search.ScannSearch(leaves_to_search=50, reorder=700)
    assert kind.plan(19_999, 10) == BRUTE_FORCE
    assert kind.plan(50_000, 10) == search.SearchPlan("hashed", reorder=700)
    assert kind.plan(100_000, 10) == search.SearchPlan("tree", 632, 50, 700)
    with pytest.raises(UserError, match=r"ScannSearch.reorder = 0: expected 1 or more"):
        search.ScannSearch(reorder=0)
    # As many as leaves can be learned from, and no more of a large corpus.
    assert search.plan(200_000, 10).sample(200_000) == 894 * 125
