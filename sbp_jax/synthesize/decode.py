"""One decode step: one more token in every slot, read against a cache laid out for it.

A slot's keys of one head lie together, [S, K, M, H], so that attention is a plain matrix product
for each slot and head. In the model's own layout, [S, M, K, H], the cache would be re-laid at each
step, which costs more than everything else together.

S slots, M cache length, K key/value heads, G query heads for each, H head size, V vocabulary;
R prompts of length P are read at once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sbp_jax.model.decoder import Cache, DecoderConfig, Unstacked


def empty_cache(config: DecoderConfig, slots: int, length: int) -> Cache:
    """For each layer keys and values, zeros [S, K, M, H]."""
    shape = (slots, config.kv_heads, length, config.head_size)
    return [
        (jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
        for _ in range(config.layers)
    ]


def fill(cache: Cache, prefilled: Cache, slots_R: jax.Array) -> Cache:
    """Puts what prompts left in a cache of the model's layout, [R, P, K, H], into slots.

    Args:
      cache: of the slots.
      prefilled: of the prompts.
      slots_R: int32; a slot of S or more is nowhere, and its prompt is dropped.
    """
    length = prefilled[0][0].shape[1]

    def put(old, new):
        return old.at[slots_R, :, :length].set(new.swapaxes(1, 2), mode="drop")

    return [
        (put(keys, new_keys), put(values, new_values))
        for (keys, values), (new_keys, new_values) in zip(cache, prefilled, strict=True)
    ]


def decode(
    model: Unstacked, cache: Cache, tokens_S: jax.Array, positions_S: jax.Array
) -> tuple[jax.Array, Cache]:
    """Reads a token a slot; what `Unstacked.extend` does for L = 1.

    Args:
      model: layers taken apart.
      cache: a position of it holds the token of that position.
      tokens_S: int32.
      positions_S: int32, of these tokens; what the cache holds from there on is not seen.

    Returns:
      Logits float32 [S, V] after the tokens, and the cache.
    """
    slots_S = jnp.arange(len(tokens_S))
    length = cache[0][0].shape[2]
    seen_S11M = (jnp.arange(length) <= positions_S[:, None])[:, None, None]
    x_S1D = model.outer.embed(tokens_S[:, None])
    extended: Cache = []
    for block, (keys, values) in zip(model.layers, cache, strict=True):

        def attend(q_S1NH, k_S1KH, v_S1KH, keys=keys, values=values):
            keys_SKMH = keys.at[slots_S, :, positions_S].set(k_S1KH[:, 0])
            values_SKMH = values.at[slots_S, :, positions_S].set(v_S1KH[:, 0])
            extended.append((keys_SKMH, values_SKMH))
            return attention(q_S1NH, keys_SKMH, values_SKMH, seen_S11M)

        x_S1D = block(x_S1D, positions_S[:, None], attend)
    return model.outer.logits(x_S1D[:, 0]), extended


def attention(
    q_S1NH: jax.Array, k_SKMH: jax.Array, v_SKMH: jax.Array, seen_S11M: jax.Array
) -> jax.Array:
    """Grouped-query attention of one query a slot, [S, 1, N, H]; the softmax runs in float32."""
    slots, kv_heads, _, size = k_SKMH.shape
    q_SKGH = q_S1NH.reshape(slots, kv_heads, -1, size)
    scores_SKGM = jnp.einsum(
        "skgh,skmh->skgm", q_SKGH, k_SKMH, preferred_element_type=jnp.float32
    ) * (size**-0.5)
    shares_SKGM = jax.nn.softmax(jnp.where(seen_S11M, scores_SKGM, -jnp.inf), axis=-1)
    o_SKGH = jnp.einsum("skgm,skmh->skgh", shares_SKGM.astype(v_SKMH.dtype), v_SKMH)
    return o_SKGH.reshape(q_S1NH.shape)
