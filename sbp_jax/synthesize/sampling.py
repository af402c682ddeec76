"""What a token is drawn from: temperature, top-k and top-p, with the slot's own key and no sort.

First the allowed tokens are taken at the temperature, then the `top_k` most probable of them, and
of these, as probable as they are among themselves, the smallest set that reaches `top_p`: the order
of `transformers`. Of equally probable tokens those of lower ids come first, at both borders.
Nothing depends on what the document has said: a repetition penalty would bend the distribution that
the synthesizer has learnt, and what goes in circles is ended instead (`loops`).

The top-k are told by counting (`heaviest`). The nucleus (arXiv 1904.09751) is never built: a token
is drawn from all tokens; it is in the nucleus exactly if those ranked above it weigh less than
top-p of all, which one pass over the vocabulary tells. If it is not, the next draw is among those
ranked above it, which hold the whole nucleus. What is accepted is so distributed as if drawn from
the nucleus; two or three draws do on average.

Probabilities are rounded to multiples of 2^-30. Sums of integers are exact in any order, so the
nucleus is the smallest set to the last unit, on every device.

S slots, V vocabulary; it is cut into G blocks of B tokens, so that running sums stay short.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SCALE = 1 << 30


class Sampled(NamedTuple):
    """One step's choice.

    Attributes:
      tokens_S: int32.
      log_probabilities_S: float32, natural logarithm of the token's probability under the model
        as it is: no temperature, no nucleus, no token forbidden.
      finite_S: bool, False where the logits held a NaN or +inf; the token is then meaningless.
    """

    tokens_S: jax.Array
    log_probabilities_S: jax.Array
    finite_S: jax.Array


def sample(
    logits_SV: jax.Array,
    keys_S: jax.Array,
    indices_S: jax.Array,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float,
    allowed_V: np.ndarray,
    eos: int,
    min_length: int,
) -> Sampled:
    """Draws a token for every slot.

    Args:
      logits_SV: float32.
      keys_S: typed keys, one of each slot's document.
      indices_S: int32, the token's index in its document; folded into the key.
      temperature: divides the logits; above 0.
      top_k: only so many tokens may be drawn, the most probable of the allowed ones; at least 1,
        None for no limit.
      top_p: of those only the smallest set that has at least this share of their probability, taken
        at the temperature. In (0, 1].
      allowed_V: bool; the others are never drawn.
      eos: ends a document.
      min_length: EOS is not drawn at indices below this.
    """
    normaliser_S = jax.nn.logsumexp(logits_SV, axis=-1)
    finite_S = jnp.isfinite(normaliser_S)
    allowed = jnp.asarray(allowed_V)
    if min_length:
        is_eos_V = np.arange(len(allowed_V)) == eos
        allowed = allowed_V & ~(is_eos_V & (indices_S < min_length)[:, None])
    weights_SV = token_weights(logits_SV, temperature, allowed)
    weights_SV = jnp.where(finite_S[:, None], weights_SV, 1)
    if top_k is not None and top_k < len(allowed_V):
        weights_SV = heaviest(weights_SV, top_k)
    keys_S = jax.vmap(jax.random.fold_in)(keys_S, indices_S)
    tokens_S = draw(weights_SV, keys_S, top_p)
    chosen_S = jnp.take_along_axis(logits_SV, tokens_S[:, None], axis=-1)[:, 0]
    return Sampled(tokens_S, chosen_S - normaliser_S, finite_S)


def token_weights(
    logits_SV: jax.Array, temperature: float, allowed: np.ndarray | jax.Array
) -> jax.Array:
    """Probabilities of the allowed tokens at this temperature, int32 [S, V] in units of 2^-30.

    `allowed` is bool, [V] or [S, V].
    """
    scaled_SV = jnp.where(allowed, logits_SV / temperature, -jnp.inf)
    return jnp.round(jax.nn.softmax(scaled_SV, axis=-1) * SCALE).astype(jnp.int32)


def heaviest(weights_SV: jax.Array, count: int) -> jax.Array:
    """Leaves the weights of each row's first `count` tokens, and 0 for the others.

    Where they end is looked for by halving: at which weight and then, among tokens of this weight,
    at which id. A step is one pass over the vocabulary that counts the tokens above a border, and
    all is done when they are `count` in every row: of 64 rows of 32,768 tokens after 15 passes as a
    rule, after 30 where tokens that hardly weigh anything are equal.

    Args:
      weights_SV: int32, at least 0, sums below 2^31.
      count: at least 1.

    Returns:
      int32 [S, V].
    """
    slots, vocabulary = weights_SV.shape
    ids_V = jnp.arange(vocabulary, dtype=jnp.int32)
    zeros_S = jnp.zeros(slots, jnp.int32)

    def heavier(border_S):
        return weights_SV > border_S[:, None]

    # Fewer than `count` tokens can weigh more than this each.
    most_S = jnp.sum(weights_SV, axis=-1) // count
    weight_S, found_S = _lowest_border(heavier, count, most_S, zeros_S)

    def above(left_out_S):
        token_S = vocabulary - left_out_S
        return _above(weights_SV, ids_V, weight_S[:, None], token_S[:, None])

    left_out_S, _ = _lowest_border(above, count, zeros_S + vocabulary, found_S)
    return jnp.where(above(left_out_S), weights_SV, 0)


def _lowest_border(
    above: Callable[[jax.Array], jax.Array], count: int, top_S: jax.Array, found_S: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The lowest border, from 0 on, with at most `count` tokens above it.

    Where a higher one has exactly `count` above it, that may be what is found.

    Args:
      above: from borders [S] to which tokens are above them, bool [S, V].
      count: of tokens.
      top_S: int32, a border with at most `count` tokens above it.
      found_S: int32, how many are known to be above that one.

    Returns:
      The borders and how many tokens are known to be above them, int32 [S].
    """

    def unfinished(carry):
        low_S, high_S, found_S = carry
        return jnp.any((found_S < count) & (high_S - low_S > 1))

    def step(carry):
        low_S, high_S, found_S = carry
        # Weights differ by orders of magnitude: far from the border these are halved.
        between_S = jnp.sqrt((low_S + 1.0) * high_S).astype(jnp.int32)
        middle_S = jnp.where(high_S // 4 > low_S, between_S, low_S + (high_S - low_S) // 2)
        number_S = jnp.sum(above(middle_S), axis=-1, dtype=jnp.int32)
        fits_S = number_S <= count
        return (
            jnp.where(fits_S, low_S, middle_S),
            jnp.where(fits_S, middle_S, high_S),
            jnp.where(fits_S, number_S, found_S),
        )

    _, border_S, found_S = jax.lax.while_loop(
        unfinished, step, (jnp.full_like(top_S, -1), top_S, found_S)
    )
    return border_S, found_S


def draw(weights_SV: jax.Array, keys_S: jax.Array, top_p: float) -> jax.Array:
    """Draws from the nucleus of each row.

    Args:
      weights_SV: int32, at least one above 0 in each row, sums below 2^31.
      keys_S: typed keys.
      top_p: share of the row's sum that the nucleus must reach, in (0, 1].

    Returns:
      Tokens, int32 [S].
    """
    slots, vocabulary = weights_SV.shape
    block = 1 << max(0, round(math.log2(vocabulary) / 2))
    weights_SGB = jnp.pad(weights_SV, ((0, 0), (0, -vocabulary % block))).reshape(slots, -1, block)
    ids_GB = jnp.arange(weights_SGB[0].size, dtype=jnp.int32).reshape(-1, block)
    ids_B = jnp.arange(block, dtype=jnp.int32)

    def masses_above(weight_S, token_S):
        """Of each block the weight of the tokens ranked above the given one, int32 [S, G]."""
        kept_SGB = _above(weights_SGB, ids_GB, weight_S[:, None, None], token_S[:, None, None])
        return jnp.sum(jnp.where(kept_SGB, weights_SGB, 0), axis=-1)

    def unfinished(carry):
        return ~jnp.all(carry[1])

    def attempt(carry):
        count, accepted_S, token_S, weight_S, masses_SG = carry
        bits_S = jax.vmap(lambda key: jax.random.bits(jax.random.fold_in(key, count)))(keys_S)
        running_SG = jnp.cumsum(masses_SG, axis=-1)
        wanted_S = multiply_high(bits_S, running_SG[:, -1])
        # The first running sum above what is wanted: there is one, and its block is not empty.
        block_S = jnp.sum(running_SG <= wanted_S[:, None], axis=-1, dtype=jnp.int32)
        block_S1 = block_S[:, None]
        before_S1 = jnp.take_along_axis(running_SG - masses_SG, block_S1, axis=1)
        weights_SB = jnp.take_along_axis(weights_SGB, block_S1[:, :, None], axis=1)[:, 0]
        ids_SB = block_S1 * block + ids_B
        kept_SB = _above(weights_SB, ids_SB, weight_S[:, None], token_S[:, None])
        running_SB = before_S1 + jnp.cumsum(jnp.where(kept_SB, weights_SB, 0), axis=-1)
        place_S = jnp.sum(running_SB <= wanted_S[:, None], axis=-1, dtype=jnp.int32)
        drawn_S = block_S * block + place_S
        weight_drawn_S = jnp.take_along_axis(weights_SB, place_S[:, None], axis=1)[:, 0]
        masses_drawn_SG = masses_above(weight_drawn_S, drawn_S)
        inside_S = jnp.sum(masses_drawn_SG, axis=-1) < target_S

        def unless_accepted(new, old):
            return jnp.where(accepted_S.reshape(-1, *(1,) * (new.ndim - 1)), old, new)

        return (
            count + 1,
            accepted_S | inside_S,
            unless_accepted(drawn_S, token_S),
            unless_accepted(weight_drawn_S, weight_S),
            unless_accepted(masses_drawn_SG, masses_SG),
        )

    zeros_S = jnp.zeros(slots, jnp.int32)
    masses_SG = masses_above(zeros_S, zeros_S)
    whole_S = jnp.sum(masses_SG, axis=-1)
    # By what may be left out, which is less than all of it even after rounding.
    left_out = min(int((1 - top_p) * 2**32), 2**32 - 1)
    target_S = whole_S - multiply_high(jnp.uint32(left_out), whole_S)
    start = (0, zeros_S > 0, zeros_S, zeros_S, masses_SG)
    return jax.lax.while_loop(unfinished, attempt, start)[2]


def _above(weights: jax.Array, ids: jax.Array, weight: jax.Array, token: jax.Array) -> jax.Array:
    """Whether tokens are ranked above a given one: by weight, the lower id first among equals."""
    return (weights > weight) | ((weights == weight) & (ids < token))


def multiply_high(bits: jax.Array, whole: jax.Array) -> jax.Array:
    """floor(bits · whole / 2^32), int32, of uint32 `bits` and int32 `whole`, without 64 bits."""
    whole = whole.astype(jnp.uint32)
    bits_low, bits_high = bits & 0xFFFF, bits >> 16
    whole_low, whole_high = whole & 0xFFFF, whole >> 16
    middle = bits_high * whole_low + ((bits_low * whole_low) >> 16)
    rest = bits_low * whole_high + (middle & 0xFFFF)
    return (bits_high * whole_high + (middle >> 16) + (rest >> 16)).astype(jnp.int32)
