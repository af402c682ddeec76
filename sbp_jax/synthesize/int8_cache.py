"""A key/value cache in one byte a number: half of what a decode step reads of it.

A key or value is an int8 times the scale of its channel, head and layer. The scales are found once,
on prompts, and then are the same for every document: a key's goes to the queries before their
product with the cache, and a value's to the result, so that attention itself reads plain int8. What
lies beyond the range is cut off at it.

R prompts of length P, K key/value heads, H head size.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from sbp_jax.model.decoder import Cache
from sbp_jax.model.int8 import HIGHEST, rounded

# For each layer the scales of keys and of values, float32 [K, H] each.
Scales = list[tuple[jax.Array, jax.Array]]


def ranges(cache: Cache, length_R: jax.Array) -> Scales:
    """How large the channels of a cache [K, R, P, H] become in each prompt's first positions.

    Of keys the two channels that a position turns into each other count as one, by the length of
    both, which no position changes.

    Args:
      cache: of the prompts.
      length_R: int32, positions that count.
    """
    seen_RP1 = jnp.arange(cache[0][0].shape[2])[:, None] < length_R[:, None, None]

    def largest(x_KRPH):
        sizes_KRPH = jnp.where(seen_RP1, jnp.abs(x_KRPH.astype(jnp.float32)), 0)
        return jnp.max(sizes_KRPH, axis=(1, 2))

    def turned(k_KRPH):
        first, second = jnp.split(k_KRPH.astype(jnp.float32), 2, axis=-1)
        lengths = jnp.hypot(first, second)
        return jnp.concatenate([lengths, lengths], axis=-1)

    return [(largest(turned(keys)), largest(values)) for keys, values in cache]


def scales(found: list[Scales]) -> Scales:
    """Scales that reach as far as all these ranges.

    They are powers of 2^(1/8), rounded up: what differs in the last bit gives the same but where it
    lies on the border of two.
    """

    def one(*largest_KH):
        highest_KH = functools.reduce(jnp.maximum, largest_KH)
        steps_KH = jnp.ceil(8 * jnp.log2(highest_KH / HIGHEST) - 1e-3)
        return jnp.where(highest_KH > 0, jnp.exp2(steps_KH / 8), 1.0)

    return jax.tree.map(one, *found)


def quantise(x: jax.Array, scales: jax.Array) -> jax.Array:
    """Int8 of keys or values, to whose shape `scales` are broadcast; of what is no number, 0."""
    scaled = x.astype(jnp.float32) / scales
    # What becomes of a NaN is each device's own business: on a CPU it is 0 anyway.
    return rounded(jnp.where(jnp.isnan(scaled), 0, scaled))
