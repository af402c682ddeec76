"""Search in one machine's memory or beyond it: a worker for each shard, and the top-k of all.

A worker indexes the vectors of one shard, asks that index every query in blocks, and leaves two
files; that of the products comes last and says that the shard is finished. Then workers merge the
shards' answers, each a block of queries. Shards and blocks need nothing of each other, so Beam only
spreads them, and what an interruption leaves is whole or done again.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.data import engine
from sbp_jax.errors import UserError
from sbp_jax.pair import memory
from sbp_jax.pair.exact import SIZES, ExactSearch
from sbp_jax.pair.scann_search import ScannSearch

QUERIES = 65_536  # that are in memory at once
IDENTITY = "identity.json"


class Rows(Protocol):
    """Vectors that a worker reads from where they are stored, as `vectors.Rows`."""

    def __len__(self) -> int: ...

    @property
    def dimensions(self) -> int:
        """D."""
        ...

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Vectors `start` to `stop`, float32 [n, D]."""
        ...

    def part(self, start: int, stop: int) -> Rows:
        """Some of them."""
        ...


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of the vectors, and what is asked of it.

    Attributes:
      search: the kind of index.
      vectors: of this shard.
      first: the number of its first vector among all.
      queries: all of them.
      count: neighbours of a query.
      work: where the files go.
      index: which shard.
      count_of_shards: of how many.
    """

    search: ScannSearch | ExactSearch
    vectors: Rows
    first: int
    queries: Rows
    count: int
    work: str
    index: int
    count_of_shards: int

    def path(self, kind: str, suffix: str = "npy") -> epath.Path:
        """A file that the shard leaves."""
        return _path(self.work, kind, self.index, self.count_of_shards, suffix)

    @property
    def finished(self) -> bool:
        return self.path("products").exists()

    @property
    def mistake_path(self) -> epath.Path:
        """Holds what the user has to mend, since exceptions do not come back from a cluster."""
        return self.path("mistake", "txt")


@dataclasses.dataclass(frozen=True)
class Block:
    """Queries whose answers from all shards are to be merged.

    Attributes:
      shards: all, finished.
      start: the first query.
      stop: the one after the last.
      index: which block.
      count_of_blocks: of how many.
    """

    shards: tuple[Shard, ...]
    start: int
    stop: int
    index: int
    count_of_blocks: int

    def path(self, kind: str) -> epath.Path:
        """A file that the merge leaves."""
        return _path(self.shards[0].work, f"merged-{kind}", self.index, self.count_of_blocks)

    @property
    def finished(self) -> bool:
        return self.path("products").exists()


def deal(
    search: ScannSearch | ExactSearch,
    vectors: Rows,
    queries: Rows,
    count: int,
    shards: int,
    work: str,
) -> list[Shard]:
    """Shards of nearly equal size, in the order of the vectors, none of them empty."""
    shards = max(1, min(shards, len(vectors)))
    bounds = [len(vectors) * i // shards for i in range(shards + 1)]
    return [
        Shard(
            search=search,
            vectors=vectors.part(first, bounds[i + 1]),
            first=first,
            queries=queries,
            count=count,
            work=work,
            index=i,
            count_of_shards=shards,
        )
        for i, first in enumerate(bounds[:-1])
    ]


def run(
    shards: Sequence[Shard], runner: str, options: Sequence[str], identity: dict[str, Any]
) -> list[Block]:
    """Searches the shards that are not finished, and merges what they found.

    Args:
      shards: of `deal`.
      runner: Beam's, as `engine.run_all` takes it.
      options: for the runner.
      identity: what decides the neighbours. Files of another are removed.

    Returns:
      The merged neighbours, by blocks of queries.

    Raises:
      UserError: a shard met a mistake. Finished shards stay for the next attempt.
    """
    work = epath.Path(shards[0].work)
    kept = work / IDENTITY
    if not kept.exists() or json.loads(kept.read_text()) != artifacts.plain(identity):
        for path in work.glob("*-of-*.npy"):
            path.unlink()
        work.mkdir(parents=True, exist_ok=True)
        artifacts.write_atomic(kept, json.dumps(artifacts.plain(identity), indent=2))
    missing = [shard for shard in shards if not shard.finished]
    logging.info("search: %d of %d shards are to be done", len(missing), len(shards))
    for shard in missing:
        shard.mistake_path.unlink(missing_ok=True)
    engine.run_all(search_shard, missing, runner, options)
    mistakes = [s.mistake_path.read_text() for s in missing if s.mistake_path.exists()]
    if mistakes:
        raise UserError(mistakes[0])
    asked = len(shards[0].queries)
    starts = range(0, asked, QUERIES)
    blocks = [
        Block(tuple(shards), start, min(start + QUERIES, asked), i, len(starts))
        for i, start in enumerate(starts)
    ]
    engine.run_all(merge_block, [b for b in blocks if not b.finished], runner, options)
    return blocks


def search_shard(shard: Shard) -> None:
    """What a worker does. A mistake of the user's is left in `mistake_path`."""
    try:
        _search(shard)
    except UserError as error:
        artifacts.write_atomic(shard.mistake_path, error.message)


