"""Vectors of a split's documents, in shards that NumPy alone can open.

`SPLIT/vectors-00000.npy` [n, D] goes with `SPLIT/ids-00000.json`, a list of n ids. Its dtype says
how to read it:

- `float32`: the vectors;
- `uint16`: the bits of bfloat16, `np.load(path).view(ml_dtypes.bfloat16)`;
- `int8`: to be multiplied by `SPLIT/scales-00000.npy`, float32 [n], one number a vector.

A vector has length 1, or 0 where a document has nothing in it.

n vectors of a shard, D dimensions, b vectors of a block.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import UserError

# On disk → by how much the length of a vector may differ from 1. What int8 rounds away is put right
# by the scale.
_TOLERANCES = {
    np.dtype("<f4"): 1e-3,
    np.dtype("<u2"): 1e-3 + 2.0**-8,
    np.dtype("i1"): 1e-3,
}
DTYPES = ("float32", "bfloat16", "int8")


def write_shard(
    directory: epath.Path,
    split: str,
    number: int,
    ids: Sequence[str],
    vectors: np.ndarray,
    dtype: str = "float32",
) -> None:
    """Writes one shard; each of its files is there whole or not at all.

    Args:
      directory: the artefact, or where its stage works.
      split: names the folder.
      number: of the shard, from 0.
      ids: of the documents, n.
      vectors: float32 [n, D], of length 1 or 0.
      dtype: one of `DTYPES`, on disk.

    Raises:
      UserError: a vector has another length, or is no number.
    """
    remedy = "the embedder gave it, so choose another checkpoint, layer or dtype"
    _check_lengths(f"shard {number} of {split!r}", ids, vectors, 1e-3, remedy)
    folder = directory / split
    folder.mkdir(parents=True, exist_ok=True)
    match dtype:
        case "bfloat16":
            stored = vectors.astype(ml_dtypes.bfloat16).view(np.uint16)
        case "int8":
            stored, scales = _to_int8(vectors)
            _write_array(_path(folder, "scales", number), scales)
        case _:
            stored = np.asarray(vectors, np.float32)
    _write_array(_path(folder, "vectors", number), stored)
    artifacts.write_atomic(_path(folder, "ids", number, "json"), json.dumps(list(ids)))


def open_vectors(directory: epath.PathLike, split: str) -> Vectors:
    """The vectors of a split, of which nothing but ids and headers is read yet.

    Raises:
      UserError: they are missing, damaged, not one for each id, or their shards do not go together.
    """
    directory = epath.Path(directory)
    folder = directory / split
    paths = sorted(folder.glob("vectors-*.npy"))
    if not paths:
        known = sorted({path.parent.name for path in directory.glob("*/vectors-*.npy")})
        raise UserError(f"{directory} has no vectors of {split!r}: expected one of {known}")
    for number, path in enumerate(paths):
        if path != _path(folder, "vectors", number):
            raise UserError(
                f"{_path(folder, 'vectors', number)} is missing: delete {directory} and run sbp "
                "embed again"
            )
    shards: list[_Shard] = []
    ids: list[str] = []
    for number in range(len(paths)):
        shard, found = _open_shard(directory, folder, number)
        if shards and (shard.dimensions, shard.dtype) != (shards[0].dimensions, shards[0].dtype):
            raise UserError(
                f"{shard.path} has {shard.dimensions} dimensions of {shard.dtype}, "
                f"{shards[0].path} {shards[0].dimensions} of {shards[0].dtype}: delete {directory} "
                "and run sbp embed again"
            )
        shards.append(shard)
        ids += found
    if len(set(ids)) != len(ids):
        twice = collections.Counter(ids).most_common(1)[0][0]
        raise UserError(
            f"{directory}: ids of {split!r} stand twice, {twice!r} among them: give each document "
            "an id of its own, and run sbp embed again"
        )
    if artifacts.is_finished(directory):
        counts = artifacts.read_manifest(directory).counts
        if counts.get(f"{split}_documents", len(ids)) != len(ids):
            raise UserError(
                f"{folder} has {len(ids)} vectors, and {counts[f'{split}_documents']} were "
                f"written: delete {directory} and run sbp embed again"
            )
    return Vectors(shards, ids)


class Vectors:
    """Vectors in shards, read in parts; see `open_vectors`.

    Attributes:
      ids: of the documents, in order.
      dimensions: D.
    """

    def __init__(self, shards: Sequence[_Shard], ids: list[str]):
        self._shards = shards
        self.ids = ids
        self.dimensions = shards[0].dimensions

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Vectors `start` to `stop`, float32 [stop - start, D]; no others are read.

        Raises:
          UserError: one of them is not of length 1 or 0, or a file breaks off.
        """
        found = np.empty((stop - start, self.dimensions), np.float32)
        first = 0
        for shard in self._shards:
            low, high = max(start, first), min(stop, first + shard.count)
            if low < high:
                part = shard.read(low - first, high - first)
                tolerance = _TOLERANCES[shard.dtype]
                _check_lengths(shard.path, self.ids[low:high], part, tolerance)
                found[low - start : high - start] = part
            first += shard.count
        return found

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """All vectors in order, float32 [b, D], b = `size` but for the last; raises as `rows`."""
        for start in range(0, len(self), size):
            yield self.rows(start, min(start + size, len(self)))

    def read(self) -> np.ndarray:
        """All vectors, float32 [n, D]; raises as `rows`."""
        return self.rows(0, len(self))


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Where vectors lie.

    Attributes:
      path: the file.
      offset: of the first vector in it, bytes.
      count: n.
      dimensions: D.
      dtype: on disk.
      scales: float32 [n], with int8.
    """

    path: epath.Path
    offset: int
    count: int
    dimensions: int
    dtype: np.dtype
    scales: np.ndarray | None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Vectors float32 [stop - start, D]."""
        size = self.dimensions * self.dtype.itemsize
        # Not a memory map: this reads from a bucket as well.
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset + start * size)
                data = file.read((stop - start) * size)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error}): run sbp embed again") from error
        if len(data) != (stop - start) * size:
            raise UserError(f"{self.path} breaks off: run sbp embed again")
        stored = np.frombuffer(data, self.dtype).reshape(stop - start, self.dimensions)
        if self.scales is not None:
            return stored.astype(np.float32) * self.scales[start:stop, None]
        if self.dtype == np.dtype("<u2"):
            return stored.view(ml_dtypes.bfloat16).astype(np.float32)
        return stored


