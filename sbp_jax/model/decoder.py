"""The decoder: one Llama-3 style Transformer as language model, synthesizer and embedder.

RMSNorm, rotary positions, grouped-query attention, SwiGLU, and optionally a norm on queries and
keys. Layers are stacked along a leading dimension and scanned in training; the sampler takes them
apart again (`unstack`), one array a layer, because a cache under a scan is copied at each step.

B batch, L length, D width, N heads, K key/value heads, H head size, F hidden, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
from flax import nnx

from sbp_jax.errors import UserError
from sbp_jax.model.attention import attention, cache_mask, segment_mask
from sbp_jax.parallel.mesh import Layout
from sbp_jax.settings import configurable

REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@configurable
@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and numerics of a decoder.

    Attributes:
      vocab_size: V.
      width: D, of the residual stream.
      layers: number of blocks.
      heads: N, query heads.
      kv_heads: K, key/value heads; divides `heads`.
      head_size: H, even.
      hidden: F, width of the SwiGLU layer.
      rope_theta: base of the rotary frequencies.
      norm_epsilon: added to the mean square in RMSNorm.
      qk_norm: normalise queries and keys per head before the rotation.
      tied: the embedding serves as output layer too.
      dtype: of activations and matrix products; parameters are float32.
      remat: what the backward pass recomputes: `none` (nothing), `minimal` (all but matrix
        products), `full` (each block from its input).
    """

    vocab_size: int = gin.REQUIRED
    width: int = gin.REQUIRED
    layers: int = gin.REQUIRED
    heads: int = gin.REQUIRED
    kv_heads: int = gin.REQUIRED
    head_size: int = gin.REQUIRED
    hidden: int = gin.REQUIRED
    rope_theta: float = 500_000.0
    norm_epsilon: float = 1e-5
    qk_norm: bool = True
    tied: bool = True
    dtype: str = "bfloat16"
    remat: str = "none"

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise UserError(
                f"DecoderConfig: heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}"
            )
        if self.head_size % 2:
            raise UserError(f"DecoderConfig: head_size = {self.head_size} must be even (rotation)")
        if self.remat not in REMAT_POLICIES:
            raise UserError(
                f"DecoderConfig: remat = {self.remat!r}: expected one of {list(REMAT_POLICIES)}"
            )
        if self.dtype not in ("bfloat16", "float32", "float16"):
            raise UserError(f"DecoderConfig: dtype = {self.dtype!r}: bfloat16, float16 or float32")


class Dropout:
    """Dropout whose mask depends on a row's own key, not on where in a batch the row stands.

    So the loss is the same for any mesh, number of processes and accumulation steps. The rate is
    rounded to a 256th: one random byte a value costs a quarter of a random word.
    """

    def __init__(self, rate: float, keys_B: jax.Array):
        self.threshold = round(rate * 256)
        self.keys_B = keys_B

    def fold_in(self, index: jax.Array | int) -> Dropout:
        """The same rate with keys of its own for the layer or place `index`."""
        child = Dropout(0.0, jax.vmap(jax.random.fold_in, (0, None))(self.keys_B, index))
        child.threshold = self.threshold
        return child

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        if self.threshold == 0:
            return x_BLD
        bits = jax.vmap(lambda key: jax.random.bits(key, x_BLD.shape[1:], jnp.uint8))(self.keys_B)
        kept = x_BLD * (256 / (256 - self.threshold))
        return jnp.where(bits >= self.threshold, kept, 0).astype(x_BLD.dtype)


def no_dropout(x_BLD: jax.Array) -> jax.Array:
    """What stands in the place of dropout outside training."""
    return x_BLD


