"""Weights in one byte a number: half of what a decode step reads of them.

A weight is an int8 times the scale of its output channel. It is widened where it is multiplied, and
the product scaled: numerics are else those of the model's dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

HIGHEST = 127


class Int8(NamedTuple):
    """A matrix of int8, flat: of more dimensions a TPU would have it laid out anew for a product.

    Attributes:
      values: int8 [inputs, outputs].
      scales: float32, of each output, in the shape that the outputs have.
    """

    values: jax.Array
    scales: jax.Array


def narrow(weights: nnx.State) -> nnx.State:
    """Matrices as `Int8`; the embedding, of which a step reads a few rows, and vectors as they are.

    An embedding that also makes the logits stays as it is, too.
    """

    def one(weight: nnx.Variable) -> nnx.Variable:
        names = weight.get_metadata()["axes"]
        if len(names) == 1 or names == ("vocab", "embed"):
            return weight
        # What leads to the stream has all other dimensions as inputs.
        inputs = 1 if names[0] == "embed" else len(names) - 1
        values = weight[...].astype(jnp.float32)
        scales = jnp.max(jnp.abs(values), axis=tuple(range(inputs))) / HIGHEST
        scales = jnp.where(scales > 0, scales, 1.0)
        flat = rounded(values / scales).reshape(-1, scales.size)
        return weight.replace(Int8(flat, scales))

    return jax.tree.map(one, weights, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def rounded(x: jax.Array) -> jax.Array:
    """The nearest int8 from -127 to 127."""
    return jnp.clip(jnp.round(x), -HIGHEST, HIGHEST).astype(jnp.int8)
