"""Attention over masked keys, and the masks.

B batch, L query length, M key length, N query heads, K key/value heads, H head size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attention(
    q_BLNH: jax.Array, k_BMKH: jax.Array, v_BMKH: jax.Array, mask_BLM: jax.Array
) -> jax.Array:
    """Grouped-query attention; each key/value head serves N/K query heads.

    The softmax runs in float32. A masked key has a weight of exactly zero, so nothing behind the
    mask can change a bit of the result.

    Args:
      q_BLNH: queries.
      k_BMKH: keys.
      v_BMKH: values.
      mask_BLM: bool, True where a query may look; no row may be False throughout.

    Returns:
      [B, L, N, H], in the dtype of the queries.
    """
    return jax.nn.dot_product_attention(
        q_BLNH, k_BMKH, v_BMKH, mask=mask_BLM[:, None], implementation="xla"
    )


def segment_mask(segment_ids_BL: jax.Array) -> jax.Array:
    """Causal attention within segments: bool [B, L, L].

    Args:
      segment_ids_BL: int, equal for tokens that may see each other; 0 is padding, which sees only
        padding.
    """
    length = segment_ids_BL.shape[1]
    same_BLM = segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :]
    causal_LM = jnp.tril(jnp.ones((length, length), bool))
    return same_BLM & causal_LM


def cache_mask(positions_BL: jax.Array, cache_length: int) -> jax.Array:
    """Attention into a cache whose index is the position: bool [B, L, M].

    What lies in the cache behind a query's own position (an earlier document's keys, padding of a
    prompt) is never seen.
    """
    return jnp.arange(cache_length)[None, None, :] <= positions_BL[:, :, None]