def rotate(x_BLNH: jax.Array, positions_BL: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding, halves rotated against each other (arXiv 2104.09864)."""
    half = x_BLNH.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles_BLH = positions_BL[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles_BLH)[:, :, None], jnp.sin(angles_BLH)[:, :, None]
    first, second = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BLNH.dtype)


class RMSNorm(nnx.Module):
    """Division by the root mean square over the last dimension, in float32, times a scale."""

    def __init__(self, size: int, epsilon: float, axis: str | None):
        self.scale = nnx.Param(jnp.ones(size), axes=(axis,))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(mean_square + self.epsilon) * self.scale[...]).astype(x.dtype)


def matrix(
    rngs: nnx.Rngs, shape: Sequence[int], axes: Sequence[str | None], inputs: int, gain: float = 1.0
) -> nnx.Param:
    """A weight drawn from a truncated normal of variance gain² / inputs."""
    # 0.8796 is the standard deviation of a unit normal cut at ±2.
    values = jax.random.truncated_normal(rngs.params(), -2.0, 2.0, tuple(shape)) / 0.87962566
    return nnx.Param(values * (gain * inputs**-0.5), axes=tuple(axes))


def project(x: jax.Array, weights: jax.Array, inputs: int = 1, dtype: Any = None) -> jax.Array:
    """Matrix product of the last `inputs` dimensions of x with the first ones of the weights.

    The result is of `dtype`, by default that of x, in which the weights are multiplied.

    One product over all tokens, of two flat matrices: for operands of more dimensions XLA chooses
    layouts on a CPU in which the gradients take three times as long.
    """
    outer, inner = x.shape[: x.ndim - inputs], weights.shape[inputs:]
    size = math.prod(weights.shape[:inputs])
    weights = weights.astype(x.dtype).reshape(size, -1)
    flat = jnp.matmul(x.reshape(-1, size), weights, preferred_element_type=dtype)
    return flat.reshape(*outer, *inner)


class Attention(nnx.Module):
    """Projections around attention; what the queries may look at is the caller's business."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = config
        D, N, K, H = c.width, c.heads, c.kv_heads, c.head_size
        self.query = matrix(rngs, (D, N, H), ("embed", "heads", None), D)
        self.key = matrix(rngs, (D, K, H), ("embed", "kv_heads", None), D)
        self.value = matrix(rngs, (D, K, H), ("embed", "kv_heads", None), D)
        residual_gain = (2 * c.layers) ** -0.5
        self.out = matrix(rngs, (N, H, D), ("heads", None, "embed"), N * H, residual_gain)
        if c.qk_norm:
            self.query_norm = RMSNorm(H, c.norm_epsilon, None)
            self.key_norm = RMSNorm(H, c.norm_epsilon, None)
        self.qk_norm, self.theta = c.qk_norm, c.rope_theta

    def __call__(self, x_BLD: jax.Array, positions_BL: jax.Array, attend: Callable) -> jax.Array:
        q_BLNH = project(x_BLD, self.query[...])
        k_BLKH = project(x_BLD, self.key[...])
        v_BLKH = project(x_BLD, self.value[...])
        if self.qk_norm:
            q_BLNH, k_BLKH = self.query_norm(q_BLNH), self.key_norm(k_BLKH)
        q_BLNH = rotate(q_BLNH, positions_BL, self.theta)
        k_BLKH = rotate(k_BLKH, positions_BL, self.theta)
        o_BLNH = attend(q_BLNH, k_BLKH, v_BLKH)
        return project(o_BLNH, self.out[...], inputs=2)


class SwiGLU(nnx.Module):
    """The gated feed-forward layer (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        D, F = config.width, config.hidden
        self.gate = matrix(rngs, (D, F), ("embed", "mlp"), D)
        self.up = matrix(rngs, (D, F), ("embed", "mlp"), D)
        self.down = matrix(rngs, (F, D), ("mlp", "embed"), F, (2 * config.layers) ** -0.5)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        gate_BLF = project(x_BLD, self.gate[...])
        up_BLF = project(x_BLD, self.up[...])
        return project(jax.nn.silu(gate_BLF) * up_BLF, self.down[...])


class Block(nnx.Module):
    """One layer: attention and feed-forward, each behind a norm and added to the stream."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon, "embed")
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.width, config.norm_epsilon, "embed")
        self.mlp = SwiGLU(config, rngs)

    def __call__(
        self,
        x_BLD: jax.Array,
        positions_BL: jax.Array,
        attend: Callable,
        dropout: Callable = no_dropout,
    ) -> jax.Array:
        first = second = dropout
        if isinstance(dropout, Dropout):
            first, second = dropout.fold_in(0), dropout.fold_in(1)
        x_BLD += first(self.attention(self.attention_norm(x_BLD), positions_BL, attend))
        x_BLD += second(self.mlp(self.mlp_norm(x_BLD)))
        return x_BLD


