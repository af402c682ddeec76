"""Losses of single pieces: nats of each, where the training's loss gives sums over a batch.

Of sums the noise of a mean cannot be told, nor which piece has what, nor whether a piece is what
the model itself would have written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sbp_jax.data import loader
from sbp_jax.data import rows as row_format
from sbp_jax.data.rows import Piece, Row
from sbp_jax.model.compute import ComputeConfig
from sbp_jax.model.decoder import Decoder, DecoderConfig, structure
from sbp_jax.parallel.mesh import Layout
from sbp_jax.progress import progress

_POSITIONS = 128  # of a row whose logits are in memory at once


def make_piece_losses(
    parameters: Any, model: DecoderConfig, layout: Layout, *, length: int, batch_size: int
) -> Callable[[Sequence[Piece], str], np.ndarray]:
    """(pieces, name for the progress bar) → nats of each piece, float64 [pieces].

    Args:
      parameters: of the model, laid out as `train.step.parameter_shardings` has it.
      model: the decoder.
      layout: of rows and parameters over the devices.
      length: L, tokens in a row; no piece has more, and each has a row to itself.
      batch_size: rows at a time; the losses do not depend on it.
    """
    row_losses = make_row_losses(model, layout)
    place = make_place(layout, batch_size)

    def piece_losses(pieces: Sequence[Piece], name: str) -> np.ndarray:
        found = [np.zeros(0)]
        for start in progress(range(0, len(pieces), batch_size), desc=name, unit=" batches"):
            batch = rows_of(pieces[start : start + batch_size], batch_size, length, model)
            placed = place(batch)
            found.append(np.asarray(row_losses(parameters, placed), np.float64))
        return np.concatenate(found)[: len(pieces)]

    return piece_losses


def make_place(layout: Layout, batch_size: int) -> Callable[[Row], Row]:
    """Lays a batch, of which every process has the whole, over the devices: arrays [B, L]."""
    batch_sharding = layout.sharding("batch")
    slots = loader.local_slots(batch_sharding, batch_size)

    def place(batch: Row) -> Row:
        return Row(
            *(
                jax.make_array_from_process_local_data(batch_sharding, x[slots], x.shape)
                for x in batch
            )
        )

    return place


def rows_of(pieces: Sequence[Piece], batch_size: int, length: int, model: DecoderConfig) -> Row:
    """A batch with one piece a row, filled up with padding: arrays [B, L]."""
    batch = row_format.empty_rows(batch_size, length)
    for place, piece in enumerate(pieces):
        record = row_format.encode([piece], model.vocab_size)
        row_format.decode(record, length, model.vocab_size, Row(*(x[place] for x in batch)))
    return batch


class RowScores(NamedTuple):
    """What a model says of the targets with loss of each row, on every device.

    Attributes:
      nats_B: float32, their negative log-likelihood, weighted.
      greedy_B: bool, whether each of them is the most probable token of its place.
    """

    nats_B: jax.Array
    greedy_B: jax.Array


def make_row_losses(model: DecoderConfig, layout: Layout) -> Callable[[Any, Row], jax.Array]:
    """(parameters, batch) → nats of each row, float32 [B], on every device."""
    scores = _row_scores(model, layout)
    return jax.jit(lambda *given: scores(*given).nats_B, out_shardings=layout.sharding())


def make_row_scores(model: DecoderConfig, layout: Layout) -> Callable[[Any, Row], RowScores]:
    """(parameters, batch) → scores of each row."""
    return jax.jit(_row_scores(model, layout), out_shardings=layout.sharding())


def _row_scores(model: DecoderConfig, layout: Layout) -> Callable[[Any, Row], RowScores]:
    graph, _ = structure(model)

    def row_scores(parameters: Any, batch: Row) -> RowScores:
        decoder: Decoder = nnx.merge(graph, parameters)
        x_BLD = decoder.hidden_states(
            batch.inputs,
            batch.segment_ids,
            batch.positions,
            layout=layout,
            compute=ComputeConfig(),
        )
        normed_BLD, output_DV = decoder.output(x_BLD, layout)
        length = batch.inputs.shape[1]
        parts = -(-length // _POSITIONS)

        def split(x: jax.Array) -> jax.Array:
            padding = ((0, 0), (0, parts * _POSITIONS - length), *((0, 0),) * (x.ndim - 2))
            padded = jnp.pad(x, padding)
            return padded.reshape(len(x), parts, _POSITIONS, *x.shape[2:]).swapaxes(0, 1)

        def score(part: tuple[jax.Array, jax.Array, jax.Array]) -> RowScores:
            x_BPD, targets_BP, weights_BP = part
            logits_BPV = jnp.matmul(x_BPD, output_DV, preferred_element_type=jnp.float32)
            found_BP = jnp.take_along_axis(logits_BPV, targets_BP[..., None], -1)[..., 0]
            nats_BP = jax.nn.logsumexp(logits_BPV, -1) - found_BP
            first_BP = jnp.argmax(logits_BPV, -1) == targets_BP
            return RowScores(
                jnp.sum(nats_BP * weights_BP, 1), jnp.all(first_BP | (weights_BP == 0), 1)
            )

        one = (split(normed_BLD), split(batch.targets), split(batch.loss_weights))
        found = jax.lax.map(score, one)
        return RowScores(jnp.sum(found.nats_B, 0), jnp.all(found.greedy_B, 0))

    return row_scores
