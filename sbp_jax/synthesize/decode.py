"""One decode step: one more token in every slot, read against the cache.

S slots, M cache length, K key/value heads, N query heads, H head size, V vocabulary; R prompts of
length P are read at once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sbp_jax.model.decoder import Cache, Unstacked, rotations
from sbp_jax.synthesize.attention import attend as attend_cache


def fill(cache: Cache, prefilled: Cache, slots_R: jax.Array) -> Cache:
    """Puts what prompts left in a cache of their own, [K, R, P, H], into slots.

    Args:
      cache: of the slots.
      prefilled: of the prompts.
      slots_R: int32; a slot of S or more is nowhere, and its prompt is dropped.
    """
    length = prefilled[0][0].shape[2]

    def put(old, new):
        return old.at[:, slots_R, :length].set(new, mode="drop")

    return jax.tree.map(put, cache, prefilled)


def copy(cache: Cache, length: int, sources_R: jax.Array, slots_R: jax.Array) -> Cache:
    """Puts the first `length` positions of some slots into others, as `fill`."""
    return fill(cache, jax.tree.map(lambda a: a[:, sources_R, :length], cache), slots_R)


def decode(
    model: Unstacked,
    cache: Cache,
    tokens_S: jax.Array,
    positions_S: jax.Array,
    running_S: jax.Array,
    cores: int = 1,
) -> tuple[jax.Array, Cache]:
    """Reads a token a slot; what `Unstacked.extend` does for L = 1.

    Args:
      model: layers taken apart.
      cache: a position of it holds the token of that position.
      tokens_S: int32.
      positions_S: int32, of these tokens; what the cache holds from there on is not seen.
      running_S: bool; of the other slots nothing is wanted.
      cores: of a TPU chip that act as one device.

    Returns:
      Logits float32 [S, V] after the tokens, and the cache.
    """
    slots_S = jnp.arange(len(tokens_S))
    lengths_S = jnp.where(running_S, positions_S + 1, 1)
    x_S1D = model.outer.embed(tokens_S[:, None])
    rotations_S11H = rotations(model.config, positions_S[:, None])
    extended: Cache = []
    for block, (keys, values) in zip(model.layers, cache, strict=True):

        def attend(q_SN1H, k_SK1H, v_SK1H, keys=keys, values=values):
            def put(old_KSMH, new_SK1H):
                # What is no number would stay for the slot's next document, whose weight of it is
                # zero, and zero times it no number either.
                new_KSH = new_SK1H[:, :, 0].swapaxes(0, 1)
                new_KSH = jnp.where(jnp.isfinite(new_KSH), new_KSH, 0)
                return old_KSMH.at[:, slots_S, positions_S].set(new_KSH)

            keys_KSMH, values_KSMH = put(keys, k_SK1H), put(values, v_SK1H)
            extended.append((keys_KSMH, values_KSMH))
            o_SNH = attend_cache(q_SN1H[:, :, 0], keys_KSMH, values_KSMH, lengths_S, cores)
            return o_SNH[:, :, None]

        x_S1D = block(x_S1D, rotations_S11H, attend)
    return model.outer.logits(x_S1D[:, 0]), extended
