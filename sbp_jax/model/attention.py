"""Attention: backends behind one function, and the masks.

B batch, L query length, M key length, N query heads, K key/value heads, H head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, cast

import jax
from jax import numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from sbp_jax.errors import UserError
from sbp_jax.parallel.mesh import Layout

BACKENDS = ("auto", "xla", "splash", "cudnn")

# Without a kernel, a row's queries come in so many blocks, and each computes the scores of the keys
# up to its own end: of all scores 5/8. Blocks of fewer positions than these cost more than that.
XLA_BLOCKS, XLA_TILE = 4, 64

# Splash works on tiles of this many positions at least, and no more than so many.
SPLASH_TILE, SPLASH_MOST = 128, 1024


def packed_attention(
    backend: str, segment_ids_BL: jax.Array, layout: Layout | None = None
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """Causal self-attention within the segments of packed rows.

    Args:
      backend: `xla` computes and holds the scores, everywhere. `splash` is JAX's TPU kernel, which
        never holds them; off the TPU it is interpreted, for tests. `cudnn` is the fused attention
        of NVIDIA GPUs. `auto` chooses.
      segment_ids_BL: int, equal for tokens that may see each other; 0 is padding, which sees only
        padding.
      layout: of the arrays; None on one device.

    Returns:
      (queries [B, N, L, H], keys [B, K, L, H], values [B, K, L, H]) → [B, N, L, H]. Each key/value
      head serves N/K query heads; a masked key has a weight of exactly zero, so nothing behind the
      mask can change a bit of the result.

    Raises:
      UserError: (when it is called) the backend cannot do this, here or for these shapes.
    """

    def attend(q_BNLH: jax.Array, k_BKLH: jax.Array, v_BKLH: jax.Array) -> jax.Array:
        chosen = _choose(backend, _platform(layout), q_BNLH.shape[2])
        if chosen == "splash":
            return _splash(q_BNLH, k_BKLH, v_BKLH, segment_ids_BL, layout)
        mask_BLM = segment_mask(segment_ids_BL)
        if chosen == "cudnn":
            return _cudnn(q_BNLH, k_BKLH, v_BKLH, mask_BLM)
        return _causal(q_BNLH, k_BKLH, v_BKLH, mask_BLM)

    return attend


def _causal(q_BNLH, k_BKLH, v_BKLH, mask_BLM) -> jax.Array:
    """`attention` where no query looks at a later key: those scores are not even computed."""
    length = q_BNLH.shape[2]
    block = max(XLA_TILE, -(-length // XLA_BLOCKS))

    def one(start: int) -> jax.Array:
        end = min(start + block, length)
        keys_BKMH, values_BKMH = k_BKLH[:, :, :end], v_BKLH[:, :, :end]
        return attention(
            q_BNLH[:, :, start:end], keys_BKMH, values_BKMH, mask_BLM[:, start:end, :end]
        )

    return jnp.concatenate([one(start) for start in range(0, length, block)], axis=2)


def attention(
    q_BNLH: jax.Array, k_BKMH: jax.Array, v_BKMH: jax.Array, mask_BLM: jax.Array
) -> jax.Array:
    """Grouped-query attention under any mask; the softmax runs in float32.

    Args:
      q_BNLH: queries.
      k_BKMH: keys.
      v_BKMH: values.
      mask_BLM: bool, True where a query may look; no row may be False throughout.

    Returns:
      [B, N, L, H], in the dtype of the queries.
    """
    batch, heads, _, size = q_BNLH.shape
    kv_heads = k_BKMH.shape[1]
    # The queries that share keys, G = N / K · L of them, are the rows of one product.
    q_BKGH = (q_BNLH * size**-0.5).reshape(batch, kv_heads, -1, size)
    mask_B1GM = jnp.tile(mask_BLM[:, None], (1, 1, heads // kv_heads, 1))
    scores_BKGM = jnp.matmul(q_BKGH, k_BKMH.swapaxes(2, 3), preferred_element_type=jnp.float32)
    scores_BKGM = jnp.where(mask_B1GM, scores_BKGM, -jnp.inf)
    most_BKG1 = jax.lax.stop_gradient(scores_BKGM.max(-1, keepdims=True))
    weights_BKGM = jnp.exp(scores_BKGM - most_BKG1)
    sum_BKG1 = weights_BKGM.sum(-1, keepdims=True)
    sums_BKGH = jnp.matmul(
        weights_BKGM.astype(v_BKMH.dtype), v_BKMH, preferred_element_type=jnp.float32
    )
    # There are fewer sums to divide than weights.
    return (sums_BKGH / sum_BKG1).astype(q_BNLH.dtype).reshape(q_BNLH.shape)


def _cudnn(q_BNLH, k_BKMH, v_BKMH, mask_BLM) -> jax.Array:
    q_BLNH, k_BMKH, v_BMKH = (x.swapaxes(1, 2) for x in (q_BNLH, k_BKMH, v_BKMH))
    o_BLNH = jax.nn.dot_product_attention(
        q_BLNH, k_BMKH, v_BMKH, mask=mask_BLM[:, None], implementation="cudnn"
    )
    return o_BLNH.swapaxes(1, 2)


def segment_mask(segment_ids_BL: jax.Array) -> jax.Array:
    """Causal attention within segments: bool [B, L, L]."""
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


def _platform(layout: Layout | None) -> str:
    return (layout.mesh.devices.flat[0] if layout else jax.devices()[0]).platform


def _choose(backend: str, platform: str, length: int) -> Literal["xla", "cudnn", "splash"]:
    """The backend for `auto`; and whether the one asked for can do it."""
    if backend == "auto":
        if platform == "tpu" and length % SPLASH_TILE == 0:
            return "splash"
        return "xla"
    if backend == "splash" and length % SPLASH_TILE:
        raise UserError(
            f"attention: splash needs rows of a multiple of {SPLASH_TILE} tokens, these have "
            f"{length}: cache rows of another length, or set ComputeConfig.attention = 'xla'"
        )
    if backend == "cudnn" and platform not in ("gpu", "cuda"):
        raise UserError(
            f"attention: cudnn runs on NVIDIA GPUs and these devices are {platform}: "
            "set ComputeConfig.attention = 'auto'"
        )
    return cast(Literal["xla", "cudnn", "splash"], backend)


def _splash(
    q_BNLH: jax.Array,
    k_BKLH: jax.Array,
    v_BKLH: jax.Array,
    segment_ids_BL: jax.Array,
    layout: Layout | None,
) -> jax.Array:
    kernel = functools.partial(_splash_on_one_device, interpret=_platform(layout) != "tpu")
    if layout:
        q_spec = layout.sharding("batch", "heads", None, None).spec
        k_spec = layout.sharding("batch", "kv_heads", None, None).spec
        kernel = jax.shard_map(
            kernel,
            mesh=layout.mesh,
            in_specs=(q_spec, k_spec, k_spec, PartitionSpec(q_spec[0], None)),
            out_specs=q_spec,
            check_vma=False,  # a Pallas call does not say along which axes its result varies
        )
    return kernel(q_BNLH * q_BNLH.shape[-1] ** -0.5, k_BKLH, v_BKLH, segment_ids_BL)


def _splash_on_one_device(q_BNLH, k_BKLH, v_BKLH, segment_ids_BL, *, interpret: bool) -> jax.Array:
    _, heads, length, _ = q_BNLH.shape
    block = max(b for b in range(SPLASH_TILE, SPLASH_MOST + 1, SPLASH_TILE) if length % b == 0)
    mask = splash_attention.CausalMask((length, length))
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="context",
        interpret=interpret,
    )

    def one_row(q_NLH, k_KLH, v_KLH, segment_ids_L):
        segments = splash_attention.SegmentIds(segment_ids_L, segment_ids_L)
        return kernel(q_NLH, k_KLH, v_KLH, segments)

    return jax.vmap(one_row)(q_BNLH, k_BKLH, v_BKLH, segment_ids_BL)
