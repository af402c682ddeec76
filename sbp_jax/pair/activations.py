"""The decoder over documents: packed into rows, the rows in batches on the mesh, a vector for each.

A row holds several documents as segments, which see nothing of each other, so that a vector does
not depend on its document's neighbours. Rows have few lengths, and each length one program.

B rows of a batch, L tokens of a row, S documents of a row, D width.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from sbp_jax.model.compute import ComputeConfig
from sbp_jax.model.decoder import Decoder, DecoderConfig, structure
from sbp_jax.parallel.mesh import Layout
from sbp_jax.progress import progress

# A row has a place for a document on this many tokens; a shorter document takes as many.
TOKENS_PER_PLACE = 8
# A row is opened for a document that leaves half of it to others. More would waste less of a row,
# and more in attention, which computes the scores of a row's tokens with all before them.
DOCUMENTS_PER_ROW = 2
SHORTEST_ROW = 256


class Embedded(NamedTuple):
    """What an embedder gives for some documents.

    Attributes:
      vectors: float32 [n, D]; zeros for a document with nothing in it.
      tokens: of the documents that a model read.
      padding: computed beside them.
    """

    vectors: np.ndarray
    tokens: int = 0
    padding: int = 0


class Row(NamedTuple):
    """Documents that share a row.

    Attributes:
      size: tokens they take.
      members: their indices.
    """

    size: int
    members: list[int]


def parameter_shardings(config: DecoderConfig, layout: Layout) -> Any:
    """How each parameter lies on the mesh, a nested dict."""
    return nnx.to_pure_dict(layout.parameter_shardings(structure(config)[1]))


def make_runner(
    config: DecoderConfig,
    parameters: Any,
    layout: Layout,
    *,
    max_length: int,
    tokens_per_device: int,
    pooling: Literal["mean", "last"],
    layer: int | None = None,
    final_norm: bool = False,
) -> Callable[[Sequence[np.ndarray]], Embedded]:
    """The function that runs the decoder over documents.

    Args:
      config: of the decoder.
      parameters: its own, laid out as `layout` has it. Matrices are put into the compute dtype, and
        those that were in another are deleted.
      layout: over whose batch axes the rows of a batch are split.
      max_length: most tokens of a document.
      tokens_per_device: of a batch, padding counted; a single row may be longer.
      pooling: of the activations of a document: their `mean`, or the `last` one.
      layer: after how many blocks; None for all.
      final_norm: whether the pooled activations go through the decoder's last norm.

    Returns:
      Documents, int32 [tokens] each → their pooled activations; zeros for one without tokens.
    """
    graph, _ = structure(config)
    parameters = _narrowed(parameters, config.dtype)
    lengths = row_lengths(max_length)
    compute = ComputeConfig()

    @jax.jit
    def pooled(
        parameters: Any,
        tokens_BL: jax.Array,
        segment_ids_BL: jax.Array,
        positions_BL: jax.Array,
        ends_BS: jax.Array,
    ) -> jax.Array:
        decoder: Decoder = nnx.merge(graph, parameters)
        x_BLD = decoder.hidden_states(
            tokens_BL, segment_ids_BL, positions_BL, layer=layer, layout=layout, compute=compute
        )
        if pooling == "last":
            x_BSD = jnp.take_along_axis(x_BLD, ends_BS[..., None], axis=1).astype(jnp.float32)
        else:
            places_1S1 = jnp.arange(1, ends_BS.shape[1] + 1)[None, :, None]
            of_BSL = (segment_ids_BL[:, None, :] == places_1S1).astype(jnp.float32)
            sums_BSD = jnp.matmul(of_BSL, x_BLD.astype(jnp.float32), precision="highest")
            x_BSD = sums_BSD / jnp.maximum(of_BSL.sum(-1, keepdims=True), 1)
        if final_norm:
            x_BSD = decoder.final_norm(x_BSD)
        return layout.constrain(x_BSD, "batch", None, None)

    def run(documents: Sequence[np.ndarray]) -> Embedded:
        vectors = np.zeros((len(documents), config.width), np.float32)
        tokens = sum(len(d) for d in documents)
        parts = layout.batch_shards
        # Few documents make several batches still, since the last has rows without any.
        most = min(tokens_per_device, tokens // (8 * parts))
        rows_of = {length: parts * max(1, most // length) for length in lengths}
        batches = list(make_batches([len(d) for d in documents], lengths, rows_of))
        waiting: tuple[list[Row], jax.Array] | None = None
        bar = progress(desc="embed", unit=" docs", total=len(documents))

        def take(rows: list[Row], found: jax.Array) -> None:
            found_BSD = np.asarray(found)
            for row, one in zip(rows, found_BSD, strict=False):
                vectors[row.members] = one[: len(row.members)]
                bar.update(len(row.members))

        # The longest rows first: if memory does not suffice for them, it shows at once.
        for length, rows in reversed(batches):
            arrays = _arrays(documents, rows, length, rows_of[length])
            placed = [jax.device_put(x, layout.sharding("batch", None)) for x in arrays]
            found = pooled(parameters, *placed)
            if waiting:  # the device is at work on the next batch while this one is taken
                take(*waiting)
            waiting = rows, found
        if waiting:
            take(*waiting)
        bar.close()
        computed = sum(length * rows_of[length] for length, _ in batches)
        logging.info(
            "%d documents, %d tokens in rows of %s: padding %.1f%%",
            len(documents),
            tokens,
            sorted({length for length, _ in batches}),
            100 * (computed - tokens) / max(computed, 1),
        )
        return Embedded(vectors, tokens, computed - tokens)

    return run


def row_lengths(max_length: int) -> list[int]:
    """Lengths of rows, ascending, the last of which holds any document.

    The longest is cut down by eighths where its documents leave it free; the others are for short
    documents, each half of the one above.
    """
    tile = 128 if max_length >= 1024 else TOKENS_PER_PLACE

    def whole_tiles(length: float) -> int:
        return math.ceil(length / tile) * tile

    longest = whole_tiles(max_length)
    found = {whole_tiles(longest * part / 8) for part in (5, 6, 7, 8)}
    shorter = longest / DOCUMENTS_PER_ROW
    while shorter >= SHORTEST_ROW:
        found.add(whole_tiles(shorter))
        shorter /= DOCUMENTS_PER_ROW
    return sorted(found)


def make_batches(
    sizes: Sequence[int], lengths: Sequence[int], rows_of: dict[int, int]
) -> Iterator[tuple[int, list[Row]]]:
    """Packs documents into rows, and rows of one length into batches.

    Args:
      sizes: tokens of each document; one without tokens is left out.
      lengths: of rows, ascending; no document is longer than the last.
      rows_of: most rows of a batch by their length.

    Yields:
      The length of the rows of a batch, and the rows. Only batches of the longest are not full.
    """
    longest = lengths[-1]
    short = [length for length in lengths if length <= longest / DOCUMENTS_PER_ROW]

    def capacity(size: int) -> int:
        fitting = (length for length in short if DOCUMENTS_PER_ROW * size <= length)
        return next(fitting, longest)

    single = [Row(max(size, TOKENS_PER_PLACE), [i]) for i, size in enumerate(sizes) if size]
    by_length: dict[int, list[Row]] = {length: [] for length in lengths}
    for row in _best_fit(single, capacity):
        by_length[next(length for length in lengths if length >= row.size)].append(row)
    for place, length in enumerate(lengths):
        rows = sorted(by_length[length], key=lambda row: -row.size)
        count = rows_of[length]
        whole = len(rows) if length == longest else len(rows) // count * count
        for start in range(0, whole, count):
            yield length, rows[start : min(start + count, whole)]
        if rest := rows[whole:]:
            longer = lengths[place + 1]
            together = [*by_length[longer], *rest]
            by_length[longer] = _best_fit(together, functools.partial(max, longer))


def _best_fit(items: Iterable[Row], capacity: Callable[[int], int]) -> list[Row]:
    """Puts items together, the largest first, each where it leaves the least room.

    Where none has room for it, an item of a size opens a row of `capacity(size)`.
    """
    rows: list[Row] = []
    room: list[tuple[int, int]] = []  # (tokens free, row), sorted
    for item in sorted(items, key=lambda item: (-item.size, item.members)):
        best = bisect.bisect_left(room, (item.size, -1))
        if best < len(room):
            free, place = room.pop(best)
            rows[place] = Row(rows[place].size + item.size, rows[place].members + item.members)
        else:
            free, place = capacity(item.size), len(rows)
            rows.append(item)
        if free - item.size >= TOKENS_PER_PLACE:
            bisect.insort(room, (free - item.size, place))
    return rows


def _arrays(
    documents: Sequence[np.ndarray], rows: list[Row], length: int, count: int
) -> tuple[np.ndarray, ...]:
    """A batch: tokens, segment ids and positions, int32 [B, L], and ends of documents [B, S]."""
    tokens_BL, segment_ids_BL, positions_BL = np.zeros((3, count, length), np.int32)
    ends_BS = np.zeros((count, length // TOKENS_PER_PLACE), np.int32)
    for b, row in enumerate(rows):
        start = 0
        for place, index in enumerate(row.members):
            end = start + len(documents[index])
            tokens_BL[b, start:end] = documents[index]
            segment_ids_BL[b, start:end] = place + 1
            positions_BL[b, start:end] = np.arange(end - start)
            ends_BS[b, place] = end - 1
            start = end
    return tokens_BL, segment_ids_BL, positions_BL, ends_BS


def _narrowed(parameters: Any, dtype: str) -> Any:
    """Matrices in the dtype they are multiplied in; scales of norms stay float32.

    Each is deleted once it is copied, so that the model is never in memory twice.
    """

    def one(path, weights):
        if path[-1].key == "scale" or weights.dtype == jnp.dtype(dtype):
            return weights
        narrow = weights.astype(dtype)
        weights.delete()
        return narrow

    return jax.tree_util.tree_map_with_path(one, parameters)