def _open_shard(directory: epath.Path, folder: epath.Path, number: int) -> tuple[_Shard, list[str]]:
    """A shard and its ids, checked as far as that needs no vector."""
    path = _path(folder, "vectors", number)
    scales = None
    try:
        shape, dtype, offset = _header(path)
        ids = json.loads(_path(folder, "ids", number, "json").read_text())
        if dtype == np.int8:
            content = _path(folder, "scales", number).read_bytes()
            scales = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete {directory} and run sbp embed again"
        ) from error
    if len(shape) != 2 or dtype not in _TOLERANCES:
        raise UserError(
            f"{path}: expected float32, uint16 (bfloat16) or int8 of two dimensions, found {dtype} "
            f"{list(shape)}: run sbp embed again"
        )
    if len(ids) != shape[0] or (scales is not None and scales.shape != shape[:1]):
        others = "id" if scales is None else "id and scale"
        raise UserError(
            f"{path}: expected [{len(ids)}, D], one vector for each {others}, found "
            f"{list(shape)}: run sbp embed again"
        )
    return _Shard(path, offset, shape[0], shape[1], dtype, scales), ids


def _header(path: epath.Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape and dtype of a `.npy` file, and where its values start."""
    with path.open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("a version of the format that NumPy does not write for vectors")
        shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
        offset = file.tell()
    expected = offset + math.prod(shape) * dtype.itemsize
    if (size := path.stat().length) != expected:
        raise ValueError(f"{size} bytes, and by its header {expected}")
    if columns_first:
        raise ValueError("its columns lie together, not its vectors")
    return shape, dtype, offset


def _check_lengths(
    where: Any,
    ids: Sequence[str],
    vectors: np.ndarray,
    tolerance: float,
    remedy: str = "run sbp embed again",
) -> None:
    """Refuses vectors that are neither of length 1 nor 0, by id."""
    norms = np.linalg.norm(vectors, axis=1)
    wrong = ~((np.abs(norms - 1) <= tolerance) | (norms == 0))
    if wrong.any():
        worst = int(np.argmax(wrong))
        raise UserError(
            f"{where}: the vector of {ids[worst]!r} has length {norms[worst]}, expected 1 "
            f"(or 0 for a document with nothing in it): {remedy}"
        )


def _to_int8(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers [n, D], the largest of each vector ±127, and the scales [n] that give length 1."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    steps = np.divide(127, largest, out=np.zeros_like(largest), where=largest > 0)
    stored = np.rint(vectors * steps).astype(np.int8)
    norms = np.linalg.norm(stored.astype(np.float32), axis=1)
    return stored, np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)


def _write_array(path: epath.Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    artifacts.write_atomic(path, buffer.getvalue())


def _path(folder: epath.Path, kind: str, number: int, suffix: str = "npy") -> epath.Path:
    return folder / f"{kind}-{number:05d}.{suffix}"
