"""One decode step: one more token in every slot, read against the cache.

S slots, M cache length, K key/value heads, N query heads, H head size, V vocabulary; R prompts of
length P are read at once.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp

from sbp_jax.model.decoder import Cache, Unstacked, rotations
from sbp_jax.synthesize.attention import attend as attend_cache
from sbp_jax.synthesize.int8_cache import Scales, quantise

INT8_TILE = 32  # positions of a channel that a TPU lays side by side


def fill(cache: Cache, prefilled: Cache, slots_R: jax.Array, scales: Scales | None = None) -> Cache:
    """Puts what prompts left in a cache of their own, [K, R, P, H], into slots.

    Args:
      cache: of the slots.
      prefilled: of the prompts.
      slots_R: int32; a slot of S or more is nowhere, and its prompt is dropped.
      scales: of an int8 cache that the prompts' is not.
    """
    if scales is not None:
        scales_K11H = jax.tree.map(lambda scale_KH: scale_KH[:, None, None], scales)
        prefilled = jax.tree.map(quantise, prefilled, scales_K11H)
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
    scales: Scales | None = None,
) -> tuple[jax.Array, Cache]:
    """Reads a token a slot; what `Unstacked.extend` does for L = 1.

    Args:
      model: layers taken apart.
      cache: a position of it holds the token of that position.
      tokens_S: int32.
      positions_S: int32, of these tokens; what the cache holds from there on is not seen.
      running_S: bool; of the other slots nothing is wanted.
      cores: of a TPU chip that act as one device.
      scales: of an int8 cache; None for one in the model's dtype.

    Returns:
      Logits float32 [S, V] after the tokens, and the cache.
    """
    lengths_S = jnp.where(running_S, positions_S + 1, 1)
    # Slots stand where positions do in training: heads of size H lie in full tiles, and new keys
    # as the cache has them.
    x_1SD = model.outer.embed(tokens_S[None])
    rotations_11SH = rotations(model.config, positions_S[None])
    extended: Cache = []
    all_scales = scales or itertools.repeat(None, len(cache))
    for block, (keys, values), of_layer in zip(model.layers, cache, all_scales, strict=True):

        def attend(q_1NSH, k_1KSH, v_1KSH, keys=keys, values=values, of_layer=of_layer):
            def put(old_KSMH, new_KSH, scales_KH):
                # What is no number would stay for the slot's next document, whose weight of it is
                # zero, and zero times it no number either.
                if scales_KH is not None:
                    new_KSH = quantise(new_KSH, scales_KH[:, None])
                else:
                    new_KSH = jnp.where(jnp.isfinite(new_KSH), new_KSH, 0)
                return put_each(old_KSMH, new_KSH, positions_S)

            k_scales_KH, v_scales_KH = of_layer or (None, None)
            keys_KSMH = put(keys, k_1KSH[0], k_scales_KH)
            values_KSMH = put(values, v_1KSH[0], v_scales_KH)
            extended.append((keys_KSMH, values_KSMH))
            q_NSH = _scaled(q_1NSH[0], k_scales_KH)
            o_SNH = attend_cache(q_NSH.swapaxes(0, 1), keys_KSMH, values_KSMH, lengths_S, cores)
            return _scaled(o_SNH.swapaxes(0, 1), v_scales_KH)[None]

        x_1SD = block(x_1SD, rotations_11SH, attend)
    return model.outer.logits(x_1SD[0]), extended


def put_each(cache_KSMH: jax.Array, new_KSH: jax.Array, positions_S: jax.Array) -> jax.Array:
    """Puts one key or value a slot into the cache, in place."""
    slots_S = jnp.arange(len(positions_S))
    if cache_KSMH.dtype != jnp.int8:
        return cache_KSMH.at[:, slots_S, positions_S].set(new_KSH)
    # On a TPU four bytes of four positions share a word: what writes one of them alone has the
    # whole cache laid out anew. So those in one tile are read, and written with the new one.
    shape = cache_KSMH.shape
    tiles_KSWTH = cache_KSMH.reshape(*shape[:2], -1, INT8_TILE, shape[3])
    tile_S, place_S = jnp.divmod(positions_S, INT8_TILE)
    here_STH = (jnp.arange(INT8_TILE) == place_S[:, None])[:, :, None]
    new_KSTH = jnp.where(here_STH, new_KSH[:, :, None], tiles_KSWTH[:, slots_S, tile_S])
    return tiles_KSWTH.at[:, slots_S, tile_S].set(new_KSTH).reshape(shape)


def _scaled(x_NSH: jax.Array, scales_KH: jax.Array | None) -> jax.Array:
    """Each head times the scales of its key/value head."""
    if scales_KH is None:
        return x_NSH
    scales_NH = jnp.repeat(scales_KH, len(x_NSH) // len(scales_KH), axis=0)
    return (x_NSH.astype(jnp.float32) * scales_NH[:, None]).astype(x_NSH.dtype)
