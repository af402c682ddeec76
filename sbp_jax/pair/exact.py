"""Exact neighbours as blocked matrix products, the index spread over all devices.

Every product has one shape, [QUERIES, D] × [D, BLOCK], and a running top-k goes from block to
block in the order of the index; each device has its run of blocks, and the top-k of all are merged
last. So a similarity is the same number on any count of devices and in any shard, and of equal
ones the lowest index comes first.

Instead of the exact top-k, `jax.lax.approx_max_k` may be asked for ("TPU-KNN: K Nearest Neighbor
Search at Peak FLOP/s", Chern et al., 2022): it keeps the best of each of M bins, and its recall is
(1 − 1/M)^(k−1) in expectation, which is no promise for a query. Off TPUs it sorts, and is exact.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sbp_jax.errors import UserError
from sbp_jax.progress import progress
from sbp_jax.settings import configurable

BLOCK = 4096  # vectors of the index in one product
QUERIES = 1024  # queries in one product
AXIS = "index"
MOST = 2**31 - BLOCK * 1024  # vectors that an int32 can number, their padding counted


@configurable
@dataclasses.dataclass(frozen=True)
class ExactSearch:
    """Search by matrix products over all devices.

    Attributes:
      expected_recall: None for the exact top-k; below 1 for `approx_max_k` at that expected recall
        within a block, and so at no less over all of them.
    """

    expected_recall: float | None = None

    def __post_init__(self):
        if self.expected_recall is not None and not 0 < self.expected_recall < 1:
            raise UserError(
                f"ExactSearch.expected_recall = {self.expected_recall}: expected a number "
                "between 0 and 1, or None for exact search"
            )

    @property
    def name(self) -> str:
        return "exact"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the neighbours."""
        return dataclasses.asdict(self)

    def build(
        self, vectors: np.ndarray, count: int, devices: Sequence[jax.Device] | None = None
    ) -> ExactIndex:
        """Lays the vectors on the devices.

        Args:
          vectors: float32 [n, D].
          count: not needed here; other kinds build for it.
          devices: None for all.
        """
        del count
        return ExactIndex(vectors, self.expected_recall, devices)


class ExactIndex:
    """Vectors in blocks on the devices, ready to be asked."""

    def __init__(
        self,
        vectors: np.ndarray,
        expected_recall: float | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Places float32 [n, D]; each device (of any process) gets its run of blocks.

        Raises:
          UserError: there are more vectors than can be numbered here.
        """
        n, dimensions = vectors.shape
        if n > MOST:
            raise UserError(
                f"exact search: {n:,} vectors, expected {MOST:,} at most: set pair.shards"
            )
        self.size = n
        self.expected_recall = expected_recall
        self.mesh = Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))
        count = self.mesh.size
        blocks = -(-max(n, 1) // (BLOCK * count)) * count
        # Bins must not be filled by where related documents stand in the corpus.
        self.order = None
        if expected_recall is not None:
            self.order = np.random.default_rng(0).permutation(n)

        def part(place: tuple[slice, ...] | None) -> np.ndarray:
            assert place is not None
            start, stop, _ = place[0].indices(blocks)
            made = np.zeros((stop - start, BLOCK, dimensions), np.float32)
            rows = slice(start * BLOCK, min(stop * BLOCK, n))
            chosen = vectors[rows] if self.order is None else vectors[self.order[rows]]
            made.reshape(-1, dimensions)[: len(chosen)] = chosen
            return made

        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        self.blocks_BKD = jax.make_array_from_callback((blocks, BLOCK, dimensions), sharding, part)

    def find(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest vectors to each query, by inner product; lower indices first among equals.

        Args:
          queries: float32 [m, D].
          count: how many each; fewer where there are no more.

        Returns:
          Indices int64 [m, k] and products float32 [m, k]; k = min(count, n).
        """
        count = min(count, self.size)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        indices, products = [], []
        waiting = None
        bar = progress(desc="neighbours", unit=" queries", total=len(queries))
        for start in [*range(0, len(queries), QUERIES), None]:
            dispatched = None
            if start is not None:
                block = np.zeros((QUERIES, queries.shape[1]), np.float32)
                chosen = queries[start : start + QUERIES]
                block[: len(chosen)] = chosen
                placed = jax.device_put(block, everywhere)
                dispatched = (
                    len(chosen),
                    _nearest(
                        self.blocks_BKD, placed, self.size, self.mesh, count, self.expected_recall
                    ),
                )
            if waiting is not None:  # the devices are at work on the next block meanwhile
                rows, (found_products, found) = waiting
                indices.append(np.asarray(found, np.int64)[:rows])
                products.append(np.asarray(found_products)[:rows])
                bar.update(rows)
            waiting = dispatched
        bar.close()
        if not indices:
            return np.zeros((0, count), np.int64), np.zeros((0, count), np.float32)
        merged = np.concatenate(indices)
        return merged if self.order is None else self.order[merged], np.concatenate(products)


@functools.partial(jax.jit, static_argnames=("mesh", "count", "expected_recall"))
def _nearest(
    blocks_BKD: jax.Array,
    queries_QD: jax.Array,
    size: int,
    mesh: Mesh,
    count: int,
    expected_recall: float | None,
) -> tuple[jax.Array, jax.Array]:
    """Products float32 [Q, count] and indices int32 [Q, count] of the nearest, whole everywhere."""

    def of_device(blocks_BKD, queries_QD, size):
        first = jax.lax.axis_index(AXIS) * len(blocks_BKD)

        def step(best, numbered):
            number, block_KD = numbered
            # TPUs would otherwise round the factors to bfloat16.
            products_QK = jnp.matmul(queries_QD, block_KD.T, precision=jax.lax.Precision.HIGHEST)
            # Zero of either sign is one product, and a top-k tells the two apart.
            products_QK = jnp.where(products_QK == 0, 0.0, products_QK)
            numbers_K = number * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
            products_QK = jnp.where(numbers_K < size, products_QK, -jnp.inf)
            numbers_QK = jnp.broadcast_to(numbers_K, products_QK.shape)
            if expected_recall is not None:
                products_QK, chosen = jax.lax.approx_max_k(
                    products_QK, min(count, BLOCK), recall_target=expected_recall
                )
                numbers_QK = jnp.take_along_axis(numbers_QK, chosen, axis=1)
            joined = jax.tree.map(
                lambda *parts: jnp.concatenate(parts, 1), best, (products_QK, numbers_QK)
            )
            return _top(joined, count), None

        shape = len(queries_QD), count
        nothing = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
        numbers = first + jnp.arange(len(blocks_BKD), dtype=jnp.int32)
        best, _ = jax.lax.scan(step, nothing, (numbers, blocks_BKD))
        # In the order of the devices, which is that of the index.
        return _top(jax.lax.all_gather(best, AXIS, axis=1, tiled=True), count)

    # What an all_gather makes equal everywhere is not known to be so.
    return jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(PartitionSpec(AXIS), PartitionSpec(), PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(blocks_BKD, queries_QD, size)


def _top(numbered_QK: tuple[jax.Array, jax.Array], count: int) -> tuple[jax.Array, jax.Array]:
    """Of products and numbers [Q, K] the largest products; of equal ones those that stand first."""
    products_QK, numbers_QK = numbered_QK
    best, places = jax.lax.top_k(products_QK, count)
    return best, jnp.take_along_axis(numbers_QK, places, axis=1)
