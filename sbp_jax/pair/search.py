"""Neighbour search by ScaNN: the largest inner products, exactly or nearly, by size.

The sizes at which the kind of search changes, and its parameters, follow ScaNN's published
guidance: brute force below 20,000 vectors, asymmetric hashing with reordering below 100,000, a
tree of about √n leaves above.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from absl import logging

from sbp_jax.progress import progress

BRUTE_FORCE_BELOW = 20_000
TREE_FROM = 100_000
QUERIES_PER_CALL = 4096


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """How a corpus is searched.

    Attributes:
      kind: `brute_force`, `hashed`, or `tree`.
      leaves: partitions of the tree.
      leaves_to_search: of them, per query.
      reorder: candidates whose exact product is taken.
    """

    kind: str
    leaves: int = 0
    leaves_to_search: int = 0
    reorder: int = 0


def plan(vectors: int, neighbours: int) -> SearchPlan:
    """The search for a corpus of so many vectors and so many neighbours a query."""
    if vectors < BRUTE_FORCE_BELOW:
        return SearchPlan("brute_force")
    reorder = max(100, 10 * neighbours)
    if vectors < TREE_FROM:
        return SearchPlan("hashed", reorder=reorder)
    leaves = round(math.sqrt(vectors))
    return SearchPlan("tree", leaves, max(1, leaves // 10), reorder)


def neighbours(
    index: np.ndarray, queries: np.ndarray, count: int, search: SearchPlan | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest vectors of the index to each query, by inner product.

    Args:
      index: float32 [n, D], unit vectors.
      queries: float32 [m, D].
      count: how many each; fewer where the index has no more.
      search: None for `plan`'s choice.

    Returns:
      Indices int64 [m, k], nearest first, and inner products float32 [m, k]; k = min(count, n).
    """
    from scann.scann_ops.py import scann_ops_pybind  # loads TensorFlow's runtime

    count = min(count, len(index))
    search = search or plan(len(index), count)
    logging.info("ScaNN: %d vectors of %d dimensions, %s", *index.shape, search)
    builder = scann_ops_pybind.builder(index, count, "dot_product")
    if search.kind == "brute_force":
        builder = builder.score_brute_force()
    else:
        if search.kind == "tree":
            builder = builder.tree(
                num_leaves=search.leaves,
                num_leaves_to_search=search.leaves_to_search,
                # ScaNN's default of 100,000 would leave leaves of a larger corpus untrained.
                training_sample_size=len(index),
            )
        builder = builder.score_ah(
            2, anisotropic_quantization_threshold=0.2, training_sample_size=len(index)
        ).reorder(max(search.reorder, count))
    searcher = builder.build()
    found, products = [], []
    bar = progress(desc="neighbours", unit=" queries", total=len(queries))
    for start in range(0, len(queries), QUERIES_PER_CALL):
        block = queries[start : start + QUERIES_PER_CALL]
        indices, similarities = searcher.search_batched_parallel(block)
        found.append(np.asarray(indices, np.int64))
        products.append(np.asarray(similarities, np.float32))
        bar.update(len(block))
    bar.close()
    return np.concatenate(found), np.concatenate(products)
