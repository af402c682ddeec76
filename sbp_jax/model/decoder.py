"""The decoder: one Llama-3 style Transformer as language model, synthesizer and embedder.

RMSNorm, rotary positions, grouped-query attention, SwiGLU, and optionally a norm on queries and
keys. Layers are stacked along a leading dimension and scanned in training; the sampler takes them
apart again (`unstack`), one array a layer, because a cache under a scan is copied at each step.

B batch, L length, D width, N heads, K key/value heads, H head size, F hidden, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from sbp_jax.errors import UserError
from sbp_jax.model.attention import attention, cache_mask, packed_attention
from sbp_jax.model.compute import ComputeConfig
from sbp_jax.model.int8 import Int8
from sbp_jax.parallel.mesh import Layout
from sbp_jax.settings import configurable


@configurable
@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Slower rotations for longer texts, as Llama 3.1 has them.

    Frequencies that turn less than `low_frequency_factor` times over the original length are
    divided by `factor`, those that turn more than `high_frequency_factor` times stay, and between
    them the two are blended.

    Attributes:
      factor: by which the slow ones are slowed.
      low_frequency_factor: turns, below `high_frequency_factor`.
      high_frequency_factor: turns.
      original_length: tokens, of the texts trained on before.
    """

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192

    def __call__(self, frequencies: jax.Array) -> jax.Array:
        """Scaled frequencies, in radians a token."""
        turns = self.original_length * frequencies / (2 * jnp.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        return frequencies * (kept + (1 - kept) / self.factor)


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
      rope_scaling: how they are scaled; None for not at all.
      norm_epsilon: added to the mean square in RMSNorm.
      qk_norm: normalise queries and keys per head before the rotation.
      tied: the embedding serves as output layer too.
      base_width: the width for which learning rate and weight decay were chosen. For another they
        need no new choice: initial values and learning rates of single parameters follow from the
        ratio (µP, arXiv 2203.03466, table 8, for Adam). Hidden sizes and heads are taken to grow
        with the width, the head size to stay. None: every width is its own base.
      dtype: of activations and matrix products; parameters are float32.
    """

    vocab_size: int = gin.REQUIRED
    width: int = gin.REQUIRED
    layers: int = gin.REQUIRED
    heads: int = gin.REQUIRED
    kv_heads: int = gin.REQUIRED
    head_size: int = gin.REQUIRED
    hidden: int = gin.REQUIRED
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-5
    qk_norm: bool = True
    tied: bool = True
    base_width: int | None = None
    dtype: str = "bfloat16"

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise UserError(
                f"DecoderConfig: heads = {self.heads} is no multiple of kv_heads = {self.kv_heads}"
            )
        if self.head_size % 2:
            raise UserError(f"DecoderConfig: head_size = {self.head_size} must be even (rotation)")
        if self.dtype not in ("bfloat16", "float32", "float16"):
            raise UserError(f"DecoderConfig: dtype = {self.dtype!r}: bfloat16, float16 or float32")
        if self.base_width is not None and self.base_width < 1:
            raise UserError(f"DecoderConfig: base_width = {self.base_width} must be at least 1")

    @property
    def width_ratio(self) -> float:
        """The base width over the width; 1 without a base."""
        return (self.base_width or self.width) / self.width


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


def rotations(config: DecoderConfig, positions_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and signed sines of the rotary embedding's angles, float32 [B, 1, L, H]."""
    half = config.head_size // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if config.rope_scaling:
        frequencies = config.rope_scaling(frequencies)
    angles_B1LH = positions_BL[:, None, :, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles_B1LH), jnp.sin(angles_B1LH)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def rotate(x_BNLH: jax.Array, rotations_B1LH: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary position embedding, halves rotated against each other (arXiv 2104.09864)."""
    cos_B1LH, sin_B1LH = rotations_B1LH
    half = x_BNLH.shape[-1] // 2

    def by_product(x):
        # A TPU swaps its lanes faster, and as exactly, by a product with a permutation.
        swap_HH = jnp.roll(jnp.eye(2 * half, dtype=x.dtype), half, axis=1)
        return jnp.matmul(x, swap_HH, precision="highest")

    def by_copy(x):
        return jnp.roll(x, half, axis=-1)

    swapped_BNLH = jax.lax.platform_dependent(x_BNLH, tpu=by_product, default=by_copy)
    return (x_BNLH * cos_B1LH + swapped_BNLH * sin_B1LH).astype(x_BNLH.dtype)


class RMSNorm(nnx.Module):
    """Division by the root mean square over the last dimension, in float32, times a scale."""

    def __init__(self, size: int, epsilon: float, scale: float = 1.0):
        self.scale = nnx.Param(jnp.full(size, scale, jnp.float32), axes=(None,))
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


def project(x: jax.Array, weights: jax.Array | Int8, dtype: Any = None) -> jax.Array:
    """Matrix product of x [..., inputs] with weights [inputs, outputs], of `dtype` (default: x's).

    One product over all tokens, of two flat matrices: for operands of more dimensions XLA chooses
    layouts on a CPU in which the gradients take three times as long.
    """
    if isinstance(weights, Int8):
        product = project(x, weights.values.astype(x.dtype), jnp.float32)
        return (product * weights.scales.reshape(-1)).astype(dtype or x.dtype)
    flat = jnp.matmul(x.reshape(-1, x.shape[-1]), weights, preferred_element_type=dtype)
    return flat.reshape(*x.shape[:-1], -1)


def to_heads(x_BLD: jax.Array, weights_DNH: jax.Array | Int8) -> jax.Array:
    """The product of x and weights with heads before positions, as attention wants it: BNLH.

    On a TPU the product writes it so at no cost; a CPU is faster with flat matrices (`project`).
    """

    def direct(x_BLD, weights_DNH):
        return jnp.einsum("BLD,DNH->BNLH", x_BLD, weights_DNH)

    def flat(x_BLD, weights_DNH):
        heads, size = weights_DNH.shape[1:]
        return by_heads(project(x_BLD, weights_DNH.reshape(-1, heads * size)), heads, size)

    def by_heads(product, heads, size):
        return product.reshape(*product.shape[:2], heads, size).swapaxes(1, 2)

    if isinstance(weights_DNH, Int8):
        return by_heads(project(x_BLD, weights_DNH), *weights_DNH.scales.shape)
    return jax.lax.platform_dependent(x_BLD, weights_DNH, tpu=direct, default=flat)


def from_heads(x_BNLH: jax.Array, weights_NHD: jax.Array | Int8) -> jax.Array:
    """The way back: the product of all heads' results with weights, BLD."""

    def direct(x_BNLH, weights_NHD):
        return jnp.einsum("BNLH,NHD->BLD", x_BNLH, weights_NHD)

    def flat(x_BNLH, weights_NHD):
        return project(joined(x_BNLH), weights_NHD.reshape(-1, weights_NHD.shape[-1]))

    def joined(x_BNLH):
        x_BLNH = x_BNLH.swapaxes(1, 2)
        return x_BLNH.reshape(*x_BLNH.shape[:2], -1)

    if isinstance(weights_NHD, Int8):
        return project(joined(x_BNLH), weights_NHD)
    return jax.lax.platform_dependent(x_BNLH, weights_NHD, tpu=direct, default=flat)


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
            self.query_norm = RMSNorm(H, c.norm_epsilon)
            self.key_norm = RMSNorm(H, c.norm_epsilon)
        self.qk_norm = c.qk_norm

    def __call__(
        self, x_BLD: jax.Array, rotations_B1LH: tuple[jax.Array, jax.Array], attend: Callable
    ) -> jax.Array:
        q_BNLH = checkpoint_name(to_heads(x_BLD, self.query.get_value()), "query")
        k_BKLH = checkpoint_name(to_heads(x_BLD, self.key.get_value()), "key")
        v_BKLH = checkpoint_name(to_heads(x_BLD, self.value.get_value()), "value")
        if self.qk_norm:
            q_BNLH, k_BKLH = self.query_norm(q_BNLH), self.key_norm(k_BKLH)
        q_BNLH = checkpoint_name(rotate(q_BNLH, rotations_B1LH), "rotated_query")
        k_BKLH = checkpoint_name(rotate(k_BKLH, rotations_B1LH), "rotated_key")
        o_BNLH = checkpoint_name(attend(q_BNLH, k_BKLH, v_BKLH), "context")
        return checkpoint_name(from_heads(o_BNLH, self.out.get_value()), "attention_out")


@jax.custom_vjp
def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) · up. Its gradient is made of the two alone: nothing else is kept for it."""
    return jax.nn.silu(gate) * up


def _gated_backward(
    kept: tuple[jax.Array, jax.Array], by: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # Behind the barrier the sigmoid is computed again, not kept for this from the forward pass.
    gate, up = jax.lax.optimization_barrier(kept)
    open_ = jax.nn.sigmoid(gate)
    return by * up * open_ * (1 + gate * (1 - open_)), by * gate * open_


gated.defvjp(lambda gate, up: (gated(gate, up), (gate, up)), _gated_backward)


class SwiGLU(nnx.Module):
    """The gated feed-forward layer (arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        D, F = config.width, config.hidden
        self.gate = matrix(rngs, (D, F), ("embed", "mlp"), D)
        self.up = matrix(rngs, (D, F), ("embed", "mlp"), D)
        self.down = matrix(rngs, (F, D), ("mlp", "embed"), F, (2 * config.layers) ** -0.5)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        gate_BLF = checkpoint_name(project(x_BLD, self.gate.get_value()), "gate")
        up_BLF = checkpoint_name(project(x_BLD, self.up.get_value()), "up")
        gated_BLF = checkpoint_name(gated(gate_BLF, up_BLF), "gated")
        return checkpoint_name(project(gated_BLF, self.down.get_value()), "mlp_out")


class Block(nnx.Module):
    """One layer: attention and feed-forward, each behind a norm and added to the stream."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.width, config.norm_epsilon)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = SwiGLU(config, rngs)

    def __call__(
        self,
        x_BLD: jax.Array,
        rotations_B1LH: tuple[jax.Array, jax.Array],
        attend: Callable,
        dropout: Callable = no_dropout,
    ) -> jax.Array:
        first = second = dropout
        if isinstance(dropout, Dropout):
            first, second = dropout.fold_in(0), dropout.fold_in(1)
        normed_BLD = checkpoint_name(self.attention_norm(x_BLD), "attention_in")
        x_BLD += first(self.attention(normed_BLD, rotations_B1LH, attend))
        # The barrier keeps the norm's gradient out of the kernel of the product before it on a TPU.
        normed_BLD = jax.lax.optimization_barrier(self.mlp_norm(x_BLD))
        normed_BLD = checkpoint_name(normed_BLD, "mlp_in")
        x_BLD += second(self.mlp(normed_BLD))
        return x_BLD


class Decoder(nnx.Module):
    """Tokens to logits."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        V, D = config.vocab_size, config.width
        base = config.base_width or D
        # Of the size of what the blocks add to it, or a token's identity is lost among them for
        # hundreds of steps; a tied one makes logits too, which must start small.
        scale = base**-0.5 if config.tied else 1.0
        self.embedding = nnx.Param(
            scale * jax.random.normal(rngs.params(), (V, D)), axes=("vocab", "embed")
        )
        keys = jax.random.split(rngs.params(), config.layers)
        graph, _ = nnx.split(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))
        stacked = jax.vmap(lambda key: nnx.state(Block(config, nnx.Rngs(params=key))))(keys)
        self.blocks = nnx.merge(graph, stacked)
        # Logits are sums over D values that are learned alike: the norm's scale makes them means.
        self.final_norm = RMSNorm(D, config.norm_epsilon, config.width_ratio)
        if not config.tied:
            self.head = matrix(rngs, (D, V), ("embed", "vocab"), base)

    def __call__(
        self, tokens_BL: jax.Array, segment_ids_BL: jax.Array, positions_BL: jax.Array, **options
    ) -> jax.Array:
        """Logits, float32 [B, L, V], of packed rows; the arguments are those of `hidden_states`."""
        return self.logits(self.hidden_states(tokens_BL, segment_ids_BL, positions_BL, **options))

    def hidden_states(
        self,
        tokens_BL: jax.Array,
        segment_ids_BL: jax.Array,
        positions_BL: jax.Array,
        *,
        layer: int | None = None,
        dropout: Dropout | None = None,
        layout: Layout | None = None,
        compute: ComputeConfig | None = None,
    ) -> jax.Array:
        """Training's forward pass over packed rows, without the output layer.

        Args:
          tokens_BL: int32, the inputs (targets shifted right within their segment).
          segment_ids_BL: int32; a token sees earlier tokens of its own segment.
          positions_BL: int32, from 0 within each segment.
          layer: after how many blocks to stop; None for all.
          dropout: None outside training.
          layout: to which mesh weights and activations are held; None on one device.
          compute: how; by default as `ComputeConfig` has it.

        Returns:
          The residual stream [B, L, D].
        """
        c, compute = self.config, compute or ComputeConfig()
        constrain = layout.constrain if layout else (lambda x, *names: x)
        rotations_B1LH = rotations(c, positions_BL)
        attend = packed_attention(compute.attention, segment_ids_BL, layout)
        x_BLD = self.embed(tokens_BL, layout)
        if dropout:
            x_BLD = dropout.fold_in(c.layers)(x_BLD)
        x_BLD = constrain(x_BLD, "batch", None, None)
        graph, stacked = nnx.split(self.blocks)

        def body(x_BLD, layer_state):
            state, index = layer_state
            state = jax.tree.map(
                lambda w: w.replace(checkpoint_name(cast(w, c.dtype, layout), "weights")),
                state,
                is_leaf=lambda w: isinstance(w, nnx.Variable),
            )
            inner = dropout.fold_in(index) if dropout else no_dropout
            x_BLD = nnx.merge(graph, state)(x_BLD, rotations_B1LH, attend, inner)
            return constrain(x_BLD, "batch", None, None), None

        body = compute.remat_block(body)
        depth = c.layers if layer is None else layer
        if compute.scan_layers:
            stacked = jax.tree.map(lambda a: a[:depth], stacked)
            return jax.lax.scan(body, x_BLD, (stacked, jnp.arange(depth)))[0]
        for index, layer_state in enumerate(unstacked(stacked)[:depth]):
            x_BLD, _ = body(x_BLD, (layer_state, index))
        return x_BLD

    def embed(self, tokens_BL: jax.Array, layout: Layout | None = None) -> jax.Array:
        """Token embeddings [B, L, D] in the compute dtype."""
        return jnp.take(cast(self.embedding, self.config.dtype, layout), tokens_BL, axis=0)

    def output(self, x: jax.Array, layout: Layout | None = None) -> tuple[jax.Array, jax.Array]:
        """The last block's output [..., D] normed, and the weights [D, V] that make it logits."""
        if self.config.tied:
            weights_DV = cast(self.embedding, self.config.dtype, layout).T
        else:
            weights_DV = cast(self.head, self.config.dtype, layout)
        return self.final_norm(x), weights_DV

    def logits(self, x: jax.Array) -> jax.Array:
        """Logits float32 [..., V] of the last block's output [..., D]."""
        normed, weights_DV = self.output(x)
        return project(normed, weights_DV, dtype=jnp.float32)


@jax.custom_vjp
def unstacked(stacked: Any) -> list[Any]:
    """The parts along the first dimension of all arrays of a pytree.

    Their gradients are stacked again; autodiff would add up as many arrays of the stack's size.
    """
    count = jax.tree.leaves(stacked)[0].shape[0]
    return [jax.tree.map(lambda a, i=index: a[i], stacked) for index in range(count)]


def _stack(_, parts: list[Any]) -> tuple[Any]:
    return (jax.tree.map(lambda *gradients: jnp.stack(gradients), *parts),)


unstacked.defvjp(lambda stacked: (unstacked(stacked), None), _stack)


def cast(weights: nnx.Variable, dtype: str, layout: Layout | None) -> Any:
    """A weight in the compute dtype (a vector in its own), whole where only storage splits it.

    `Int8` stays as it is.
    """
    value, names = weights.get_value(), weights.get_metadata()["axes"]
    if isinstance(value, Int8) or value.ndim == 1:
        return value
    return layout.gather(value, names, dtype) if layout else value.astype(dtype)


# A key/value cache: for each layer keys and values, [K, S, M, H] each.
Cache = list[tuple[jax.Array, jax.Array]]


def empty_cache(config: DecoderConfig, slots: int, length: int, dtype: str | None = None) -> Cache:
    """A cache for `slots` sequences of `length` tokens: keys and values [K, S, M, H] a layer."""
    shape, dtype = (config.kv_heads, slots, length, config.head_size), dtype or config.dtype
    return [(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.layers)]


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
        mask_SLM = cache_mask(positions_SL, cache[0][0].shape[2])
        rotations_S1LH = rotations(self.config, positions_SL)
        x_SLD = self.outer.embed(tokens_SL)
        extended: Cache = []
        for block, (keys, values) in zip(self.layers, cache, strict=True):

            def attend(q, k, v, keys=keys, values=values):
                keys = keys.at[:, rows_S1, positions_SL].set(k.swapaxes(0, 1))
                values = values.at[:, rows_S1, positions_SL].set(v.swapaxes(0, 1))
                extended.append((keys, values))
                return attention(q, keys.swapaxes(0, 1), values.swapaxes(0, 1), mask_SLM)

            x_SLD = block(x_SLD, rotations_S1LH, attend)
        taken_SD = jnp.take_along_axis(x_SLD, take_S[:, None, None], axis=1)[:, 0]
        return self.outer.logits(taken_SD), extended


def initialise(config: DecoderConfig, key: jax.Array) -> Decoder:
    """A decoder with random weights."""
    return Decoder(config, nnx.Rngs(params=key))


@functools.cache
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
