"""Vectors of a split's documents, in shards that NumPy alone can open.

`SPLIT/vectors-00000.npy` [n, D] goes with `SPLIT/ids-00000.json`, a list of n ids. Its dtype says
how to read it:

- `float32`: the vectors;
- `uint16`: the bits of bfloat16, `np.load(path).view(ml_dtypes.bfloat16)`;
- `int8`: to be multiplied by `SPLIT/scales-00000.npy`, float32 [n], one number a vector.

A vector has length 1, or 0 where a document has nothing in it.

n vectors of a shard, D dimensions.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import math
from collections.abc import Sequence
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
    wrong = _wrong_length(vectors, 1e-3)
    if wrong is not None:
        remedy = "the embedder gave it, so choose another checkpoint, layer or dtype"
        where = f"shard {number} of {split!r}"
        raise _length_error(where, ids[wrong], vectors[wrong], remedy)
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
        one, first = shard.vectors, (shards or [shard])[0].vectors
        if (one.shape[1], one.dtype) != (first.shape[1], first.dtype):
            raise UserError(
                f"{one.path} has {one.shape[1]} dimensions of {one.dtype}, {first.path} "
                f"{first.shape[1]} of {first.dtype}: delete {directory} and run sbp embed again"
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
    return Vectors(tuple(shards), 0, len(ids), ids)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Stored vectors `start` to `stop`, read in parts; can be sent to another process.

    Attributes:
      shards: that hold them, in order.
      start: the first of them, counted from the first vector of the first shard.
      stop: the one after the last.
    """

    shards: tuple[_Shard, ...]
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def dimensions(self) -> int:
        """D."""
        return self.shards[0].dimensions

    def part(self, start: int, stop: int) -> Rows:
        """Some of them, counted from the first here."""
        return Rows(self.shards, self.start + start, self.start + stop)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Vectors `start` to `stop`, float32 [n, D], counted from the first here.

        No others are read.

        Raises:
          UserError: one of them is not of length 1 or 0, or a file breaks off.
        """
        first, last = self.start + start, self.start + (len(self) if stop is None else stop)
        found = np.empty((last - first, self.dimensions), np.float32)
        passed = 0
        for shard in self.shards:
            low, high = max(first, passed), min(last, passed + shard.count)
            if low < high:
                found[low - first : high - first] = shard.read(low - passed, high - passed)
            passed += shard.count
        return found


@dataclasses.dataclass(frozen=True)
class Vectors(Rows):
    """All vectors of a split; see `open_vectors`.

    Attributes:
      ids: of the documents, in order.
    """

    ids: list[str]


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Where vectors lie.

    Attributes:
      vectors: [n, D].
      scales: [n], with int8.
      ids: the file.
    """

    vectors: _Array
    scales: _Array | None
    ids: epath.Path

    @property
    def count(self) -> int:
        return self.vectors.shape[0]

    @property
    def dimensions(self) -> int:
        return self.vectors.shape[1]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Vectors float32 [stop - start, D]."""
        stored = self.vectors.read(start, stop)
        if self.scales is not None:
            found = stored.astype(np.float32) * self.scales.read(start, stop)[:, None]
        elif stored.dtype == np.dtype("<u2"):
            found = stored.view(ml_dtypes.bfloat16).astype(np.float32)
        else:
            found = stored
        wrong = _wrong_length(found, _TOLERANCES[stored.dtype])
        if wrong is not None:
            id_ = json.loads(self.ids.read_text())[start + wrong]
            raise _length_error(self.vectors.path, id_, found[wrong], "run sbp embed again")
        return found


@dataclasses.dataclass(frozen=True)
class _Array:
    """A `.npy` file of which parts are read.

    Attributes:
      path: of it.
      offset: of the first value, bytes.
      shape: of the array.
      dtype: of its values.
    """

    path: epath.Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Its rows `start` to `stop`."""
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        # Not a memory map: this reads from a bucket as well.
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset + start * size)
                data = file.read((stop - start) * size)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error}): run sbp embed again") from error
        if len(data) != (stop - start) * size:
            raise UserError(f"{self.path} breaks off: run sbp embed again")
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])


def _open_shard(directory: epath.Path, folder: epath.Path, number: int) -> tuple[_Shard, list[str]]:
    """A shard and its ids, checked as far as that needs no vector."""
    path = _path(folder, "vectors", number)
    ids_path = _path(folder, "ids", number, "json")
    scales = None
    try:
        vectors = _open_array(path)
        ids = json.loads(ids_path.read_text())
        if vectors.dtype == np.int8:
            scales = _open_array(_path(folder, "scales", number))
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete {directory} and run sbp embed again"
        ) from error
    if len(vectors.shape) != 2 or vectors.dtype not in _TOLERANCES:
        raise UserError(
            f"{path}: expected float32, uint16 (bfloat16) or int8 of two dimensions, found "
            f"{vectors.dtype} {list(vectors.shape)}: run sbp embed again"
        )
    count = vectors.shape[:1]
    if (len(ids),) != count or (scales and (scales.shape, scales.dtype) != (count, np.float32)):
        others = "id" if scales is None else "id and scale"
        raise UserError(
            f"{path}: expected [{len(ids)}, D], one vector for each {others}, found "
            f"{list(vectors.shape)}: run sbp embed again"
        )
    return _Shard(vectors, scales, ids_path), ids


def _open_array(path: epath.Path) -> _Array:
    """Of a `.npy` file what its header says, held against its size."""
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
    return _Array(path, offset, shape, dtype)


def _wrong_length(vectors: np.ndarray, tolerance: float) -> int | None:
    """The first vector whose length is neither 1 nor 0, if there is one."""
    norms = np.linalg.norm(vectors, axis=1)
    wrong = ~((np.abs(norms - 1) <= tolerance) | (norms == 0))
    return int(np.argmax(wrong)) if wrong.any() else None


def _length_error(where: Any, id_: str, vector: np.ndarray, remedy: str) -> UserError:
    return UserError(
        f"{where}: the vector of {id_!r} has length {np.linalg.norm(vector)}, expected 1 "
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
