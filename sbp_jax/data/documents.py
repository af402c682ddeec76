"""Documents beside the rows: text, id and features, for embedding, pairing and as seeds.

One JSON object a record in ArrayRecord, so that no reader needs TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import overload

import grain
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import UserError

FILE = "documents-00000.array_record"  # of the first shard
FILES = "documents-*.array_record"


@dataclasses.dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
      id: stable and unique in its corpus.
      text: whole.
      features: other textual features of the SeqIO example, e.g. its name or source.
    """

    id: str
    text: str
    features: Mapping[str, str] = dataclasses.field(default_factory=dict)


class DocumentWriter:
    """Writes documents one by one; use as a context manager."""

    def __init__(self, path: epath.PathLike):
        self.writer = ArrayRecordWriter(str(path), "group_size:1,zstd:3")

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(self, *exception) -> None:
        self.writer.close()

    def write(self, document: Document) -> None:
        self.writer.write(json.dumps(dataclasses.asdict(document), ensure_ascii=True).encode())


def decode_document(record: bytes) -> Document:
    """The document in a record."""
    return Document(**json.loads(record))


def write(path: epath.PathLike, documents: Iterable[Document]) -> None:
    """Writes documents to one file."""
    with DocumentWriter(path) as writer:
        for document in documents:
            writer.write(document)


class Documents(Sequence[Document]):
    """The documents of a rows artefact made with `cache.documents = True`, in the task's order.

    Raises:
      UserError: the artefact holds no documents.
    """

    def __init__(self, directory: epath.PathLike):
        directory = epath.Path(directory)
        artifacts.read_manifest(directory)
        paths = sorted(str(path) for path in directory.glob(f"*/{FILES}"))
        if not paths:
            raise UserError(
                f"{directory} holds rows but no documents: set cache.documents = True for it"
            )
        self.directory = directory
        self.records = grain.sources.ArrayRecordDataSource(paths)

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        return decode_document(self.records[index])

    @functools.cached_property
    def ids(self) -> list[str]:
        """Ids of all documents, in order."""
        return [document.id for document in self]
