"""Packed rows: what a row is, how sequences are packed into rows, how rows lie on disk.

A row is L tokens of one or more segments. `targets` are the tokens to be predicted, `inputs` the
same tokens shifted right, starting from BOS where a document starts and from the token before
where a long document goes on in another row: no token is lost, none is predicted twice.
On disk a row is one ArrayRecord record: little-endian int32 [4, L] (inputs, targets, segment ids,
positions) and float32 [L] (loss weights).
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import UserError

ROWS_PER_SHARD = 1 << 16
# Grain reads single records at random; groups would be decompressed whole for each.
WRITER_OPTIONS = "group_size:1,zstd:3"


# NumPy on the host, JAX on devices.
type Array = Any


class Row(NamedTuple):
    """One packed row, or a batch of them with a leading dimension.

    Attributes:
      inputs: int32 [L].
      targets: int32 [L], 0 in padding.
      segment_ids: int32 [L], from 1 in each row, 0 in padding.
      positions: int32 [L], from 0 in each segment.
      loss_weights: float32 [L], 0 in padding.
    """

    inputs: Array
    targets: Array
    segment_ids: Array
    positions: Array
    loss_weights: Array


class Piece(NamedTuple):
    """A run of tokens that stays together: a document, or a part of a long one.

    Attributes:
      inputs: int32 [n].
      targets: int32 [n].
      loss_weights: float32 [n].
    """

    inputs: np.ndarray
    targets: np.ndarray
    loss_weights: np.ndarray


def document_piece(tokens: Sequence[int], bos: int, eos: int) -> Piece:
    """A document with its end; `tokens` may bring their own EOS."""
    closed = list(tokens) if len(tokens) and tokens[-1] == eos else [*tokens, eos]
    targets = np.asarray(closed, np.int32)
    inputs = np.concatenate([np.asarray([bos], np.int32), targets[:-1]])
    return Piece(inputs, targets, np.ones(len(targets), np.float32))


def prompt(tokens: Sequence[int], seed_length: int, bos: int, eos: int) -> list[int]:
    """What the synthesizer reads before it writes: BOS, the seed's first tokens, EOS."""
    return [bos, *tokens[:seed_length], eos]


def pair_piece(
    seed: Sequence[int],
    target: Sequence[int],
    bos: int,
    eos: int,
    seed_length: int,
    target_length: int,
) -> Piece:
    """A related pair d1 → d2, with loss on d2 and its end only.

    d1 is cut to `seed_length` tokens exactly as in `prompt`. Of d2 the first `target_length`
    tokens are kept, its EOS among them; a longer d2 has no end here, as a sample cut at the limit
    has none.
    """
    inputs = prompt(seed, seed_length, bos, eos)
    closed = [*target, eos][:target_length]
    whole = np.asarray([*inputs, *closed], np.int32)
    weights = np.zeros(len(whole) - 1, np.float32)
    weights[len(inputs) - 1 :] = 1
    return Piece(whole[:-1], whole[1:], weights)


def split(piece: Piece, length: int) -> Iterator[Piece]:
    """Cuts a piece that is longer than a row into parts of at most `length` tokens."""
    for start in range(0, len(piece.targets), length):
        yield Piece(*(array[start : start + length] for array in piece))


def pack(pieces: Iterable[Piece], length: int, open_rows: int = 256) -> Iterator[Row]:
    """Packs pieces into rows of `length` tokens, best fit first.

    Each piece goes to the open row that it leaves the least room in; when more than `open_rows`
    are open, the fullest is closed. Deterministic: the rows depend on the order of pieces alone.

    Raises:
      ValueError: a piece is longer than a row.
    """
    contents: dict[int, list[Piece]] = {}
    room: list[tuple[int, int]] = []  # (tokens free, row), sorted
    opened = 0
    for piece in pieces:
        size = len(piece.targets)
        if size > length:
            raise ValueError(f"a piece of {size} tokens does not fit a row of {length}")
        best = bisect.bisect_left(room, (size, -1))
        if best < len(room):
            free, row = room.pop(best)
        else:
            free, row = length, opened
            contents[row] = []
            opened += 1
        contents[row].append(piece)
        if free > size:
            bisect.insort(room, (free - size, row))
        else:
            yield _row(contents.pop(row), length)
        if len(room) > open_rows:
            yield _row(contents.pop(room.pop(0)[1]), length)
    for _, row in sorted(room):
        yield _row(contents.pop(row), length)


def empty_row(length: int) -> Row:
    """A row of padding."""
    integers = [np.zeros(length, np.int32) for _ in range(4)]
    return Row._make([*integers, np.zeros(length, np.float32)])


def _row(pieces: Sequence[Piece], length: int) -> Row:
    row = empty_row(length)
    start = 0
    for segment, piece in enumerate(pieces, start=1):
        end = start + len(piece.targets)
        row.inputs[start:end] = piece.inputs
        row.targets[start:end] = piece.targets
        row.segment_ids[start:end] = segment
        row.positions[start:end] = np.arange(end - start)
        row.loss_weights[start:end] = piece.loss_weights
        start = end
    return row