class Decoder(nnx.Module):
    """Tokens to logits."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        V, D = config.vocab_size, config.width
        # Of the size of what the blocks add to it, or a token's identity is lost among them for
        # hundreds of steps; a tied one makes logits too, which must start small.
        scale = D**-0.5 if config.tied else 1.0
        self.embedding = nnx.Param(
            scale * jax.random.normal(rngs.params(), (V, D)), axes=("vocab", "embed")
        )
        keys = jax.random.split(rngs.params(), config.layers)
        graph, _ = nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))
        stacked = jax.vmap(lambda key: nnx.state(Block(config, nnx.Rngs(params=key))))(keys)
        self.blocks = nnx.merge(graph, stacked)
        self.final_norm = RMSNorm(D, config.norm_epsilon, "embed")
        if not config.tied:
            self.head = matrix(rngs, (D, V), ("embed", "vocab"), D)

    def __call__(
        self,
        tokens_BL: jax.Array,
        segment_ids_BL: jax.Array,
        positions_BL: jax.Array,
        *,
        dropout: Dropout | None = None,
        layout: Layout | None = None,
    ) -> jax.Array:
        """Training's forward pass over packed rows.

        Args:
          tokens_BL: int32, the inputs (targets shifted right within their segment).
          segment_ids_BL: int32; a token sees earlier tokens of its own segment.
          positions_BL: int32, from 0 within each segment.
          dropout: None outside training.
          layout: to which mesh the activations are held; None on one device.

        Returns:
          Logits, float32 [B, L, V].
        """
        x_BLD = self.hidden_states(
            tokens_BL, segment_ids_BL, positions_BL, dropout=dropout, layout=layout
        )
        return self.logits(x_BLD)

    def hidden_states(
        self,
        tokens_BL: jax.Array,
        segment_ids_BL: jax.Array,
        positions_BL: jax.Array,
        *,
        layer: int | None = None,
        dropout: Dropout | None = None,
        layout: Layout | None = None,
    ) -> jax.Array:
        """The residual stream [B, L, D] after `layer` blocks (all of them by default)."""
        constrain = layout.constrain if layout else (lambda x, *names: x)
        mask_BLM = segment_mask(segment_ids_BL)
        x_BLD = self.embed(tokens_BL)
        if dropout:
            x_BLD = dropout.fold_in(self.config.layers)(x_BLD)
        x_BLD = constrain(x_BLD, "batch", None, None)
        graph, stacked = nnx.split(self.blocks)

        def attend(q, k, v):
            return attention(q, k, v, mask_BLM)

        def body(x_BLD, layer_state):
            state, index = layer_state
            inner = dropout.fold_in(index) if dropout else no_dropout
            x_BLD = nnx.merge(graph, state)(x_BLD, positions_BL, attend, inner)
            return constrain(x_BLD, "batch", None, None), None

        if self.config.remat != "none":
            body = jax.checkpoint(body, policy=REMAT_POLICIES[self.config.remat])
        depth = self.config.layers if layer is None else layer
        stacked = jax.tree.map(lambda a: a[:depth], stacked)
        x_BLD, _ = jax.lax.scan(body, x_BLD, (stacked, jnp.arange(depth)))
        return x_BLD

    def embed(self, tokens_BL: jax.Array) -> jax.Array:
        """Token embeddings [B, L, D] in the compute dtype."""
        return jnp.take(self.embedding[...], tokens_BL, axis=0).astype(self.config.dtype)

    def logits(self, x: jax.Array) -> jax.Array:
        """Logits float32 [..., V] of the last block's output [..., D]."""
        weights_DV = self.embedding[...].T if self.config.tied else self.head[...]
        return project(self.final_norm(x), weights_DV, dtype=jnp.float32)


