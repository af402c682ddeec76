"""Embedding, search and pairs: what is found, what is filtered, and what is refused."""

from __future__ import annotations

import json

import grain
import numpy as np
import pytest
from etils import epath
from made_rows import write_rows_artefact

from sbp_jax import artifacts
from sbp_jax.data import documents as documents_module
from sbp_jax.data.documents import Document
from sbp_jax.errors import UserError
from sbp_jax.pair import pairs, search
from sbp_jax.pair.embed import embed
from sbp_jax.pair.embedders import TfidfEmbedder, unit
from sbp_jax.pair.stage import PAIRS, pair
from sbp_jax.pair.vectors import open_vectors

TOPICS = ("fourier transform signal", "sparse matrix solver", "random seed generator")


def corpus(count: int, seed: int) -> list[Document]:
    """Documents about one of three topics, each in words of its own besides."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        topic = number % len(TOPICS)
        words = [TOPICS[topic].split()[rng.integers(3)] for _ in range(12)]
        words += [f"word{rng.integers(400)}" for _ in range(24)]
        rng.shuffle(words)
        made.append(Document(f"doc-{seed}-{number}", " ".join(words), {"topic": str(topic)}))
    return made


def write_documents(directory, name: str, made: list[Document]) -> None:
    tokens = [[5] * 4 for _ in made]
    out = write_rows_artefact(directory, name, {"corpus": tokens})
    documents_module.write(out / "corpus" / documents_module.FILE, made)


@pytest.fixture
def run_directory(tmp_path):
    made = corpus(60, seed=1)
    made.append(Document("copy", made[0].text + " and one more word"))
    write_documents(tmp_path, "rows/real", made)
    write_documents(tmp_path, "rows/dev", corpus(30, seed=2))
    return epath.Path(tmp_path)


EMBEDDER = TfidfEmbedder(dimensions=16, max_document_frequency=0.5)
DOCUMENTS = {"train": "rows/real", "dev": "rows/dev"}


def embedded(directory, scope="embed", **changes):
    options = {"embedder": EMBEDDER, "documents": DOCUMENTS, **changes}
    embed(artifacts.Run(directory, scope), **options)
    return directory / scope


def paired(directory, scope="pairs", **changes):
    pair(
        artifacts.Run(directory, scope),
        **{"documents": DOCUMENTS, "alpha": 0.5, "neighbours": 20, **changes},
    )
    records = grain.sources.ArrayRecordDataSource([str(directory / scope / PAIRS)])
    found = [json.loads(records[i]) for i in range(len(records))]
    return found, json.loads((directory / scope / "statistics.json").read_text())


def test_pairs_are_related_and_come_in_both_directions(run_directory):
    embedded(run_directory)
    found, statistics = paired(run_directory)
    topics = {
        d.id: d.features.get("topic")
        for d in documents_module.Documents(run_directory / "rows/real")
    }
    same = [topics[p["seed_id"]] == topics[p["target_id"]] for p in found]
    assert np.mean(same) > 0.9
    directed = {(p["seed_id"], p["target_id"]) for p in found}
    assert len(directed) == len(found) == statistics["pairs"]
    assert all((b, a) in directed for a, b in directed)
    assert all(p["seed_id"] != p["target_id"] for p in found)
    assert all(p["similarity"] > 0.5 for p in found)
    assert statistics["filters"]["self_pairs"] == 61
    texts = {d.id: d.text for d in documents_module.Documents(run_directory / "rows/real")}
    assert all(p["inputs"] == texts[p["seed_id"]] for p in found)
    assert all(p["targets"] == texts[p["target_id"]] for p in found)


def test_a_near_duplicate_is_no_pair_and_is_counted(run_directory):
    embedded(run_directory)
    found, statistics = paired(run_directory)
    assert not [p for p in found if {"copy", "doc-1-0"} == {p["seed_id"], p["target_id"]}]
    assert statistics["filters"]["near_duplicates"] >= 2
    loose, _ = paired(run_directory, "loose", near_duplicate_threshold=1.0)
    assert [p for p in loose if {"copy", "doc-1-0"} == {p["seed_id"], p["target_id"]}]


def test_the_cap_keeps_the_most_similar(run_directory):
    embedded(run_directory)
    found, _ = paired(run_directory)
    capped, statistics = paired(run_directory, "capped", max_per_seed=2)
    by_seed: dict[str, list[float]] = {}
    for p in found:
        by_seed.setdefault(p["seed_id"], []).append(p["similarity"])
    kept: dict[str, list[float]] = {}
    for p in capped:
        kept.setdefault(p["seed_id"], []).append(p["similarity"])
    assert {s: sorted(v)[-2:] for s, v in by_seed.items()} == {
        s: sorted(v) for s, v in kept.items()
    }
    assert statistics["filters"]["over_cap"] == len(found) - len(capped)


def test_validation_pairs_write_documents_that_the_base_never_saw(run_directory):
    embedded(run_directory)
    found, _ = paired(run_directory, "pairs_dev", queries="dev")
    assert all(p["target_id"].startswith("doc-2-") for p in found)
    assert not any(p["seed_id"].startswith("doc-2-") for p in found)


def test_it_is_the_same_every_time(run_directory, tmp_path):
    first = embedded(run_directory)
    second = embedded(run_directory, "again")
    for name in ("train/vectors-00000.npy", "train/ids-00000.json", "dev/vectors-00000.npy"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    one, _ = paired(run_directory)
    other, _ = paired(run_directory, "pairs_again", embeddings="again")
    assert one == other


def test_a_document_without_known_words_gets_no_vector_and_no_pair(run_directory):
    made = [*corpus(30, seed=3), Document("strange", "??? !!! ...")]
    write_documents(run_directory, "rows/strange", made)
    out = embedded(run_directory, "strange_embed", documents={"train": "rows/strange"})
    found = open_vectors(out, "train")
    assert not found.read()[found.ids.index("strange")].any()
    assert artifacts.read_manifest(out).counts["train_zero_vectors"] == 1
    found, _ = paired(
        run_directory,
        "strange_pairs",
        embeddings="strange_embed",
        documents={"train": "rows/strange"},
    )
    assert not [p for p in found if "strange" in (p["seed_id"], p["target_id"])]


def test_nothing_above_alpha_says_what_there_was(run_directory):
    embedded(run_directory)
    with pytest.raises(UserError, match=r"largest similarity of two documents is \d\.\d+"):
        paired(run_directory, alpha=0.9999)
    assert not (run_directory / "pairs").exists()


def damage(directory, change):
    path = directory / "train/vectors-00000.npy"
    vectors = np.load(path)
    np.save(path, change(vectors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: np.where(np.arange(len(v))[:, None] == 3, np.nan, v), "has length nan"),
        (lambda v: v[:-1], "one vector for each id"),
        (lambda v: v[:, :8] / np.linalg.norm(v[:, :8], axis=1, keepdims=True), "dimensions"),
    ],
)
def test_damaged_vectors_are_refused(run_directory, change, message):
    out = embedded(run_directory)
    damage(out, change)
    with pytest.raises(UserError, match=message):
        paired(run_directory, queries="dev")


def test_other_documents_than_those_embedded_are_refused(run_directory):
    embedded(run_directory)
    with pytest.raises(UserError, match="does not hold the documents that were embedded"):
        paired(run_directory, documents={"train": "rows/dev"})
    with pytest.raises(UserError, match=r"not among pair.documents"):
        paired(run_directory, queries="heldout")


def clustered(count: int, dimensions: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(40, dimensions))
    return unit(centers[rng.integers(40, size=count)] + 0.5 * rng.normal(size=(count, dimensions)))


@pytest.mark.parametrize(
    ("plan", "recall"),
    [
        (search.SearchPlan("brute_force"), 1.0),
        (search.SearchPlan("hashed", reorder=200), 0.97),
        (search.SearchPlan("tree", leaves=45, leaves_to_search=25, reorder=200), 0.95),
    ],
)
def test_search_finds_what_exact_search_finds(plan, recall):
    vectors = clustered(2000, 32)
    queries = vectors[::20]
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    found, products = plan.build(vectors, 10).find(queries, 10)
    hits = [len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)]
    assert np.mean(hits) >= recall
    expected = np.take_along_axis(queries @ vectors.T, found, axis=1)
    np.testing.assert_allclose(products, expected, atol=1e-2)
    assert (np.diff(products, axis=1) <= 1e-6).all()


def test_the_kind_of_search_follows_the_size():
    assert search.plan(19_999, 10).kind == "brute_force"
    assert search.plan(20_000, 10).kind == "hashed"
    assert search.plan(100_000, 200) == search.SearchPlan("tree", 632, 63, 2000)


def test_select_counts_every_candidate():
    found = np.array([[0, 1, 2], [1, 0, 2], [2, 1, 0]])
    products = np.array([[1.0, 0.9, 0.3], [1.0, 0.9, 0.6], [1.0, 0.6, 0.3]], np.float32)
    chosen, removed = pairs.select(
        found,
        products,
        same_corpus=True,
        alpha=0.5,
        upper_bound=0.8,
        near_duplicate=lambda a, b: np.zeros(len(a), bool),
        max_per_seed=None,
    )
    assert [(p.seed, p.target) for p in chosen] == [(1, 2), (2, 1)]
    assert removed == pairs.Removed(self_pairs=3, below_alpha=2, above_upper_bound=2)
