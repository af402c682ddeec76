"""Exact neighbours as blocked matrix products, the index spread over all devices.

Every product has one shape, [QUERIES, D] × [D, BLOCK], and a running top-k goes from run to run of
up to `RUN` blocks in the order of the index; each device has its runs, and the top-k of all are
merged last. So a similarity is the same number on any count of devices and in any shard, and of
equal ones the lowest index comes first.

Sorting would cost more than multiplying, so few products are sorted: those of a run are taken in
groups, and the k nearest lie in the k groups whose best are nearest. Nothing is lost by that: where
a group is not among them, k others have each a product that comes before all of its own.

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
RUN = 16  # blocks whose products are held at once
GROUP = 32  # of their products
AXIS = "index"
SIZES = {"float32": 4, "bfloat16": 2}  # bytes
MOST = 2**31 - BLOCK * RUN * 1024  # vectors that an int32 can number, their padding counted


@configurable
@dataclasses.dataclass(frozen=True)
class ExactSearch:
    """Search by matrix products over all devices.

    Attributes:
      expected_recall: None for the exact top-k; below 1 for `approx_max_k` at that expected recall
        within a run, and so at no less over all of them.
      dtype: `bfloat16` rounds the vectors, which changes nothing where `embed.dtype` has done so;
        it takes half of the memory, and a TPU a sixth of the products' time. They are summed in
        float32 either way.
    """

    expected_recall: float | None = None
    dtype: str = "float32"

    def __post_init__(self):
        if self.expected_recall is not None and not 0 < self.expected_recall < 1:
            raise UserError(
                f"ExactSearch.expected_recall = {self.expected_recall}: expected a number "
                "between 0 and 1, or None for exact search"
            )
        if self.dtype not in SIZES:
            raise UserError(f"ExactSearch.dtype = {self.dtype!r}: expected one of {list(SIZES)}")

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
        return ExactIndex(vectors, self, devices)


class ExactIndex:
    """Vectors in blocks on the devices, ready to be asked."""

    def __init__(
        self,
        vectors: np.ndarray,
        search: ExactSearch,
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
        self.search = search
        self.mesh = Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))
        runs, blocks = runs_of(n, self.mesh.size)
        # Bins must not be filled by where related documents stand in the corpus.
        self.order = None
        if search.expected_recall is not None:
            self.order = np.random.default_rng(0).permutation(n)

        def part(place: tuple[slice, ...] | None) -> np.ndarray:
            assert place is not None
            start, stop, _ = place[0].indices(runs)
            made = np.zeros((stop - start, blocks, BLOCK, dimensions), search.dtype)
            rows = slice(start * blocks * BLOCK, min(stop * blocks * BLOCK, n))
            chosen = vectors[rows] if self.order is None else vectors[self.order[rows]]
            made.reshape(-1, dimensions)[: len(chosen)] = chosen
            return made

        sharding = NamedSharding(self.mesh, PartitionSpec(AXIS))
        self.vectors_RBKD = jax.make_array_from_callback(
            (runs, blocks, BLOCK, dimensions), sharding, part
        )

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
                block = np.zeros((QUERIES, queries.shape[1]), self.search.dtype)
                chosen = queries[start : start + QUERIES]
                block[: len(chosen)] = chosen
                placed = jax.device_put(block, everywhere)
                dispatched = (
                    len(chosen),
                    nearest(
                        self.vectors_RBKD,
                        placed,
                        self.size,
                        self.mesh,
                        count,
                        self.search.expected_recall,
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


def runs_of(vectors: int, devices: int) -> tuple[int, int]:
    """Into how many runs vectors are laid out on so many devices, and how many blocks each has."""
    blocks = -(-max(vectors, 1) // (BLOCK * devices))
    runs = -(-blocks // RUN)
    return runs * devices, -(-blocks // runs)


@functools.partial(jax.jit, static_argnames=("mesh", "count", "expected_recall"))
def nearest(
    vectors_RBKD: jax.Array,
    queries_QD: jax.Array,
    size: int,
    mesh: Mesh,
    count: int,
    expected_recall: float | None,
) -> tuple[jax.Array, jax.Array]:
    """Products float32 [Q, count] and indices int32 [Q, count] of the nearest, whole everywhere.

    Args:
      vectors_RBKD: in runs over the devices of the mesh.
      queries_QD: of the same dtype, whole on each.
      size: how many vectors are no padding.
      mesh: of one axis.
      count: of neighbours.
      expected_recall: as `ExactSearch` has it.
    """
    _, blocks, *_ = vectors_RBKD.shape
    span = blocks * BLOCK

    def of_device(vectors_RBKD, queries_QD, size):
        first = jax.lax.axis_index(AXIS) * len(vectors_RBKD)

        def products(block_KD):
            # TPUs would otherwise round the factors to bfloat16.
            products_QK = jnp.matmul(
                queries_QD,
                block_KD.T,
                precision=jax.lax.Precision.HIGHEST,
                preferred_element_type=jnp.float32,
            )
            # Zero of either sign is one product, and a top-k tells the two apart.
            return jnp.where(products_QK == 0, 0.0, products_QK)

        def step(best, numbered):
            number, run_BKD = numbered
            products_QN = jnp.swapaxes(jax.lax.map(products, run_BKD), 0, 1).reshape(-1, span)
            start = number * span
            there_N = start + jnp.arange(span, dtype=jnp.int32) < size
            products_QN = jnp.where(there_N, products_QN, -jnp.inf)
            if expected_recall is None:
                products_QC, places_QC = _of_best_groups(products_QN, count)
            else:
                products_QC, places_QC = jax.lax.approx_max_k(
                    products_QN, min(count, span), recall_target=expected_recall
                )
            joined = jax.tree.map(
                lambda *parts: jnp.concatenate(parts, 1), best, (products_QC, start + places_QC)
            )
            return _top(joined, count), None

        shape = len(queries_QD), count
        nothing = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
        numbers = first + jnp.arange(len(vectors_RBKD), dtype=jnp.int32)
        best, _ = jax.lax.scan(step, nothing, (numbers, vectors_RBKD))
        # In the order of the devices, which is that of the index.
        return _top(jax.lax.all_gather(best, AXIS, axis=1, tiled=True), count)

    # What an all_gather makes equal everywhere is not known to be so.
    return jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(PartitionSpec(AXIS), PartitionSpec(), PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(vectors_RBKD, queries_QD, size)


def _of_best_groups(products_QN: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Products [Q, C] and their places among N, ascending, the `count` largest among them."""
    products_QGM = products_QN.reshape(len(products_QN), -1, GROUP)
    groups = products_QGM.shape[1]
    _, best_QG = jax.lax.top_k(products_QGM.max(axis=2), min(count, groups))
    best_QG = jnp.sort(best_QG, axis=1).astype(jnp.int32)
    chosen_QGM = jnp.take_along_axis(products_QGM, best_QG[:, :, None], axis=1)
    places_QGM = best_QG[:, :, None] * GROUP + jnp.arange(GROUP, dtype=jnp.int32)
    return chosen_QGM.reshape(len(chosen_QGM), -1), places_QGM.reshape(len(places_QGM), -1)


def _top(numbered_QK: tuple[jax.Array, jax.Array], count: int) -> tuple[jax.Array, jax.Array]:
    """Of products and numbers [Q, K] the largest products; of equal ones those that stand first."""
    products_QK, numbers_QK = numbered_QK
    best, places = jax.lax.top_k(products_QK, count)
    return best, jnp.take_along_axis(numbers_QK, places, axis=1)
