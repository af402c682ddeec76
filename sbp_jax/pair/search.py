"""Neighbour search behind one interface: the largest inner products, and how many were missed.

A kind of search builds an index of vectors, and the index is asked for neighbours. Which kind is a
matter of time: what is found is measured against exact search, in every run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from sbp_jax.data import engine
from sbp_jax.errors import UserError
from sbp_jax.pair import sharded
from sbp_jax.pair.exact import ExactSearch
from sbp_jax.pair.scann_search import ScannSearch, SearchPlan, load, plan

__all__ = [
    "ExactSearch",
    "ScannSearch",
    "SearchPlan",
    "load",
    "neighbours",
    "plan",
    "recall",
    "search",
]

RECALLED = 10  # neighbours of a query that recall counts
ENOUGH_RECALL = 0.97
SLAB = 1 << 18  # vectors that exact search is given at once: 1 GB at 1,024 dimensions
KINDS = {"scann": ScannSearch, "exact": ExactSearch}


def search(kind: str) -> ScannSearch | ExactSearch:
    """A kind of search: `scann`, or `exact` on JAX's devices; gin may set either's parameters.

    Raises:
      UserError: there is no such kind.
    """
    if kind not in KINDS:
        raise UserError(f"pair.search = {kind!r}: expected one of {list(KINDS)}")
    return KINDS[kind]()


def neighbours(
    index: sharded.Rows,
    queries: sharded.Rows,
    count: int,
    search: ScannSearch | ExactSearch,
    *,
    work: str | os.PathLike,
    identity: Mapping[str, Any],
    shards: int = 1,
    runner: str = engine.LOCAL,
    runner_options: Sequence[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest vectors of the index to each query, by inner product.

    Workers each index a shard; the search goes on where it was interrupted.

    Args:
      index: n unit vectors.
      queries: m of them.
      count: how many each; fewer where the index has no more.
      search: the kind of index of a shard.
      work: a directory for the workers' files, which stay there.
      identity: says which vectors these are.
      shards: how many.
      runner: Beam's, as `engine.run_all` takes it.
      runner_options: for the runner.

    Returns:
      Indices int64 [m, k], nearest first and lower ones first among equals, and inner products
      float32 [m, k]; k = min(count, n).

    Raises:
      UserError: the shards that are searched at once would not fit in this machine's memory.
    """
    shape = len(index), index.dimensions
    sharded.refuse_what_does_not_fit(search, shape, count, shards=shards, runner=runner)
    if not len(queries):
        nothing = 0, min(count, len(index))
        return np.zeros(nothing, np.int64), np.zeros(nothing, np.float32)
    parts = sharded.deal(search, index, queries, count, shards, os.fspath(work))
    whole = {**identity, search.name: search.settings, "count": count, "shards": shards}
    return sharded.read_merged(sharded.run(parts, runner, runner_options, whole))


def recall(
    index: sharded.Rows,
    queries: sharded.Rows,
    found: np.ndarray,
    *,
    sample: int,
    same: bool = False,
    seed: int = 0,
) -> float | None:
    """Recall@10 against exact search: which share of the nearest ten was found.

    A found vector counts if its product, taken anew, is no smaller than that of the tenth: which of
    two equals is found makes no difference. Below 0.97 a warning says so.

    Args:
      index: n vectors, of which a slab is read at a time.
      queries: m vectors.
      found: int64 [m, k], the neighbours; with k below 10, the recall is that of so many.
      sample: so many queries are looked at, or all if they are fewer.
      same: whether the queries are the index's vectors in their order. A vector is then its own
        nearest neighbour, which is easily found, and not counted.
      seed: of the sample.

    Returns:
      The mean share; None where nothing is to be found.
    """
    most = min(sample, len(queries))
    chosen = np.sort(np.random.default_rng(seed).choice(len(queries), most, replace=False))
    count = min(found.shape[1], RECALLED + same)
    if most == 0 or count <= same:
        return None
    asked = np.concatenate([queries.read(query, query + 1) for query in chosen.tolist()])
    exact = ExactSearch()
    best = np.zeros((most, 0), np.int64), np.zeros((most, 0), np.float32)
    mine = found[chosen]
    products = np.full(mine.shape, -np.inf)  # of what was found
    for start in range(0, len(index), SLAB):
        slab = index.read(start, min(start + SLAB, len(index)))
        numbers, nearest = exact.build(slab, count).find(asked, count)
        best = sharded.top(
            np.concatenate([best[0], numbers + start], 1),
            np.concatenate([best[1], nearest], 1),
            count,
        )
        row, column = np.nonzero((mine >= start) & (mine < start + len(slab)))
        for part in np.array_split(np.arange(len(row)), 1 + len(row) * slab.shape[1] // SLAB):
            rows, columns = row[part], column[part]
            vectors = slab[mine[rows, columns] - start].astype(np.float64)
            products[rows, columns] = np.einsum("nd,nd->n", vectors, asked[rows])
    shares = []
    for query, true, least, one, its in zip(chosen, *best, mine, products, strict=True):
        if same:
            least, (one, its) = least[true != query], (part[one != query] for part in (one, its))
        wanted = min(len(least), count - same)
        _, places = np.unique(one[:wanted], return_index=True)
        # Products of unit vectors in float32 are this near to those in float64.
        shares.append(np.sum(its[places] >= least[wanted - 1] - 1e-6) / wanted)
    share = float(np.mean(shares))
    if share < ENOUGH_RECALL:
        logging.warning(
            "search found %.4f of the nearest %d (of %d queries), expected %.2f or more: raise "
            "ScannSearch.leaves_to_search or ScannSearch.reorder, or set pair.search = 'exact'",
            share,
            count - same,
            most,
            ENOUGH_RECALL,
        )
    return share
