"""The row loader: which rows a step reads, as a pure function of (seed, step), and their batches.

The whole run is a sequence of N = steps × batch slots. Each slot belongs to a source, in planned
numbers and evenly spread; a source's k-th slot takes row k of its passes, each pass in an order of
its own. Nothing here depends on hosts, devices or what was read before: resume is one integer.
"""

from __future__ import annotations

import bisect
import os
import threading
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from absl import logging

from sbp_jax.data import rows as row_format
from sbp_jax.data.mixture import Mixture
from sbp_jax.data.rows import Row, RowSource
from sbp_jax.errors import Stopped, UserError

AHEAD = 8  # batches that are read before they are asked for
# Threads, each of which reads whole batches. From a disk one is faster than several, which would
# wait for Python's lock; a bucket answers late, and many at once.
READERS, REMOTE_READERS = 1, 16


class RowOrder:
    """Slot → source and row, in constant time and memory.

    Args:
      mixture: what is read.
      seed: of the shuffles.
    """

    def __init__(self, mixture: Mixture, seed: int):
        self.mixture = mixture
        self.sources = mixture.sources
        self.orders = [
            grain.MapDataset.range(source.rows).seed(seed + index).shuffle().repeat()
            for index, source in enumerate(self.sources)
        ]
        counts = np.array(mixture.phases)
        # The first slot of each phase, and the rows of each source before it.
        self.starts = np.concatenate([[0], np.cumsum(counts.sum(axis=1))]).tolist()
        self.offsets = np.concatenate([np.zeros_like(counts[:1]), np.cumsum(counts, axis=0)])

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, slot: int) -> tuple[int, int]:
        """The source's index and the row's index in it.

        Sources are told apart one after the other: of n slots that are left, source k with m of
        them has those at which floor(i · m / n) steps up, which spreads it evenly.
        """
        if not 0 <= slot < len(self):
            raise IndexError(slot)
        phase = bisect.bisect_right(self.starts, slot) - 1
        slot, left = slot - self.starts[phase], self.starts[phase + 1] - self.starts[phase]
        for index, count in enumerate(self.mixture.phases[phase]):
            before = slot * count // left
            if (slot + 1) * count // left > before:
                return index, int(self.orders[index][int(self.offsets[phase][index]) + before])
            slot -= before
            left -= count
        raise AssertionError("shares do not add up")

    def slots_before(self, slot: int) -> list[int]:
        """How many of the first `slot` slots each source has."""
        phase = min(bisect.bisect_right(self.starts, slot), len(self.mixture.phases)) - 1
        slot, left = slot - self.starts[phase], self.starts[phase + 1] - self.starts[phase]
        counts = []
        for offset, count in zip(
            self.offsets[phase].tolist(), self.mixture.phases[phase], strict=True
        ):
            before = slot * count // left if left else 0
            counts.append(offset + before)
            slot -= before
            left -= count
        return counts


def local_slots(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """Which rows of the global batch this process's devices hold, ascending."""
    held: set[int] = set()
    for index in sharding.addressable_devices_indices_map((batch_size,)).values():
        assert index is not None
        held.update(range(*index[0].indices(batch_size)))
    return np.array(sorted(held))


class BadRows:
    """Rows that could not be read: named, counted, and too many end the run.

    In the place of such a row stands one of padding, which weighs nothing.

    Args:
      most: the share of the rows read so far that may be bad. The first `FEW` never end a run.
    """

    FEW = 3

    def __init__(self, most: float):
        self.most, self.read, self.slots = most, 0, list[int]()
        self._lock = threading.Lock()

    def before(self, slot: int) -> int:
        """How many of the run's slots before this one were found bad."""
        return sum(bad < slot for bad in self.slots)

    def take(self, slot: int, source: RowSource, records: Any, index: int, into: Row) -> None:
        """Reads a row of a source into one of padding, or leaves that as it is.

        Raises:
          Stopped: too many rows are bad.
        """
        with self._lock:
            self.read += 1
        try:
            source.read(records, index, into)
        except UserError as error:
            with self._lock:
                self.slots.append(slot)
                count = len(self.slots)
                stop = count > max(self.FEW, self.most * self.read)
            logging.error("left out: %s", error.message)
            if stop:
                raise Stopped(
                    f"{count} of {self.read} rows could not be read, the last: {error.message}"
                ) from error


def batches(
    order: RowOrder, slots: np.ndarray, start_step: int, stop_step: int, bad: BadRows
) -> Iterator[Row]:
    """This process's part of the batches of steps start to stop, read ahead by threads.

    Args:
      order: of the run.
      slots: [b], which rows of each batch this process reads.
      start_step: the first step's index; the row position to resume at.
      stop_step: past the last step.
      bad: counts the rows that cannot be read.

    Yields:
      Rows with a leading dimension b.

    Raises:
      Stopped: too many rows are bad.
    """
    records = [source.open() for source in order.sources]
    batch_size = order.mixture.batch_size

    def read(step: int) -> Row:
        batch = row_format.empty_rows(len(slots), order.mixture.length)
        for place, offset in enumerate(slots.tolist()):
            slot = step * batch_size + offset
            source, row = order[slot]
            into = Row(*(x[place] for x in batch))
            bad.take(slot, order.sources[source], records[source], row, into)
        return batch

    dataset = grain.MapDataset.range(start_step, stop_step).map(read)
    remote = any("://" in os.fspath(source.directory) for source in order.sources)
    threads = REMOTE_READERS if remote else READERS
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(AHEAD, threads))
    yield from dataset.to_iter_dataset(options)


def in_order(source: RowSource, batch_size: int) -> Iterator[Row]:
    """All rows of a source once, in their order; the last batch is filled up with padding."""
    records = source.open()
    empty = row_format.empty_rows(source.length)
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


def check_model(source: RowSource, vocab_size: int) -> None:
    """Checks that a model can read rows.

    Raises:
      UserError: the vocabularies differ.
    """
    if source.vocab_size != vocab_size:
        raise UserError(
            f"{source.directory} holds tokens of a vocabulary of {source.vocab_size}, the model's "
            f"vocab_size is {vocab_size}: set DecoderConfig.vocab_size, or cache the rows anew"
        )