def encode(row: Row) -> bytes:
    """A row as a record."""
    integers = np.stack(row[:4]).astype("<i4", copy=False)
    return integers.tobytes() + row.loss_weights.astype("<f4", copy=False).tobytes()


def decode(record: bytes, length: int) -> Row:
    """The row in a record.

    Raises:
      ValueError: the record is not one of a row of this length.
    """
    if len(record) != 20 * length:
        raise ValueError(f"a row of {length} tokens takes {20 * length} bytes, not {len(record)}")
    integers = np.frombuffer(record, "<i4", 4 * length).reshape(4, length)
    inputs, targets, segment_ids, positions = integers
    loss_weights = np.frombuffer(record, "<f4", length, 16 * length)
    return Row(inputs, targets, segment_ids, positions, loss_weights)


def write_rows(directory: epath.Path, rows: Iterable[Row]) -> tuple[int, int]:
    """Writes shards `rows-00000.array_record`, …; returns numbers of rows and of padding tokens."""
    count = padding = 0
    writer = None
    for row in rows:
        if count % ROWS_PER_SHARD == 0:
            if writer:
                writer.close()
            name = f"rows-{count // ROWS_PER_SHARD:05d}.array_record"
            writer = ArrayRecordWriter(str(directory / name), WRITER_OPTIONS)
        assert writer is not None
        writer.write(encode(row))
        count += 1
        padding += int((row.segment_ids == 0).sum())
    if writer:
        writer.close()
    return count, padding


@dataclasses.dataclass(frozen=True)
class RowSource:
    """The rows of one SeqIO task, within a rows artefact.

    Attributes:
      name: of the task.
      directory: where its shards lie.
      rate: of the task in its mixture; 1 alone.
      rows: how many.
      tokens: in all rows, padding not counted.
      loss_tokens: tokens with a loss weight.
      documents: how many.
      bytes: of the documents' text in UTF-8.
      length: L.
      vocab_size: V; every token is below it.
      synthetic: whether `sbp synthesize` wrote the documents.
    """

    name: str
    directory: epath.Path
    rate: float
    rows: int
    tokens: int
    loss_tokens: int
    documents: int
    bytes: int
    length: int
    vocab_size: int
    synthetic: bool = False

    def open(self) -> grain.sources.ArrayRecordDataSource:
        """The records, by index.

        Raises:
          UserError: shards are missing, or hold another number of rows than the manifest says.
        """
        paths = sorted(str(p) for p in self.directory.glob("rows-*.array_record"))
        records = grain.sources.ArrayRecordDataSource(paths) if paths else []
        if len(records) != self.rows:
            raise UserError(
                f"{self.directory} holds {len(records)} rows, its manifest says {self.rows}: "
                "delete the rows and run `sbp cache` again"
            )
        return records

    def read(self, records: grain.sources.ArrayRecordDataSource, index: int) -> Row:
        """Row `index` of the records that `open` gave.

        Raises:
          UserError: it is of another length, or holds a token that is none.
        """
        try:
            row = decode(records[index], self.length)
            low = min(row.inputs.min(), row.targets.min())
            high = max(row.inputs.max(), row.targets.max())
            if low < 0 or high >= self.vocab_size:
                wrong = low if low < 0 else high
                raise ValueError(f"token {wrong} is none of a vocabulary of {self.vocab_size}")
        except ValueError as error:
            raise UserError(
                f"row {index} of {self.directory} is damaged ({error}): delete the rows and run "
                "`sbp cache` again"
            ) from error
        return row


@dataclasses.dataclass(frozen=True)
class RowsArtefact:
    """What `sbp cache` left: sources of rows of one length and vocabulary.

    Attributes:
      directory: of the artefact.
      length: L.
      vocab_size: V; every token is below it.
      sources: by the task's name, in the mixture's order.
    """

    directory: epath.Path
    length: int
    vocab_size: int
    sources: dict[str, RowSource]


def open_rows(directory: epath.PathLike) -> RowsArtefact:
    """Reads the manifest of a rows artefact.

    Raises:
      UserError: there is none, or another stage made it.
    """
    directory = epath.Path(directory)
    manifest = artifacts.read_manifest(directory)
    if manifest.stage != "cache":
        raise UserError(
            f"{directory} was made by `sbp {manifest.stage}`: expected the rows of `sbp cache`"
        )
    length, vocab_size = manifest.config["length"], manifest.counts["vocab_size"]
    sources = {
        name: RowSource(
            name=name,
            directory=directory / name,
            length=length,
            vocab_size=vocab_size,
            **{
                field: counts[field]
                for field in (
                    "rate",
                    "rows",
                    "tokens",
                    "loss_tokens",
                    "documents",
                    "bytes",
                    "synthetic",
                )
            },
        )
        for name, counts in manifest.counts["sources"].items()
    }
    return RowsArtefact(directory, length, vocab_size, sources)
