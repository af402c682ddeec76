"""Attention of one new token in every slot, which reads the cache as far as its slot has come.

What a slot gets depends on its own keys and values alone, to the bit: neither on how far others
have come nor on which slot it is.

S slots, M cache length, K key/value heads, G query heads for each, N = K · G, H head size.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

PAGE = 128  # positions; M is a multiple of it
BLOCK = 64  # of them that the loop reads at a time
KERNEL_PAGES = 4  # that JAX's kernel has in a TPU core's memory at a time, at most
KERNEL_HEAD = 128  # H of which is a multiple for it


def attend(
    q_SNH: jax.Array,
    k_KSMH: jax.Array,
    v_KSMH: jax.Array,
    lengths_S: jax.Array,
    cores: int = 1,
) -> jax.Array:
    """Grouped-query attention of one query a slot, [S, N, H]; the softmax runs in float32.

    On TPUs JAX's paged attention, with the cache for pages that lie in order; elsewhere a loop over
    blocks of the cache with a running maximum ("Online normalizer calculation for softmax",
    arXiv 1805.02867).

    Args:
      q_SNH: queries.
      k_KSMH: keys, of the queries' dtype or whole numbers (int8).
      v_KSMH: values, likewise.
      lengths_S: int32, at least 1: so many positions are seen.
      cores: of a TPU chip that act as one device.
    """
    by_slot = functools.partial(_in_blocks, tile=1)
    together = functools.partial(_in_blocks, tile=len(q_SNH))
    tpu = functools.partial(_paged, cores=cores)
    if q_SNH.shape[2] % KERNEL_HEAD:
        tpu = together
    return jax.lax.platform_dependent(
        q_SNH, k_KSMH, v_KSMH, lengths_S, tpu=tpu, cpu=by_slot, default=together
    )


def _paged(
    q_SNH: jax.Array, k_KSMH: jax.Array, v_KSMH: jax.Array, lengths_S: jax.Array, *, cores: int
) -> jax.Array:
    """JAX's TPU kernel."""
    kv_heads, slots, length, size = k_KSMH.shape
    pages = length // PAGE
    at_once = max(n for n in range(1, KERNEL_PAGES + 1) if pages % n == 0)
    mode = None
    if cores == 2:
        mode = "kv_head" if kv_heads % 2 == 0 else "batch" if slots % 2 == 0 else None
    return paged_attention(
        q_SNH * jnp.asarray(size**-0.5, q_SNH.dtype),
        k_KSMH.reshape(kv_heads, slots * pages, PAGE, size),
        v_KSMH.reshape(kv_heads, slots * pages, PAGE, size),
        lengths_S,
        jnp.arange(slots * pages, dtype=jnp.int32).reshape(slots, pages),
        pages_per_compute_block=at_once,
        megacore_mode=mode,
    )


def _in_blocks(
    q_SNH: jax.Array, k_KSMH: jax.Array, v_KSMH: jax.Array, lengths_S: jax.Array, *, tile: int
) -> jax.Array:
    """Tiles of slots one after the other, each as far as the longest of it.

    A block behind a slot's end weighs exactly nothing, and multiplies by exactly one.
    """
    kv_heads, slots, _, size = k_KSMH.shape
    q_SKGH = q_SNH.reshape(slots, kv_heads, -1, size)

    def one(first):
        lengths_T = jax.lax.dynamic_slice_in_dim(lengths_S, first, tile)
        q_TKGH = jax.lax.dynamic_slice_in_dim(q_SKGH, first, tile)

        def unfinished(carry):
            return carry[0] < jnp.max(lengths_T)

        def step(carry):
            start, most_TKG, sum_TKG, o_TKGH = carry
            shape = kv_heads, tile, BLOCK, size
            k_KTBH, v_KTBH = (
                jax.lax.dynamic_slice(x, (0, first, start, 0), shape).astype(q_SNH.dtype)
                for x in (k_KSMH, v_KSMH)
            )
            # The cache stands first: a CPU multiplies many rows with few faster so.
            scores_KTBG = size**-0.5 * jnp.einsum(
                "ktbh,tkgh->ktbg", k_KTBH, q_TKGH, preferred_element_type=jnp.float32
            )
            scores_TKGB = scores_KTBG.transpose(1, 0, 3, 2)
            seen_TB = start + jnp.arange(BLOCK) < lengths_T[:, None]
            scores_TKGB = jnp.where(seen_TB[:, None, None], scores_TKGB, -jnp.inf)
            higher_TKG = jnp.maximum(most_TKG, scores_TKGB.max(axis=-1))
            shares_TKGB = jnp.exp(scores_TKGB - higher_TKG[..., None])
            before_TKG = jnp.exp(most_TKG - higher_TKG)
            added_KTHG = jnp.einsum(
                "ktbh,tkgb->kthg",
                v_KTBH,
                shares_TKGB.astype(v_KTBH.dtype),
                preferred_element_type=jnp.float32,
            )
            return (
                start + BLOCK,
                higher_TKG,
                sum_TKG * before_TKG + shares_TKGB.sum(axis=-1),
                o_TKGH * before_TKG[..., None] + added_KTHG.transpose(1, 0, 3, 2),
            )

        heads = q_TKGH.shape[:3]
        nothing = jnp.full(heads, -jnp.inf), jnp.zeros(heads), jnp.zeros(q_TKGH.shape)
        _, _, sum_TKG, o_TKGH = jax.lax.while_loop(unfinished, step, (0, *nothing))
        return (o_TKGH / sum_TKG[..., None]).astype(q_SNH.dtype)

    if tile == slots:
        return one(0).reshape(q_SNH.shape)
    return jax.lax.map(one, jnp.arange(0, slots, tile)).reshape(q_SNH.shape)
