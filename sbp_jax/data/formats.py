"""Documents in files: text, JSON lines and Parquet, compressed or not, in a folder or a bucket.

Files are read as streams, so that memory follows the longest document and not the file. What
cannot be used (a line that is no JSON, a document without text) is given back with the reason, for
whoever reads on to count; a file that breaks off is refused, since nobody can say what it held.
This module needs no TensorFlow for files on a disk.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from absl import logging
from etils import epath

from sbp_jax.errors import UserError

TEXT = (".txt", ".md")
LINES = (
    ".jsonl",
    ".ndjson",
    *(f"{kind}{packed}" for kind in (".jsonl", ".ndjson", ".json") for packed in (".gz", ".zst")),
    ".jsonl.zstd",
)
PARQUET = (".parquet",)
MAX_BYTES = 64 * 2**20

_AT_ONCE = 2**20  # bytes that are asked of a bucket, or passed over in a line that is too long
_ROWS_AT_ONCE = 64
# Of compressed bytes: what they unpack to stands in memory, and zeros pack 30,000 to one.
_PACKED_AT_ONCE = 1024
_ASKED_AT_ONCE = 32
_TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a corpus.

    Attributes:
      name: below the corpus' folder, e.g. `shard_01/part.jsonl.zst`.
      path: whole, local or `gs://…`.
      size: bytes.
      modified: when it was written last, in nanoseconds (a bucket may tell seconds only).
    """

    name: str
    path: str
    size: int
    modified: int


@dataclasses.dataclass(frozen=True)
class Schema:
    """What of a record, a JSON object or a row of Parquet, makes the document.

    Attributes:
      text: the field that holds the text.
      id: the field of a document's own id; a record without it is named after its place.
      fields: others that are carried along as text, empty where a record has none.
      max_bytes: of a document, and of the line that it stands in; a longer one is not used.
      needs: fields for `check`; a Parquet file must have the columns.
      check: of a record with text, why it is not wanted, or nothing.
    """

    text: str = "text"
    id: str = "id"
    fields: tuple[str, ...] = ()
    max_bytes: int = MAX_BYTES
    needs: tuple[str, ...] = ()
    check: Callable[[Mapping[str, Any]], str] | None = None


def find(place: str, setting: str, suffixes: Sequence[str] = TEXT + LINES + PARQUET) -> list[File]:
    """The files of a corpus, sorted by name.

    Args:
      place: a folder, which is searched through all its depths, a file, or a glob (`*`, `?`,
        `[…]`); local, or in a bucket, where a glob is listed much faster than a folder.
      setting: where the user set it, for messages.
      suffixes: of the files that are read; a folder may hold others.

    Raises:
      UserError: there is no such file.
    """
    root, paths = _matches(place, setting)
    wanted = [path for path in paths if path.name.endswith(tuple(suffixes))]
    if not wanted:
        raise UserError(
            f"{setting} = {place!r} holds no file that ends in {', '.join(suffixes)}: "
            "put text there, or name another folder or glob"
        )
    if other := len(paths) - len(wanted):
        logging.info("%s: %d files of other kinds are not read", place, other)
    with concurrent.futures.ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:  # a bucket takes its time
        states = list(pool.map(_size_and_time, wanted))
    return sorted(
        (
            File(str(path.relative_to(root)), os.fspath(path), size, modified)
            for path, (size, modified) in zip(wanted, states, strict=True)
        ),
        key=lambda file: file.name,
    )


def read(file: File, schema: Schema) -> Iterator[dict[str, str]]:
    """The documents of a file, in order.

    Yields:
      `id`: the record's own, else `name:line` (or row, both from 1), of a text file its name;
      `text`; `rejected`, empty for a good document, else why there is no text here, and then the
      id is the place; and the schema's fields.

    Raises:
      UserError: the file is damaged or breaks off, or a Parquet file lacks a column.
    """
    if file.name.endswith(TEXT):
        yield from _read_text(file, schema)
    elif file.name.endswith(PARQUET):
        yield from _read_parquet(file, schema)
    else:
        yield from _read_lines(file, schema)


