"""Packed rows: what a row is, how sequences are packed into rows, how rows lie on disk.

A row is L tokens of one or more segments. `targets` are the tokens to be predicted, `inputs` the
same tokens shifted right, starting from BOS where a document starts and from the token before
where a long document goes on in another row: no token is lost, none is predicted twice.

On disk a row is one ArrayRecord record, which says no more than it must: little-endian int32 the
number of segments, for each segment int32 [6] (its tokens, the input before its first target, the
target from which there is loss, the document's number in its file, which part of the document it
is, and of how many), then the targets, uint16 where the vocabulary allows it and int32 elsewhere.
"""

from __future__ import annotations

import bisect
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import UserError

# Grain reads single records at random; groups would be decompressed whole for each.
WRITER_OPTIONS = "group_size:1,zstd:1"
SHARDS = "rows-*.array_record"


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
      targets: int32 [n].
      first: the input before the first target; the others are the targets shifted.
      loss_from: the target from which there is loss.
      document: the document's number in the file of documents beside the rows.
      part: which part of the document this is, from 0.
      parts: of how many.
    """

    targets: np.ndarray
    first: int
    loss_from: int = 0
    document: int = 0
    part: int = 0
    parts: int = 1

    @property
    def loss_tokens(self) -> int:
        """Targets with loss."""
        return len(self.targets) - self.loss_from


def document_piece(tokens: Sequence[int], bos: int, eos: int) -> Piece:
    """A document with its end; `tokens` may bring their own EOS."""
    closed = tokens if len(tokens) and tokens[-1] == eos else [*tokens, eos]
    return Piece(np.asarray(closed, np.int32), bos)


def prompt(tokens: Sequence[int], seed_length: int, bos: int, eos: int) -> list[int]:
    """What the synthesizer reads before it writes: BOS, the seed, EOS.

    Of a seed longer than `seed_length` the first so many tokens are read, and the rest is not.
    """
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
    return Piece(whole[1:], bos, loss_from=len(inputs) - 1)


def continued_piece(inputs: Sequence[int], targets: Sequence[int], bos: int, length: int) -> Piece:
    """Inputs and the targets that go on with them: no end between, loss on the targets only.

    Of what is longer than `length` tokens the first are not kept, as lm-evaluation-harness has it.

    Raises:
      ValueError: the targets alone are longer.
    """
    if len(targets) > length:
        raise ValueError(f"{len(targets)} targets do not fit a row of {length}")
    whole = np.asarray([bos, *inputs, *targets][-(length + 1) :], np.int32)
    return Piece(whole[1:], int(whole[0]), loss_from=len(whole) - 1 - len(targets))


def split(piece: Piece, length: int) -> Iterator[Piece]:
    """Cuts a piece that is longer than a row into parts of at most `length` tokens."""
    size = len(piece.targets)
    parts = -(-size // length)
    for part, start in enumerate(range(0, size, length)):
        targets = piece.targets[start : start + length]
        yield piece._replace(
            targets=targets,
            first=int(piece.targets[start - 1]) if start else piece.first,
            loss_from=min(max(piece.loss_from - start, 0), len(targets)),
            part=part,
            parts=parts,
        )


def pack(pieces: Iterable[Piece], length: int, open_rows: int = 256) -> Iterator[list[Piece]]:
    """Packs pieces into rows of `length` tokens, best fit first.

    Each piece goes to the open row that it leaves the least room in; when more than `open_rows`
    are open, the fullest is closed. Deterministic: the rows depend on the order of pieces alone.

    Yields:
      The pieces of a row.

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
            yield contents.pop(row)
        if len(room) > open_rows:
            yield contents.pop(room.pop(0)[1])
    for _, row in sorted(room):
        yield contents.pop(row)


def empty_rows(*shape: int) -> Row:
    """Padding: a row [L], or a batch of rows [B, L]."""
    integers = [np.zeros(shape, np.int32) for _ in range(4)]
    return Row._make([*integers, np.zeros(shape, np.float32)])


def token_type(vocab_size: int) -> np.dtype:
    """How tokens of a vocabulary lie on disk."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<i4")


def encode(pieces: Sequence[Piece], vocab_size: int) -> bytes:
    """A row of pieces as a record.

    Raises:
      ValueError: a token is none of the vocabulary.
    """
    targets = np.concatenate([piece.targets for piece in pieces])
    heads = np.array(
        [(len(p.targets), p.first, p.loss_from, p.document, p.part, p.parts) for p in pieces], "<i4"
    )
    _check_tokens(targets, heads[:, 1], vocab_size)
    count = np.array([len(pieces)], "<i4")
    return count.tobytes() + heads.tobytes() + targets.astype(token_type(vocab_size)).tobytes()


def _heads_and_targets(record: bytes, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a record what it says of its segments, int32 [S, 6], and its targets, int32 [n]."""
    count = int.from_bytes(record[:4], "little")
    start = 4 + 24 * count
    item = token_type(vocab_size)
    if len(record) < start or (len(record) - start) % item.itemsize:
        raise ValueError(f"{len(record)} bytes are no row of {count} segments")
    heads = np.frombuffer(record, "<i4", 6 * count, 4).reshape(count, 6)
    targets = np.frombuffer(record, item, offset=start).astype(np.int32)
    if not count or heads[:, 0].min() < 1 or heads[:, 0].sum() != len(targets):
        raise ValueError(f"its {count} segments do not add up to its {len(targets)} tokens")
    _check_tokens(targets, heads[:, 1], vocab_size)
    return heads, targets