# A key/value cache: for each layer keys and values, [S, M, K, H] each.
Cache = list[tuple[jax.Array, jax.Array]]


def empty_cache(config: DecoderConfig, slots: int, length: int) -> Cache:
    """A cache for `slots` sequences of up to `length` tokens, one pair of arrays a layer."""
    shape = (slots, length, config.kv_heads, config.head_size)
    return [
        (jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
        for _ in range(config.layers)
    ]


class Unstacked(nnx.Module):
    """The decoder with its layers apart, for the sampler: weights and cache one array a layer."""

    def __init__(self, decoder: Decoder):
        graph, stacked = nnx.split(decoder.blocks)
        self.config = decoder.config
        self.layers = nnx.List(
            nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], stacked))
            for i in range(decoder.config.layers)
        )
        del decoder.blocks
        self.outer = decoder

    def extend(
        self, cache: Cache, tokens_SL: jax.Array, start_S: jax.Array, take_S: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Reads L more tokens a slot: a prompt (prefill) or one token (decode).

        Keys and values are written to the cache at `start_S` and on; the cache's index is the
        token's position, so what a longer, padded prompt left behind a slot's end is overwritten
        before it can be seen.

        Args:
          cache: of M positions.
          tokens_SL: int32; past a prompt's end anything.
          start_S: int32, position of the first of them; start + L ≤ M.
          take_S: int32 in [0, L), which of the L gives the logits.

        Returns:
          Logits float32 [S, V] after token `take_S`, and the cache.
        """
        slots, length = tokens_SL.shape
        positions_SL = start_S[:, None] + jnp.arange(length)
        rows_S1 = jnp.arange(slots)[:, None]
        mask_SLM = cache_mask(positions_SL, cache[0][0].shape[1])
        x_SLD = self.outer.embed(tokens_SL)
        extended: Cache = []
        for block, (keys, values) in zip(self.layers, cache, strict=True):

            def attend(q, k, v, keys=keys, values=values):
                keys = keys.at[rows_S1, positions_SL].set(k)
                values = values.at[rows_S1, positions_SL].set(v)
                extended.append((keys, values))
                return attention(q, keys, values, mask_SLM)

            x_SLD = block(x_SLD, positions_SL, attend)
        taken_SD = jnp.take_along_axis(x_SLD, take_S[:, None, None], axis=1)[:, 0]
        return self.outer.logits(taken_SD), extended


def initialise(config: DecoderConfig, key: jax.Array) -> Decoder:
    """A decoder with random weights."""
    return Decoder(config, nnx.Rngs(params=key))


def structure(config: DecoderConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """Graph and parameter shapes of a decoder, without any memory for its weights."""
    return nnx.split(nnx.eval_shape(lambda: initialise(config, jax.random.key(0))))


def parameter_count(config: DecoderConfig) -> int:
    """Number of parameters, a tied embedding counted once."""
    return sum(leaf.size for leaf in jax.tree.leaves(structure(config)[1]))


def train_flops_per_token(config: DecoderConfig, length: int) -> float:
    """Model FLOPs of one training token: 6 a weight in matrix products, and causal attention.

    The embedding look-up costs nothing; the output layer, tied or not, is counted. Attention is
    6 · L · N · H a layer: scores and weighted sum, forward and backward, half masked (the formula
    of arXiv 2204.02311, appendix B, with the causal half).
    """
    c = config
    block = c.width * c.head_size * (2 * c.heads + 2 * c.kv_heads) + 3 * c.width * c.hidden
    products = c.layers * block + c.width * c.vocab_size
    return 6.0 * products + 6.0 * c.layers * length * c.heads * c.head_size
