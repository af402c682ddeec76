"""The corpus as files that other tools read: JSON lines packed by zstandard, or Parquet."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
import zstandard
from etils import epath

from sbp_jax.synthesize.corpus import FEATURES

_ROWS_AT_ONCE = 1000  # a row group of Parquet

_TYPES = {tf.string: pa.string(), tf.int64: pa.int64(), tf.float32: pa.float32()}
SCHEMA = pa.schema([(name, _TYPES[feature.dtype]) for name, feature in FEATURES.items()])


def write(
    directory: epath.Path,
    documents: Iterable[Mapping[str, Any]],
    count: int,
    format: str,
    documents_per_file: int,
) -> int:
    """Writes the files, named as the Hugging Face hub names those of a split.

    Args:
      directory: gets the files.
      documents: as `corpus.read` gives them.
      count: how many there should be, which decides the names.
      format: `jsonl.zst` or `parquet`.
      documents_per_file: most documents of a file.

    Returns:
      How many documents were written. A figure that is no number is null in them.
    """
    files = max(1, -(-count // documents_per_file))
    rows = ({name: _plain(value) for name, value in one.items()} for one in documents)
    written = 0
    for number, part in enumerate(_parts(rows, documents_per_file)):
        path = directory / f"train-{number:05d}-of-{files:05d}.{format}"
        with path.open("wb") as stream:
            written += _WRITERS[format](stream, part)
    return written


def _parts(rows: Iterator[dict], size: int) -> Iterator[Iterator[dict]]:
    """Runs of rows, each read to its end before the next; none is held."""
    for first in rows:
        yield itertools.chain([first], itertools.islice(rows, size - 1))


def _write_lines(stream: Any, rows: Iterator[dict]) -> int:
    written = 0
    packer = zstandard.ZstdCompressor(level=6, write_checksum=True)
    with packer.stream_writer(stream, closefd=False) as packed:
        for row in rows:
            packed.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            written += 1
    return written


def _write_parquet(stream: Any, rows: Iterator[dict]) -> int:
    written = 0
    with contextlib.closing(pq.ParquetWriter(stream, SCHEMA, compression="zstd")) as table:
        for batch in itertools.batched(rows, _ROWS_AT_ONCE):
            table.write_batch(pa.RecordBatch.from_pylist(list(batch), SCHEMA))
            written += len(batch)
    return written


_WRITERS = {"jsonl.zst": _write_lines, "parquet": _write_parquet}


def _plain(value: Any) -> Any:
    """What JSON can hold: of float32 no more digits than tell it from its neighbours."""
    if isinstance(value, float):
        return None if math.isnan(value) else float(str(np.float32(value)))
    return value
