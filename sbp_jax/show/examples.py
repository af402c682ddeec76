"""What is shown of an example: its features or segments, as tokens with their loss weights."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import grain
from etils import epath

from sbp_jax import artifacts
from sbp_jax.data import rows as row_format
from sbp_jax.data.documents import FILES, Document, decode_document
from sbp_jax.data.rows import Piece, RowSource, open_rows
from sbp_jax.data.vocabularies import Vocabulary


@dataclasses.dataclass(frozen=True)
class Token:
    """A token as a person reads it, or a whole text where there is no vocabulary.

    Attributes:
      text: of it.
      loss: whether a model learns to predict it.
      special: whether it stands for no text.
    """

    text: str
    loss: bool = True
    special: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
    """A segment of a row, or a feature of a task's example.

    Attributes:
      title: says which.
      tokens: in their order.
    """

    title: str
    tokens: tuple[Token, ...]


@dataclasses.dataclass(frozen=True)
class Example:
    """One row or example.

    Attributes:
      title: says which.
      facts: what else is known of it, by name.
      parts: what it is made of.
    """

    title: str
    facts: Mapping[str, str]
    parts: tuple[Part, ...]


def of_task(task: Any, split: str, vocabulary: Vocabulary | None) -> Iterator[Example]:
    """The examples of a SeqIO task; without a vocabulary as texts."""
    from sbp_jax.data import tasks  # loads SeqIO

    features = list(task.output_features)
    found = tasks.examples(task, split, tokenised=False)
    for number, example in enumerate(found):
        parts = []
        for name in features:
            loss = name == "targets"
            text = tasks.text_of(example, name)[0]
            tokens = tokens_of(vocabulary.encode(text), vocabulary, loss) if vocabulary else ()
            size = f" · {len(tokens)} tokens" if vocabulary else f" · {len(text)} characters"
            quiet = "" if loss else ", no loss"
            parts.append(Part(f"{name}{size}{quiet}", tuple(tokens) or (Token(text, loss),)))
        facts = {
            key: str(tasks.decode(value)[0] if isinstance(value, bytes) else value)
            for key, value in example.items()
            if key not in features and not key.endswith("_pretokenized") and key != "id"
        }
        facts = {key: value for key, value in facts.items() if value}
        name = tasks.id_of(example) or str(number)
        yield Example(f"{task.name} · {split} · {name}", facts, tuple(parts))


def of_rows(directory: epath.Path, vocabulary: Vocabulary, start: int) -> Iterator[Example]:
    """The rows of an artefact from one on, source by source."""
    artefact = open_rows(directory)
    found = (
        (source, index) for source in artefact.sources.values() for index in range(source.rows)
    )
    opened: dict[str, _Rows] = {}
    for source, index in itertools.islice(found, start, None):
        rows = opened.setdefault(source.name, _Rows(source))
        pieces, documents = rows.read(index)
        used = sum(len(piece.targets) for piece in pieces)
        facts = {
            "segments": str(len(pieces)),
            "tokens": str(used),
            "padding": str(source.length - used),
        }
        parts = [
            Part(_title(number, piece, document), _of_piece(piece, vocabulary))
            for number, (piece, document) in enumerate(zip(pieces, documents, strict=True), start=1)
        ]
        yield Example(f"{source.name} · row {index} of {source.rows}", facts, tuple(parts))


class _Rows:
    """The rows of a source with the documents that they are made of, file by file."""

    def __init__(self, source: RowSource):
        self.source, self.records = source, source.open()
        self.files = sorted(source.directory.glob(row_format.SHARDS))
        counts = [len(grain.sources.ArrayRecordDataSource(os.fspath(path))) for path in self.files]
        self.ends = list(itertools.accumulate(counts))

    def read(self, index: int) -> tuple[list[Piece], list[Document | None]]:
        pieces = row_format.decode_pieces(self.records[index], self.source.vocab_size)
        shard = next(i for i, end in enumerate(self.ends) if index < end)
        name = self.files[shard].name.replace("rows-", FILES.split("*")[0])
        path = self.source.directory / name
        if not path.exists():
            return pieces, [None] * len(pieces)
        documents = grain.sources.ArrayRecordDataSource(os.fspath(path))
        return pieces, [decode_document(documents[piece.document]) for piece in pieces]


def _title(number: int, piece: Piece, document: Document | None) -> str:
    name = document.id if document else f"document {piece.document}"
    words = [f"segment {number}", name, f"{len(piece.targets)} tokens"]
    if piece.parts > 1:
        words.append(f"part {piece.part + 1} of {piece.parts}")
    if piece.loss_from:
        words.append(f"loss on {piece.loss_tokens}")
    return " · ".join(words)


def _of_piece(piece: Piece, vocabulary: Vocabulary) -> tuple[Token, ...]:
    with_loss = tokens_of(piece.targets[piece.loss_from :], vocabulary, True)
    without = tokens_of(piece.targets[: piece.loss_from], vocabulary, False)
    return (*without, *with_loss)


def tokens_of(ids: Iterable[int], vocabulary: Vocabulary, loss: bool) -> list[Token]:
    """Ids as tokens to be shown."""
    special = {vocabulary.eos, vocabulary.bos, *vocabulary.never}
    return [Token(vocabulary.piece(int(i)), loss, int(i) in special) for i in ids]


def vocabulary_path(directory: epath.Path) -> epath.Path:
    """The vocabulary that an artefact of `sbp cache` was made with."""
    entry = artifacts.read_manifest(directory).inputs["vocab"]
    path = epath.Path(entry["path"])
    return path if path.is_absolute() or "://" in entry["path"] else directory / path
