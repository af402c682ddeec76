"""What a search needs of memory, known before anything is built.

The arithmetic of ScaNN's parts, with N vectors of D dimensions: float32 vectors 4·N·D as they are
read and as much again as ScaNN keeps them; hashes of four bits for two dimensions, N·D/4, twice
while they are packed; centroids 4·D a leaf; while a tree is built the residuals, 4·N·D; and the
sample that leaves and hashes are learned from, twice. Of exact search: the vectors as they are read
and as the devices have them, and the products of a run of blocks, twice. The factors are measured
ones (benchmarks/pair.py holds the sum against the peak of a process).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from sbp_jax.errors import UserError
from sbp_jax.pair import exact, scann_search

MEMORY = "/proc/meminfo"
FLOAT = 4
RUNTIME = 700 << 20  # ScaNN, TensorFlow's runtime and JAX, once a process
MOST_SHARDS = 1 << 20


def forecast(
    vectors: int,
    dimensions: int,
    kind: str,
    *,
    neighbours: int = 200,
    devices: int = 1,
    itemsize: int = FLOAT,
    plan: scann_search.SearchPlan | None = None,
) -> int:
    """Bytes at the peak of building an index and asking it, the vectors as they are read included.

    Args:
      vectors: N.
      dimensions: D.
      kind: `scann` or `exact`.
      neighbours: of a query.
      devices: that share this machine's memory; for `exact` on an accelerator the vectors lie a
        second time in the memory of the devices, and not in the machine's.
      itemsize: bytes of a number on the devices, for `exact`.
      plan: of ScaNN; None for the one chosen by size.
    """
    raw = FLOAT * vectors * dimensions
    if kind == "exact":
        runs, blocks = exact.runs_of(vectors, devices)
        placed = itemsize * dimensions * runs * blocks * exact.BLOCK
        # And of those in the best groups, their numbers and both in new order.
        products = 2 * blocks * exact.BLOCK + 4 * neighbours * exact.GROUP
        return raw + placed + FLOAT * devices * exact.QUERIES * products
    if kind != "scann":
        raise UserError(f"search kind {kind!r}: expected 'scann' or 'exact'")
    plan = plan or scann_search.plan(vectors, neighbours)
    answers = scann_search.QUERIES_PER_CALL * (neighbours + plan.reorder) * 2 * FLOAT
    total = 2 * raw + answers
    if plan.kind == "brute_force":
        return total
    blocks = -(-dimensions // scann_search.DIMENSIONS_PER_BLOCK)
    total += 2 * vectors * -(-blocks // 2)
    total += 2 * FLOAT * dimensions * plan.sample(vectors)
    if plan.kind == "tree":
        total += raw + 2 * FLOAT * dimensions * plan.leaves
    return total


def available_memory(path: str = MEMORY) -> int | None:
    """Bytes that this machine could give a process now; None where it does not say (no Linux)."""
    try:
        with open(path) as file:
            fields = dict(line.split(":", 1) for line in file)
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None


def shards_that_fit(need: Callable[[int, int], int], vectors: int, available: int) -> int | None:
    """The fewest shards whose largest fits; None where no number of them does.

    Args:
      need: bytes for so many vectors in each of so many shards.
      vectors: in all.
      available: bytes.
    """

    def fits(shards: int) -> bool:
        return need(math.ceil(vectors / shards), shards) <= available

    most = min(max(vectors, 1), MOST_SHARDS)
    above = 1
    while above < most and not fits(above):
        above *= 2
    above = min(above, most)
    if not fits(above):
        return None
    below = above // 2  # does not fit, or is none
    while above - below > 1:
        middle = (above + below) // 2
        above, below = (middle, below) if fits(middle) else (above, middle)
    return above


def refuse_what_does_not_fit(
    vectors: int,
    dimensions: int,
    kind: str,
    *,
    neighbours: int,
    shards: int = 1,
    at_once: Callable[[int], int] = lambda shards: 1,
    devices: int = 1,
    itemsize: int = FLOAT,
    plan: Callable[[int, int], scann_search.SearchPlan] = scann_search.plan,
    available: int | None = None,
) -> None:
    """Raises before anything is built that would not fit.

    Args:
      vectors: N, of all shards.
      dimensions: D.
      kind: `scann` or `exact`.
      neighbours: of a query.
      shards: into which the vectors are dealt.
      at_once: how many of so many shards are searched at the same time on this machine.
      devices: that share its memory.
      itemsize: bytes of a number on them.
      plan: ScaNN's, of the vectors of a shard and neighbours.
      available: bytes; None for what this machine says.

    Raises:
      UserError: with the number of shards that would fit.
    """
    available = available_memory() if available is None else available
    if available is None:
        return

    def need(each: int, shards: int) -> int:
        one = forecast(
            each,
            dimensions,
            kind,
            neighbours=neighbours,
            devices=devices,
            itemsize=itemsize,
            plan=plan(each, neighbours),
        )
        return at_once(shards) * (one + RUNTIME)

    wanted = need(math.ceil(vectors / shards), shards)
    if wanted <= available:
        return
    fitting = shards_that_fit(need, vectors, available)
    remedy = "no number of shards fits: free memory or take a larger machine"
    if fitting is not None:
        remedy = f"set pair.shards = {fitting}, or take a larger machine"
    raise UserError(
        f"pair: a search of kind {kind!r} over {vectors:,} vectors of {dimensions} dimensions in "
        f"{shards} shard(s) needs {wanted / 1e9:.2f} GB here at once, expected at most the "
        f"{available / 1e9:.2f} GB that are available: {remedy}"
    )
