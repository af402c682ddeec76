"""The row loader: which rows a step reads, as a pure function of (seed, step), and their batches.

The whole run is a sequence of N = steps × batch slots. Each slot belongs to a source, in planned
numbers and evenly spread; a source's k-th slot takes row k of its passes, each pass in an order of
its own. Nothing here depends on hosts, devices or what was read before: resume is one integer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import grain
import jax
import numpy as np

from sbp_jax.data import rows as row_format
from sbp_jax.data.rows import Row, RowsArtefact, RowSource
from sbp_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Share:
    """What a run takes from one source.

    Attributes:
      source: the rows.
      slots: how many rows of the run, repeats counted.
    """

    source: RowSource
    slots: int

    @property
    def passes(self) -> float:
        """How many times the source is read."""
        return self.slots / self.source.rows

    @property
    def unique_rows(self) -> int:
        """How many different rows are read."""
        return min(self.slots, self.source.rows)

    @property
    def unique_tokens(self) -> int:
        """How many different tokens are read; by the rows' mean where not all rows are."""
        return round(self.source.tokens * self.unique_rows / self.source.rows)


def plan_shares(rows: RowsArtefact, slots: int) -> list[Share]:
    """Turns the mixture's rates into exact numbers of rows.

    Args:
      rows: the sources, with their rates; a synthetic one must not be repeated.
      slots: N, rows of the whole run.

    Raises:
      UserError: a synthetic source has too few rows for its rate.
    """
    sources = list(rows.sources.values())
    total = sum(source.rate for source in sources)
    # Rounding the running sums keeps the numbers' sum exact.
    bounds = np.rint(np.cumsum([0.0] + [s.rate / total for s in sources]) * slots).astype(int)
    shares = [
        Share(source, int(end - start))
        for source, start, end in zip(sources, bounds[:-1], bounds[1:], strict=True)
    ]
    for share in shares:
        if share.source.synthetic and share.slots > share.source.rows:
            rate = share.source.rows / slots
            raise UserError(
                f"{share.source.name} would be read {share.passes:.2f} times, but no synthetic "
                f"document is read twice: its rate asks for {share.slots} rows and there are "
                f"{share.source.rows}. Lower its share to {rate:.4f}, or write more of it"
            )
    return shares


class RowOrder:
    """Slot → source and row, in constant time and memory.

    Args:
      shares: what is taken from each source.
      seed: of the shuffles.
    """

    def __init__(self, shares: Sequence[Share], seed: int):
        self.shares = list(shares)
        self.slots = sum(share.slots for share in shares)
        self.orders = [
            grain.MapDataset.range(share.source.rows).seed(seed + index).shuffle().repeat()
            for index, share in enumerate(shares)
        ]

    def __len__(self) -> int:
        return self.slots

    def __getitem__(self, slot: int) -> tuple[int, int]:
        """The source's index and the row's index in it.

        Sources are told apart one after the other: of n slots that are left, source k with m of
        them has those at which floor(i · m / n) steps up, which spreads it evenly.
        """
        if not 0 <= slot < self.slots:
            raise IndexError(slot)
        left = self.slots
        for index, share in enumerate(self.shares):
            before = slot * share.slots // left
            if (slot + 1) * share.slots // left > before:
                return index, int(self.orders[index][before])
            slot -= before
            left -= share.slots
        raise AssertionError("shares do not add up")

    def slots_before(self, slot: int) -> list[int]:
        """How many of the first `slot` slots each source has."""
        left, counts = self.slots, []
        for share in self.shares:
            before = slot * share.slots // left if left else 0
            counts.append(before)
            slot -= before
            left -= share.slots
        return counts


def local_slots(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """Which rows of the global batch this process's devices hold, ascending."""
    held: set[int] = set()
    for index in sharding.addressable_devices_indices_map((batch_size,)).values():
        assert index is not None
        held.update(range(*index[0].indices(batch_size)))
    return np.array(sorted(held))


def batches(
    order: RowOrder, batch_size: int, slots: np.ndarray, start_step: int, stop_step: int
) -> Iterator[Row]:
    """This process's part of the batches of steps start to stop, read ahead by threads.

    Args:
      order: of the run.
      batch_size: B, of all processes together.
      slots: [b], which rows of each batch this process reads.
      start_step: the first step's index; the row position to resume at.
      stop_step: past the last step.

    Yields:
      Rows with a leading dimension b.
    """
    records = [share.source.open() for share in order.shares]
    width = len(slots)

    def read(index: int) -> Row:
        step, place = divmod(index, width)
        source, row = order[step * batch_size + int(slots[place])]
        return order.shares[source].source.read(records[source], row)

    dataset = (
        grain.MapDataset.range(start_step * width, stop_step * width)
        .map(read)
        .batch(width, drop_remainder=True)
        .to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=8 * width))
    )
    for batch in dataset:
        yield Row(*batch)


def in_order(source: RowSource, batch_size: int) -> Iterator[Row]:
    """All rows of a source once, in their order; the last batch is filled up with padding."""
    records = source.open()
    empty = row_format.empty_row(source.length)
    for start in range(0, source.rows, batch_size):
        stop = min(start + batch_size, source.rows)
        rows = [source.read(records, i) for i in range(start, stop)]
        rows += [empty] * (batch_size - len(rows))
        yield Row(*map(np.stack, zip(*rows, strict=True)))


def check_batch(batch_size: int, shards: int, accumulation_steps: int = 1) -> None:
    """Checks that a batch can be laid over the mesh.

    Raises:
      UserError: it cannot be divided.
    """
    if batch_size < 1 or batch_size % (shards * accumulation_steps):
        raise UserError(
            f"batch_size = {batch_size} is no multiple of {shards * accumulation_steps} "
            f"({shards} part(s) of the mesh × {accumulation_steps} accumulation step(s))"
        )


def check_model(rows: RowsArtefact, vocab_size: int) -> None:
    """Checks that a model can read rows.

    Raises:
      UserError: the vocabularies differ.
    """
    if rows.vocab_size != vocab_size:
        raise UserError(
            f"{rows.directory} holds tokens of a vocabulary of {rows.vocab_size}, the model's "
            f"vocab_size is {vocab_size}: set DecoderConfig.vocab_size, or cache the rows anew"
        )


def source_summary(shares: Sequence[Share]) -> Mapping[str, Mapping[str, float]]:
    """Per source: rows of the run, different rows and tokens, and passes."""
    return {
        share.source.name: {
            "rows": share.slots,
            "unique_rows": share.unique_rows,
            "passes": share.passes,
            "tokens": share.unique_tokens,
            "synthetic": share.source.synthetic,
        }
        for share in shares
    }
