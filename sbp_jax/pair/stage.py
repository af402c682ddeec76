"""The stage `sbp pair`: vectors become pairs of related documents, as a SeqIO task reads them."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence

import gin
from absl import logging
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from sbp_jax import artifacts
from sbp_jax.data import engine
from sbp_jax.data.documents import Document, Documents
from sbp_jax.errors import UserError
from sbp_jax.pair import pairs as pairs_module
from sbp_jax.pair import search as search_module
from sbp_jax.pair.embed import read_vectors
from sbp_jax.progress import progress
from sbp_jax.settings import configurable
from sbp_jax.text.shingles import containment, shingles

PAIRS = "pairs.array_record"
STATISTICS = "statistics.json"


@configurable
def pair(
    run: artifacts.Run,
    *,
    embeddings: str = "embed",
    documents: Mapping[str, str] = gin.REQUIRED,
    index: str = "train",
    queries: str = "train",
    alpha: float = gin.REQUIRED,
    upper_bound: float | None = None,
    neighbours: int = 200,
    near_duplicate_containment: float = 0.5,
    max_per_seed: int | None = None,
    search: str = "scann",
    recall_queries: int = 1000,
    shards: int | None = None,
    runner: str = engine.LOCAL,
    runner_options: Sequence[str] = (),
) -> None:
    """Leaves pairs d1 → d2 and statistics about them.

    Args:
      run: names the artefact.
      embeddings: artefact of `sbp embed`.
      documents: rows artefact with documents for each split that is named below.
      index: the split of the seeds d1, which is indexed.
      queries: the split of the targets d2. The same as `index` for training pairs, which then are
        kept in both directions; another for pairs to validate on.
      alpha: similarity above which a pair is kept (α; the paper's is remembered as 0.75 with its
        own embedder, and says nothing about another).
      upper_bound: similarity above which it is not, if given.
      neighbours: how many of each target are looked at.
      near_duplicate_containment: share of the smaller document's 13-word shingles that stand in
        the other, from which the two are near-duplicates and no pair. The share is ours.
      max_per_seed: at most so many targets a seed, the most similar ones; None for all.
      search: `scann`, or `exact` on JAX's devices.
      recall_queries: of so many targets the recall is measured against exact search.
      shards: parts of the index, each the work of one process; None for one here, without files.
      runner: Apache Beam's: `DirectRunner` works on all cores here; `inline` on one, without Beam.
      runner_options: for that runner, as `--project=mine`.
    """
    for name in (index, queries):
        if name not in documents:
            raise UserError(f"pair: split {name!r} is not among pair.documents, {list(documents)}")
    if neighbours < 1 or (max_per_seed is not None and max_per_seed < 1):
        raise UserError("pair: neighbours and max_per_seed must be at least 1")
    for name, value in (("shards", shards), ("recall_queries", recall_queries)):
        if value is not None and value < 1:
            raise UserError(f"pair.{name} = {value}: expected 1 or more")
    kind = search_module.search(search)
    paths = {name: run.path(documents[name]) for name in {index, queries}}
    stage = artifacts.begin(
        run,
        "pair",
        config={
            "index": index,
            "queries": queries,
            "alpha": alpha,
            "upper_bound": upper_bound,
            "neighbours": neighbours,
            "near_duplicate_containment": near_duplicate_containment,
            "max_per_seed": max_per_seed,
            "search": kind,
            "recall_queries": recall_queries,
            "shards": shards,
        },
        inputs={
            "embeddings": run.path(embeddings),
            **{f"documents/{name}": path for name, path in sorted(paths.items())},
        },
        code=(
            "sbp_jax.pair.stage",
            "sbp_jax.pair.pairs",
            "sbp_jax.pair.search",
            "sbp_jax.pair.sharded",
            "sbp_jax.pair.exact",
            "sbp_jax.pair.scann_search",
            "sbp_jax.text",
        ),
    )
    if stage.finished:
        return
    same_corpus = index == queries
    seed_vectors, seed_ids = read_vectors(run.path(embeddings), index)
    target_vectors, target_ids = read_vectors(run.path(embeddings), queries)
    if seed_vectors.shape[1] != target_vectors.shape[1]:
        raise UserError(
            f"{run.path(embeddings)}: vectors of {index!r} have {seed_vectors.shape[1]} "
            f"dimensions, those of {queries!r} {target_vectors.shape[1]}: run sbp embed again"
        )
    seeds = _by_vectors(Documents(paths[index]), seed_ids, index)
    targets = seeds if same_corpus else _by_vectors(Documents(paths[queries]), target_ids, queries)
    # A target is its own nearest neighbour, and must not cost it one.
    count = neighbours + same_corpus
    # Beside the artefact's own files: another alpha needs no other search.
    searched = epath.Path(f"{run.out}.search")
    if shards is None:
        found, products = search_module.neighbours(seed_vectors, target_vectors, count, kind)
    else:
        found, products = search_module.sharded_neighbours(
            seed_vectors,
            target_vectors,
            count,
            kind,
            shards=shards,
            work=searched,
            runner=runner,
            runner_options=runner_options,
        )
    recall = search_module.recall(
        seed_vectors, target_vectors, found, sample=recall_queries, same=same_corpus
    )

    @functools.cache
    def seed_shingles(seed: int):
        return shingles(seeds[seed].text)

    @functools.cache
    def target_shingles(target: int):
        return shingles(targets[target].text)

    def near_duplicate(seed: int, target: int) -> bool:
        other = (seed_shingles if same_corpus else target_shingles)(target)
        return containment(seed_shingles(seed), other) > near_duplicate_containment

    chosen, removed = pairs_module.select(
        found,
        products,
        same_corpus=same_corpus,
        alpha=alpha,
        upper_bound=upper_bound,
        near_duplicate=near_duplicate,
        max_per_seed=max_per_seed,
    )
    if not chosen:
        largest = max(
            (
                float(similarity)
                for target, row in enumerate(zip(found, products, strict=True))
                for seed, similarity in zip(*row, strict=True)
                if not (same_corpus and seed == target)
            ),
            default=float("nan"),
        )
        raise UserError(
            f"pair: no pair lies above alpha = {alpha} after {removed}: the largest similarity "
            f"of two documents is {largest:.4f}; lower pair.alpha"
        )
    writer = ArrayRecordWriter(str(stage.work / PAIRS), "group_size:1,zstd:3")
    for one in progress(chosen, desc=run.scope, unit=" pairs"):
        seed, target = seeds[one.seed], targets[one.target]
        record = {
            "id": f"{seed.id}-{target.id}",
            "seed_id": seed.id,
            "target_id": target.id,
            "similarity": one.similarity,
            "inputs": seed.text,
            "targets": target.text,
        }
        writer.write(json.dumps(record).encode())
    writer.close()
    found_statistics = pairs_module.statistics(
        chosen, removed, products, seeds=len(seeds), alpha=alpha
    )
    artifacts.write_atomic(stage.work / STATISTICS, json.dumps(found_statistics, indent=2))
    logging.info("%s: removed %s", run.scope, removed)
    counts = {k: found_statistics[k] for k in ("pairs", "seeds", "documents", "filters")}
    stage.commit({**counts, "recall_at_10": recall})
    if searched.exists():
        searched.rmtree()


def _by_vectors(documents: Documents, ids: list[str], split: str) -> list[Document]:
    """The documents, which must be those that were embedded, in their order."""
    if documents.ids != ids:
        raise UserError(
            f"{documents.directory} does not hold the documents that were embedded as {split!r}: "
            "run sbp embed again, or name the artefact that it read"
        )
    return list(documents)
