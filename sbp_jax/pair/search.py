"""Neighbour search behind one interface: the largest inner products, and how many were missed.

A kind of search builds an index of vectors, and the index is asked for neighbours. Which kind is a
matter of time: what is found is measured against exact search, in every run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from absl import logging
from etils import epath

from sbp_jax.data import engine
from sbp_jax.errors import UserError
from sbp_jax.pair import sharded
from sbp_jax.pair.exact import ExactSearch
from sbp_jax.pair.scann_search import ScannSearch, SearchPlan, load, plan

__all__ = [
    "ExactSearch",
    "Index",
    "ScannSearch",
    "Search",
    "SearchPlan",
    "load",
    "neighbours",
    "plan",
    "recall",
    "search",
    "sharded_neighbours",
]

RECALLED = 10  # neighbours of a query that recall counts
ENOUGH_RECALL = 0.97
SLAB = 1 << 18  # vectors that exact search is given at once: 1 GB at 1,024 dimensions
KINDS = {"scann": ScannSearch, "exact": ExactSearch}


class Index(Protocol):
    """Vectors, ready to be asked."""

    def find(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices int64 [m, k], nearest first, and products float32 [m, k] of float32 [m, D]."""
        ...


class Search(Protocol):
    """A kind of search with its settings."""

    def build(self, vectors: np.ndarray, count: int) -> Index:
        """An index of float32 [n, D], for so many neighbours a query."""
        ...


def search(kind: str) -> ScannSearch | ExactSearch:
    """A kind of search: `scann`, or `exact` on JAX's devices; gin may set either's parameters.

    Raises:
      UserError: there is no such kind.
    """
    if kind not in KINDS:
        raise UserError(f"pair.search = {kind!r}: expected one of {list(KINDS)}")
    return KINDS[kind]()


def neighbours(
    index: np.ndarray, queries: np.ndarray, count: int, search: Search | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest vectors of the index to each query, by inner product.

    Args:
      index: float32 [n, D], unit vectors.
      queries: float32 [m, D].
      count: how many each; fewer where the index has no more.
      search: the kind; None for ScaNN as its size suggests.

    Returns:
      Indices int64 [m, k], nearest first, and inner products float32 [m, k]; k = min(count, n).

    Raises:
      UserError: it would not fit in this machine's memory.
    """
    search = search or ScannSearch()
    if isinstance(search, ScannSearch | ExactSearch):
        sharded.refuse_what_does_not_fit(search, index.shape, count, held=True)
    return search.build(index, count).find(queries, count)


def sharded_neighbours(
    index: np.ndarray,
    queries: np.ndarray,
    count: int,
    search: ScannSearch | ExactSearch,
    *,
    shards: int,
    work: str | os.PathLike,
    runner: str = engine.LOCAL,
    runner_options: Sequence[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """As `neighbours`, by workers that each index a shard; goes on where it was interrupted.

    Args:
      index: float32 [n, D], unit vectors.
      queries: float32 [m, D].
      count: how many each.
      search: the kind of index of a shard.
      shards: how many.
      work: a directory for the workers' files, which stay there.
      runner: Beam's, as `engine.run_all` takes it.
      runner_options: for the runner.

    Raises:
      UserError: the shards that are searched at once would not fit in this machine's memory.
    """
    sharded.refuse_what_does_not_fit(search, index.shape, count, shards=shards, runner=runner)
    work = os.fspath(work)
    identity: dict[str, Any] = {
        "search": search,
        "count": count,
        "shards": shards,
        "index": _hash(index),
        "queries": _hash(queries),
    }
    folder = epath.Path(work)
    vectors = _write(index, folder, f"index-{identity['index']}.npy")
    asked = _write(queries, folder, f"queries-{identity['queries']}.npy")
    parts = sharded.deal(search, vectors, asked, count, shards, work)
    sharded.run(parts, runner, runner_options, identity)
    blocks = list(sharded.merged(parts))
    found, products = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return found, products


def recall(
    index: np.ndarray,
    queries: np.ndarray,
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
      index: float32 [n, D].
      queries: float32 [m, D].
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
    asked = queries[chosen]
    count = min(found.shape[1], RECALLED + same)
    if most == 0 or count <= same:
        return None
    exact = ExactSearch()
    best = np.zeros((most, 0), np.int64), np.zeros((most, 0), np.float32)
    for start in range(0, len(index), SLAB):
        slab = index[start : start + SLAB]
        numbers, products = exact.build(slab, count).find(asked, count)
        best = sharded.top(
            np.concatenate([best[0], numbers + start], 1),
            np.concatenate([best[1], products], 1),
            count,
        )
    shares = []
    for query, vector, true, mine in zip(chosen, asked, best[0], found[chosen], strict=True):
        if same:
            true, mine = true[true != query], mine[mine != query]
        wanted = min(len(true), count - same)
        # Both by the same arithmetic, or the last digit would tell equals apart.
        least = np.min(index[true[:wanted]] @ vector)
        mine = np.unique(mine[:wanted])
        shares.append(np.sum(index[mine] @ vector >= least - 1e-6) / wanted)
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


def _hash(vectors: np.ndarray) -> str:
    """Of content and shape, 16 hex digits."""
    content = hashlib.sha256(str(vectors.shape).encode())
    content.update(np.ascontiguousarray(vectors, np.float32).data)
    return content.hexdigest()[:16]


def _write(vectors: np.ndarray, work: epath.Path, name: str) -> sharded.Rows:
    """Vectors where every worker can read them, unless they lie there."""
    path = work / name
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        writer = sharded.NpyWriter(path, vectors.shape, np.dtype(np.float32))
        for start in range(0, len(vectors), sharded.QUERIES):
            writer.write(vectors[start : start + sharded.QUERIES])
        writer.close()
    return sharded.Rows(os.fspath(path), 0, len(vectors))