def _search(shard: Shard) -> None:
    if shard.finished:  # by a worker that was taken for lost
        return
    vectors = shard.vectors.read()
    index = shard.search.build(vectors, shard.count)
    asked, count = len(shard.queries), min(shard.count, len(vectors))
    writers = [
        NpyWriter(shard.path("indices"), (asked, count), np.dtype(np.int32)),
        NpyWriter(shard.path("products"), (asked, count), np.dtype(np.float32)),
    ]
    for start in range(0, asked, QUERIES):
        found = index.find(shard.queries.read(start, start + QUERIES), count)
        for writer, part in zip(writers, found, strict=True):
            writer.write(part)
    for writer in writers:
        writer.close()


def merge_block(block: Block) -> None:
    """What a worker does with the answers of all shards."""
    if block.finished:
        return
    shards = block.shards
    count = min(shards[0].count, sum(len(shard.vectors) for shard in shards))
    indices = np.concatenate(
        [
            read_rows(shard.path("indices"), block.start, block.stop).astype(np.int64) + shard.first
            for shard in shards
        ],
        axis=1,
    )
    products = np.concatenate(
        [read_rows(shard.path("products"), block.start, block.stop) for shard in shards], axis=1
    )
    for kind, part in zip(("indices", "products"), top(indices, products, count), strict=True):
        writer = NpyWriter(block.path(kind), part.shape, part.dtype)
        writer.write(part)
        writer.close()


def read_merged(blocks: Sequence[Block]) -> tuple[np.ndarray, np.ndarray]:
    """Indices int64 [m, k] among all vectors and products float32 [m, k] of all queries.

    Nearest first and lower indices first among equals; k is the number asked for, or of the vectors
    if they are fewer.
    """
    found, products = (
        np.concatenate([read_rows(b.path(kind), 0, b.stop - b.start) for b in blocks])
        for kind in ("indices", "products")
    )
    return found, products


def top(indices: np.ndarray, products: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest products of each row, lower indices first among equals."""
    order = np.lexsort((indices, -products))[:, :count]
    return np.take_along_axis(indices, order, 1), np.take_along_axis(products, order, 1)


def refuse_what_does_not_fit(
    search: ScannSearch | ExactSearch,
    shape: tuple[int, int],
    count: int,
    *,
    shards: int = 1,
    runner: str = engine.INLINE,
    available: int | None = None,
) -> None:
    """Raises a UserError with a number of shards where a search would not fit in memory here.

    What workers of a cluster have is known to them alone, and not asked.
    """
    if runner not in (engine.INLINE, engine.LOCAL):
        return
    cores = os.cpu_count() or 1
    memory.refuse_what_does_not_fit(
        *shape,
        search.name,
        neighbours=count,
        shards=shards,
        at_once=lambda shards: min(shards, cores) if runner == engine.LOCAL else 1,
        devices=_devices_of_memory(search),
        itemsize=SIZES[search.dtype] if isinstance(search, ExactSearch) else memory.FLOAT,
        plan=ScannSearch().plan if isinstance(search, ExactSearch) else search.plan,
        available=available,
    )


def _devices_of_memory(search: ScannSearch | ExactSearch) -> int:
    """Devices of JAX whose memory is this machine's: those of the CPU."""
    if not isinstance(search, ExactSearch):
        return 1
    import jax  # starts its devices, which only this kind of search needs

    return max(1, sum(device.platform == "cpu" for device in jax.local_devices()))


def _path(work: str, kind: str, index: int, count: int, suffix: str = "npy") -> epath.Path:
    return epath.Path(work) / f"{kind}-{index:05d}-of-{count:05d}.{suffix}"


class NpyWriter:
    """A `.npy` file of known shape, written in parts and there once it is whole."""

    def __init__(self, path: epath.PathLike, shape: tuple[int, ...], dtype: np.dtype):
        self.path = epath.Path(path)
        self.partial = self.path.parent / f".{self.path.name}.{os.getpid()}.tmp"
        self.dtype = dtype
        self.file = self.partial.open("wb")
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(self.file, header)

    def write(self, rows: np.ndarray) -> None:
        """The next rows."""
        self.file.write(np.ascontiguousarray(rows, self.dtype).tobytes())

    def close(self) -> None:
        """Puts the file in its place."""
        self.file.close()
        self.partial.replace(self.path)


def read_rows(path: epath.PathLike, start: int, stop: int) -> np.ndarray:
    """Rows of a `.npy` file of two dimensions, none of the others being read.

    Raises:
      UserError: the file is none, or damaged, or has no such rows.
    """
    path = epath.Path(path)
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read(file)
            if fortran or len(shape) != 2 or dtype.hasobject or not 0 <= start <= stop <= shape[0]:
                raise ValueError(f"{dtype} {shape} has no rows {start} to {stop} in C order")
            width = dtype.itemsize * shape[1]
            file.seek(start * width, os.SEEK_CUR)
            content = file.read((stop - start) * width)
        return np.frombuffer(content, dtype).reshape(stop - start, shape[1])
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}: expected the rows {start} to {stop} of a .npy file ({error}): delete it and "
            "run the same command again"
        ) from error
