"""Losses of single pieces: nats of each, where the training's loss gives sums over a batch.

Of sums the noise of a mean cannot be told, nor which piece has what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
    batch_sharding = layout.sharding("batch")
    slots = loader.local_slots(batch_sharding, batch_size)

    def piece_losses(pieces: Sequence[Piece], name: str) -> np.ndarray:
        found = [np.zeros(0)]
        for start in progress(range(0, len(pieces), batch_size), desc=name, unit=" batches"):
            batch = rows_of(pieces[start : start + batch_size], batch_size, length, model)
            placed = Row(
                *(
                    jax.make_array_from_process_local_data(batch_sharding, x[slots], x.shape)
                    for x in batch
                )
            )
            found.append(np.asarray(row_losses(parameters, placed), np.float64))
        return np.concatenate(found)[: len(pieces)]

    return piece_losses


def rows_of(pieces: Sequence[Piece], batch_size: int, length: int, model: DecoderConfig) -> Row:
    """A batch with one piece a row, filled up with padding: arrays [B, L]."""
    batch = row_format.empty_rows(batch_size, length)
    for place, piece in enumerate(pieces):
        record = row_format.encode([piece], model.vocab_size)
        row_format.decode(record, length, model.vocab_size, Row(*(x[place] for x in batch)))
    return batch


def make_row_losses(model: DecoderConfig, layout: Layout) -> Callable[[Any, Row], jax.Array]:
    """(parameters, batch) → nats of each row, float32 [B], on every device."""
    graph, _ = structure(model)

    def row_losses(parameters: Any, batch: Row) -> jax.Array:
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

        def nats(part: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            x_BPD, targets_BP, weights_BP = part
            logits_BPV = jnp.matmul(x_BPD, output_DV, preferred_element_type=jnp.float32)
            found_BP = jnp.take_along_axis(logits_BPV, targets_BP[..., None], -1)[..., 0]
            return jnp.sum((jax.nn.logsumexp(logits_BPV, -1) - found_BP) * weights_BP, 1)

        one = (split(normed_BLD), split(batch.targets), split(batch.loss_weights))
        return jnp.sum(jax.lax.map(nats, one), 0)

    return jax.jit(row_losses, out_shardings=layout.sharding())