@contextlib.contextmanager
def opened(file: File) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked, as a stream that can be read by lines.

    Raises:
      UserError: (here or while it is read) the file cannot be read, is damaged or breaks off.
    """
    try:
        with epath.Path(file.path).open("rb") as raw:
            stream: Any = raw
            if not isinstance(raw, io.IOBase):
                stream = io.BufferedReader(_BucketFile(raw), _AT_ONCE)
            if file.name.endswith((".gz", ".zst", ".zstd")) and not file.size:
                raise EOFError("it is empty")
            if file.name.endswith(".gz"):
                stream = gzip.GzipFile(fileobj=stream)
            elif file.name.endswith((".zst", ".zstd")):
                stream = io.BufferedReader(_Zstandard(stream), _AT_ONCE)
            yield stream
    except (EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{file.path} cannot be read: {error.strerror or error}") from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{file.path} is damaged or breaks off ({reason}): nobody knows "
            "how many documents are lost, so copy it again, or take it away"
        ) from error


def _matches(place: str, setting: str) -> tuple[epath.Path, list[epath.Path]]:
    """The folder that names are relative to, and all files."""
    path = epath.Path(place)
    if path.is_dir():
        return path, _below(path)
    if path.exists():
        return path.parent, [path]
    parts = place.split("/")
    fixed = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), None)
    if fixed is None:
        raise UserError(f"{setting} = {place!r} is no folder and no file: name one with text")
    if "**" in parts:
        raise UserError(
            f"{setting} = {place!r}: ** is not known; a folder is read through all its depths, so "
            "name the folder"
        )
    root = epath.Path("/".join(parts[:fixed]) or ("/" if place.startswith("/") else "."))
    found = []
    for match in root.glob("/".join(parts[fixed:])):
        known = match.name.endswith(TEXT + LINES + PARQUET)
        found += _below(match) if not known and match.is_dir() else [match]
    if not found:
        raise UserError(f"{setting} = {place!r} matches nothing: name a folder or glob with text")
    return root, found


def _below(folder: epath.Path) -> list[epath.Path]:
    return [epath.Path(inner) / name for inner, _, names in folder.walk() for name in names]


def _size_and_time(path: epath.Path) -> tuple[int, int]:
    if "://" in os.fspath(path):
        state = path.stat()
        return state.length, state.mtime * 10**9
    # Not by epath, which wants a name for the owner: in a container there may be none.
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _read_text(file: File, schema: Schema) -> Iterator[dict[str, str]]:
    with opened(file) as stream:
        content = stream.read(schema.max_bytes + 1)
    yield _example({schema.text: content}, file.name, schema)


def _read_lines(file: File, schema: Schema) -> Iterator[dict[str, str]]:
    number = 0
    limit = schema.max_bytes + 2  # with the end of the line
    with opened(file) as stream:
        try:
            while line := stream.readline(limit):
                number += 1
                place = f"{file.name}:{number}"
                if len(line) == limit and not line.endswith(b"\n"):
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(_AT_ONCE)
                    yield _rejected(place, _too_long(schema), schema)
                elif content := line.strip():
                    yield _line(content, place, schema)
        except (EOFError, zlib.error, zstandard.ZstdError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise EOFError(f"after line {number}: {error}") from error


def _line(content: bytes, place: str, schema: Schema) -> dict[str, str]:
    if len(content) > schema.max_bytes:
        return _rejected(place, _too_long(schema), schema)
    try:
        record = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return _rejected(place, "not UTF-8", schema)
    except (ValueError, RecursionError):
        return _rejected(place, "not JSON", schema)
    if not isinstance(record, dict):
        return _rejected(place, "not a JSON object", schema)
    return _example(record, place, schema)


def _read_parquet(file: File, schema: Schema) -> Iterator[dict[str, str]]:
    with opened(file) as stream:
        table = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_AT_ONCE)
        there = table.schema_arrow.names
        for column in (schema.text, *schema.needs):
            if column not in there:
                raise UserError(
                    f"{file.path} has no column {column!r}: it has {', '.join(there)}; name one "
                    "of these, or take the file away"
                )
        wanted = {schema.text, schema.id, *schema.fields, *schema.needs}
        columns = [name for name in there if name in wanted]
        number = 0
        # One thread, one batch: Arrow would else read groups of rows ahead.
        for batch in table.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False):
            for values in zip(*map(_values, batch.columns), strict=True):
                number += 1
                record = dict(zip(batch.schema.names, values, strict=True))
                yield _example(record, f"{file.name}:{number}", schema)


def _values(column: pa.Array) -> list[Any]:
    """Text as bytes, since Arrow does not look whether it is UTF-8."""
    kind = column.type
    if any(is_text(kind) for is_text in _TEXT_TYPES):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


def _example(record: Mapping[str, Any], place: str, schema: Schema) -> dict[str, str]:
    text = record.get(schema.text)
    if text is None:
        return _rejected(place, f"no text under {schema.text!r}", schema)
    if not isinstance(text, str | bytes):
        return _rejected(place, "text is not a string", schema)
    try:
        content = text if isinstance(text, bytes) else text.encode()
        if len(content) > schema.max_bytes:
            return _rejected(place, _too_long(schema), schema)
        text = content.decode("utf-8-sig")
    except UnicodeError:  # JSON can name half a character: "\ud800"
        return _rejected(place, "not UTF-8", schema)
    if not text.strip():
        return _rejected(place, "empty", schema)
    if schema.check and (reason := schema.check(record)):
        return _rejected(place, reason, schema)
    own = record.get(schema.id)
    is_id = isinstance(own, str | bytes | int) and own not in ("", b"")
    fields = {name: _as_text(record.get(name)) for name in schema.fields}
    return {"id": _as_text(own) if is_id else place, "text": text, "rejected": "", **fields}


def _rejected(place: str, reason: str, schema: Schema) -> dict[str, str]:
    return {"id": place, "text": "", "rejected": reason, **dict.fromkeys(schema.fields, "")}


def _too_long(schema: Schema) -> str:
    return f"longer than {schema.max_bytes} bytes"


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    content = value if isinstance(value, bytes) else str(value).encode(errors="replace")
    return content.decode(errors="replace")


class _BucketFile(io.RawIOBase):
    """TensorFlow's file, which reads buckets, as a file of Python's own."""

    def __init__(self, file: Any):
        self.file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.file.seek(offset, whence)
        return self.file.tell()

    def tell(self) -> int:
        return self.file.tell()


class _Zstandard(io.RawIOBase):
    """Unpacks frame after frame; the library's own reader takes a torn frame for the end."""

    def __init__(self, packed: io.BufferedIOBase):
        self.packed = packed
        self.frame: Any = None  # of which the beginning was read, and not yet the end
        self.rest = b""  # packed, after the end of a frame
        self.unpacked = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.unpacked:
            content = self.rest or self.packed.read(_PACKED_AT_ONCE)
            if not content:
                if self.frame:
                    raise EOFError("the last frame has no end")
                return 0
            self.unpacked = memoryview(b"")  # lets go of what was read
            frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
            self.unpacked = memoryview(frame.decompress(content))
            self.frame, self.rest = (None, frame.unused_data) if frame.eof else (frame, b"")
        size = min(len(buffer), len(self.unpacked))
        buffer[:size] = self.unpacked[:size]
        self.unpacked = self.unpacked[size:]
        return size
