"""Next-token loss, weighted; sums rather than means, so that parts of a batch add up exactly.

B batch, L length, D width, V vocabulary, T tokens of a block.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sbp_jax.parallel.mesh import Layout


class LossSums(NamedTuple):
    """Sums over tokens, float32 scalars.

    Attributes:
      loss: weighted negative log-likelihoods, in nats.
      weight: of the weights.
    """

    loss: jax.Array
    weight: jax.Array


class _Block(NamedTuple):
    """Some tokens: hidden states [T, D], targets int32 [T], loss weights float32 [T]."""

    x_TD: jax.Array
    targets_T: jax.Array
    weights_T: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def loss_sums(
    x_BLD: jax.Array,
    output_DV: jax.Array,
    targets_BL: jax.Array,
    weights_BL: jax.Array,
    layout: Layout,
    block: int,
    z_loss: float = 0.0,
) -> tuple[jax.Array, LossSums]:
    """The loss of hidden states under an output layer, a block of tokens at a time.

    The logits [B, L, V] are never in memory. Where a gradient is asked for, a block's logits make
    its loss and its share of the gradient at once, in three matrix products: working through blocks
    of the vocabulary instead takes a fourth, because no gradient can be made before all blocks have
    been seen. The gradient goes through the first result alone.

    Args:
      x_BLD: normed output of the last block, in the dtype of the products.
      output_DV: output layer, in the same dtype, whole along the batch's axes of the mesh.
      targets_BL: int32.
      weights_BL: float32.
      layout: of the arrays.
      block: how many tokens a device has the logits of at a time.
      z_loss: weight of the squared log-normaliser (arXiv 2204.02311, section 5).

    Returns:
      What is minimised, float32: weighted sum of losses and z-losses. And the sums to report.
    """
    return _on_mesh(x_BLD, output_DV, targets_BL, weights_BL, layout, block, z_loss, False)[0]


def _forward(x_BLD, output_DV, targets_BL, weights_BL, layout, block, z_loss):
    return _on_mesh(x_BLD, output_DV, targets_BL, weights_BL, layout, block, z_loss, True)


def _backward(layout, block, z_loss, gradients, by):
    by_x_BLD, by_output_DV = (g * by[0].astype(g.dtype) for g in gradients)
    return by_x_BLD, by_output_DV, None, None


loss_sums.defvjp(_forward, _backward)


def _on_mesh(x_BLD, output_DV, targets_BL, weights_BL, layout, block, z_loss, with_gradients: bool):
    """Results and, if asked for, gradients; a device sees its rows and part of the vocabulary."""
    batch, vocabulary = layout.rules["batch"], layout.rules.get("vocab", ())
    stored = tuple(axis for axis in layout.rules.get("embed", ()) if axis in batch)
    others = tuple(axis for axis in batch if axis not in stored)

    def local(x_BLD, output_DV, targets_BL, weights_BL):
        first = jax.lax.axis_index(vocabulary) * output_DV.shape[1] if vocabulary else 0
        columns_V = first + jnp.arange(output_DV.shape[1])

        def one(total, tokens: _Block):
            sums, gradients = _block(tokens, output_DV, columns_V, vocabulary, z_loss)
            by_x_TD, by_output_DV = gradients() if with_gradients else (None, None)
            return jax.tree.map(jnp.add, total, (sums, by_output_DV)), by_x_TD

        zero = jnp.zeros(())
        by_output_DV = jnp.zeros(output_DV.shape, jnp.float32) if with_gradients else None
        start = ((zero, LossSums(zero, zero)), by_output_DV)
        blocks = _split(x_BLD, targets_BL, weights_BL, block)
        (sums, by_output_DV), by_x_GTD = jax.lax.scan(one, start, blocks)
        sums = jax.lax.psum(sums, batch) if batch else sums
        if by_output_DV is None:
            return sums, None
        by_x_TD = by_x_GTD.reshape(-1, x_BLD.shape[-1])[: targets_BL.size]
        by_output_DV = by_output_DV.astype(output_DV.dtype)
        if stored:
            by_output_DV = jax.lax.psum_scatter(by_output_DV, stored, tiled=True)
        if others:
            by_output_DV = jax.lax.psum(by_output_DV, others)
        return sums, (by_x_TD.reshape(x_BLD.shape), by_output_DV)

    rows, everywhere = layout.sharding("batch").spec, PartitionSpec()
    output, gradient = PartitionSpec(None, vocabulary), PartitionSpec(stored, vocabulary)
    return jax.shard_map(
        local,
        mesh=layout.mesh,
        in_specs=(rows, output, rows, rows),
        out_specs=(everywhere, (rows, gradient) if with_gradients else None),
        check_vma=False,
    )(x_BLD, output_DV, targets_BL, weights_BL)


def _split(x_BLD, targets_BL, weights_BL, block: int) -> _Block:
    """As few blocks as hold at most `block` tokens, all of a size; the last ends in zeros."""
    count = -(-targets_BL.size // block)
    size = -(-targets_BL.size // count)

    def one(x):
        flat = x.reshape(targets_BL.size, *x.shape[2:])
        padding = ((0, size * count - targets_BL.size), *((0, 0),) * (flat.ndim - 1))
        return jnp.pad(flat, padding).reshape(count, size, *flat.shape[1:])

    return _Block(one(x_BLD), one(targets_BL), one(weights_BL))


def _block(tokens: _Block, output_DV, columns_V, vocabulary: tuple[str, ...], z_loss: float):
    """The sums of a block, and a function that makes its gradients from the same logits."""
    logits_TV = jnp.matmul(tokens.x_TD, output_DV, preferred_element_type=jnp.float32)
    target_TV = tokens.targets_T[:, None] == columns_V
    most_T = logits_TV.max(-1)
    most_T = jax.lax.pmax(most_T, vocabulary) if vocabulary else most_T
    sum_T = jnp.exp(logits_TV - most_T[:, None]).sum(-1)
    found_T = jnp.where(target_TV, logits_TV, 0).sum(-1)
    if vocabulary:
        sum_T, found_T = jax.lax.psum((sum_T, found_T), vocabulary)
    normalizer_T = most_T + jnp.log(sum_T)
    loss = jnp.sum((normalizer_T - found_T) * tokens.weights_T)
    objective = loss + z_loss * jnp.sum(jnp.square(normalizer_T) * tokens.weights_T)

    def gradients():
        by_normalizer_T = (1 + 2 * z_loss * normalizer_T) * tokens.weights_T
        by_logits_TV = jnp.exp(logits_TV - normalizer_T[:, None]) * by_normalizer_T[:, None]
        by_logits_TV -= jnp.where(target_TV, tokens.weights_T[:, None], 0)
        by_logits_TV = by_logits_TV.astype(tokens.x_TD.dtype)
        by_x_TD = jnp.matmul(by_logits_TV, output_DV.T, preferred_element_type=jnp.float32)
        by_x_TD = jax.lax.psum(by_x_TD, vocabulary) if vocabulary else by_x_TD
        by_output_DV = jnp.matmul(tokens.x_TD.T, by_logits_TV, preferred_element_type=jnp.float32)
        return by_x_TD.astype(tokens.x_TD.dtype), by_output_DV

    return (objective, LossSums(loss, jnp.sum(tokens.weights_T))), gradients
