"""What a search by ScaNN takes of a CPU's time, known before anything is built.

A query is measured against the centroids, reads the hashes of the leaves it searches, and the
vectors of the candidates that are ordered anew; a tree is built by k-means over its sample. The
rates are those of one core of a server of 2024, at 256 dimensions and calls of 2,000 queries or
more (`benchmarks/pair.py` measures them anew: `rates`); other cores have others.
"""

from __future__ import annotations

import dataclasses

from sbp_jax.pair import scann_search

HASHED = 16e9  # bytes of hashes a second
ORDERED = 4e9  # bytes of candidates a second
BUILT = 14e9  # FLOP a second
STEPS = 12  # of k-means


@dataclasses.dataclass(frozen=True)
class CoreSeconds:
    """Seconds of one core.

    Attributes:
      build: of the index.
      search: of all queries.
    """

    build: float
    search: float


def read_by_query(vectors: int, dimensions: int, plan: scann_search.SearchPlan) -> tuple[int, int]:
    """Bytes of hashes (with the centroids) and of candidates that one query reads."""
    if plan.kind == "brute_force":
        return 0, 4 * vectors * dimensions
    share = plan.leaves_to_search / plan.leaves if plan.leaves else 1.0
    hashes = int(share * vectors * dimensions / (4 * scann_search.DIMENSIONS_PER_BLOCK / 2))
    return hashes + 4 * plan.leaves * dimensions, 4 * plan.reorder * dimensions


def core_seconds(
    vectors: int, dimensions: int, queries: int, plan: scann_search.SearchPlan
) -> CoreSeconds:
    """An estimate.

    Args:
      vectors: N of the index.
      dimensions: D.
      queries: asked of it.
      plan: ScaNN's for such an index.
    """
    hashes, candidates = read_by_query(vectors, dimensions, plan)
    # Leaves are learned from the sample, and every vector is laid into one.
    flops = 2 * dimensions * plan.leaves * (STEPS * plan.sample(vectors) + vectors)
    return CoreSeconds(flops / BUILT, queries * (hashes / HASHED + candidates / ORDERED))