def _check_tokens(targets: np.ndarray, firsts: np.ndarray, vocab_size: int) -> None:
    low = min(int(targets.min()), int(firsts.min()))
    high = max(int(targets.max()), int(firsts.max()))
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"token {wrong} is none of a vocabulary of {vocab_size}")


def decode(record: bytes, length: int, vocab_size: int, into: Row | None = None) -> Row:
    """The row in a record, filled up with padding.

    Args:
      record: of a row.
      length: L.
      vocab_size: V.
      into: a row of padding to be filled, as of a batch; nothing of it is touched on an error.

    Raises:
      ValueError: the record is not one of a row of this length and vocabulary.
    """
    heads, targets = _heads_and_targets(record, vocab_size)
    used = len(targets)
    if used > length:
        raise ValueError(f"{used} tokens do not fit a row of {length}")
    sizes, firsts, loss_from = heads[:, 0], heads[:, 1], heads[:, 2]
    starts = np.cumsum(sizes) - sizes
    row = empty_rows(length) if into is None else into
    row.targets[:used] = targets
    row.inputs[1:used] = targets[:-1]
    row.inputs[starts] = firsts
    row.segment_ids[:used] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    row.positions[:used] = np.arange(used) - np.repeat(starts, sizes)
    row.loss_weights[:used] = row.positions[:used] >= np.repeat(loss_from, sizes)
    return row


def decode_pieces(record: bytes, vocab_size: int) -> list[Piece]:
    """The pieces in a record.

    Raises:
      ValueError: the record is not one of a row of this vocabulary.
    """
    heads, targets = _heads_and_targets(record, vocab_size)
    parts = np.split(targets, np.cumsum(heads[:-1, 0]))
    return [Piece(part, *map(int, head[1:])) for part, head in zip(parts, heads, strict=True)]


def write_rows(path: epath.PathLike, rows: Iterable[Sequence[Piece]], vocab_size: int) -> int:
    """Writes a file of rows; returns how many."""
    writer = ArrayRecordWriter(os.fspath(path), WRITER_OPTIONS)
    count = 0
    for pieces in rows:
        writer.write(encode(pieces, vocab_size))
        count += 1
    writer.close()
    return count


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
      repeat: whether a run may read a row more than once.
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
    repeat: bool = True

    def open(self) -> grain.sources.ArrayRecordDataSource:
        """The records, by index.

        Raises:
          UserError: shards are missing or damaged, or hold another number of rows than the manifest
            says.
        """
        paths = sorted(str(p) for p in self.directory.glob(SHARDS))
        try:
            records = grain.sources.ArrayRecordDataSource(paths) if paths else []
        except (ValueError, RuntimeError, OSError) as error:
            reason = str(error).strip() or "it is cut short"
            raise UserError(
                f"{self.directory} cannot be read ({reason}): delete the rows and run `sbp cache` "
                "again"
            ) from error
        if len(records) != self.rows:
            raise UserError(
                f"{self.directory} holds {len(records)} rows, its manifest says {self.rows}: "
                "delete the rows and run `sbp cache` again"
            )
        return records

    def read(
        self,
        records: grain.sources.ArrayRecordDataSource,
        index: int,
        into: Row | None = None,
    ) -> Row:
        """Row `index` of the records that `open` gave, if wanted `into` a row of padding.

        Raises:
          UserError: it is of another length, or holds a token that is none.
        """
        try:
            return decode(records[index], self.length, self.vocab_size, into)
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(
                f"row {index} of {self.directory} is damaged ({error}): delete the rows and run "
                "`sbp cache` again"
            ) from error


@dataclasses.dataclass(frozen=True)
class RowsArtefact:
    """What `sbp cache` left: sources of rows of one length and vocabulary.

    Attributes:
      directory: of the artefact.
      length: L.
      vocab_size: V; every token is below it.
      sources: by the task's name, in the mixture's order.
      vocabulary: hash of the vocabulary that made the tokens.
    """

    directory: epath.Path
    length: int
    vocab_size: int
    sources: dict[str, RowSource]
    vocabulary: str = ""


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
                    "repeat",
                )
            },
        )
        for name, counts in manifest.counts["sources"].items()
    }
    vocabulary = manifest.inputs.get("vocab", {}).get("hash", "")
    return RowsArtefact(directory, length, vocab_size, sources, vocabulary)
