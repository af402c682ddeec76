"""One decode step: one more token in every slot, read against the cache.

S slots, M cache length, K key/value heads, G query heads for each, N = K · G, H head size,
V vocabulary; R prompts of length P are read at once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sbp_jax.model.decoder import Cache, Unstacked, rotations


def fill(cache: Cache, prefilled: Cache, slots_R: jax.Array) -> Cache:
    """Puts what prompts left in a cache of their own, [R, K, P, H], into slots.

    Args:
      cache: of the slots.
      prefilled: of the prompts.
      slots_R: int32; a slot of S or more is nowhere, and its prompt is dropped.
    """
    length = prefilled[0][0].shape[2]

    def put(old, new):
        return old.at[slots_R, :, :length].set(new, mode="drop")

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
    rotations_S11H = rotations(model.config, positions_S[:, None])
    extended: Cache = []
    for block, (keys, values) in zip(model.layers, cache, strict=True):

        def attend(q_SN1H, k_SK1H, v_SK1H, keys=keys, values=values):
            keys_SKMH = keys.at[slots_S, :, positions_S].set(k_SK1H[:, :, 0])
            values_SKMH = values.at[slots_S, :, positions_S].set(v_SK1H[:, :, 0])
            extended.append((keys_SKMH, values_SKMH))
            return attention(q_SN1H, keys_SKMH, values_SKMH, seen_S11M)

        x_S1D = block(x_S1D, rotations_S11H, attend)
    return model.outer.logits(x_S1D[:, 0]), extended


def attention(
    q_SN1H: jax.Array, k_SKMH: jax.Array, v_SKMH: jax.Array, seen_S11M: jax.Array
) -> jax.Array:
    """Grouped-query attention of one query a slot, [S, N, 1, H]; the softmax runs in float32."""
    slots, kv_heads, _, size = k_SKMH.shape
    q_SKGH = q_SN1H.reshape(slots, kv_heads, -1, size)
    scores_SKGM = jnp.einsum(
        "skgh,skmh->skgm", q_SKGH, k_SKMH, preferred_element_type=jnp.float32
    ) * (size**-0.5)
    shares_SKGM = jax.nn.softmax(jnp.where(seen_S11M, scores_SKGM, -jnp.inf), axis=-1)
    o_SKGH = jnp.einsum("skgm,skmh->skgh", shares_SKGM.astype(v_SKMH.dtype), v_SKMH)
    return o_SKGH.reshape(q_SN1H.shape)
