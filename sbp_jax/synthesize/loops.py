"""Loops: how long a document has been saying the same again, told at each token without a search.

For every period up to P a counter says how many tokens at the document's end, in a row, are the
ones that stood a period before. The next token raises it by one, or sets it to 0. So a step takes
some S · P comparisons and additions, however long the documents are, and the state 8 · P bytes a
slot: for 64 slots and P = 32 that is 16 kB, and two vector registers' worth of work.

A document that is caught in a loop is ended, rather than kept out of it: a penalty on tokens that
have stood before would bend what all the other documents are drawn from.

S slots, P longest period.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

NO_TOKEN = -1


class Loops(NamedTuple):
    """How the documents of all slots end so far.

    Attributes:
      recent_SP: int32, the last P tokens, the latest first; -1 before a document's start.
      repeated_SP: int32, how many tokens at the end, in a row, equal the one 1 … P before.
    """

    recent_SP: jax.Array
    repeated_SP: jax.Array


def none(slots: int, period: int) -> Loops:
    """Nothing has been said in any of S slots; P is `period`."""
    nothing_SP = jnp.full((slots, period), NO_TOKEN, jnp.int32)
    return Loops(nothing_SP, jnp.zeros_like(nothing_SP))


def follow(loops: Loops, tokens_S: jax.Array, first_S: jax.Array) -> Loops:
    """Takes in one more token of every slot.

    Args:
      loops: before it.
      tokens_S: int32, at least 0.
      first_S: bool, whether it is a document's first; what the slot held before is forgotten.
    """
    recent_SP = jnp.where(first_S[:, None], NO_TOKEN, loops.recent_SP)
    same_SP = recent_SP == tokens_S[:, None]
    return Loops(
        recent_SP=jnp.concatenate([tokens_S[:, None], recent_SP[:, :-1]], axis=1),
        repeated_SP=jnp.where(same_SP, loops.repeated_SP + 1, 0),
    )


def repeated(loops: Loops) -> jax.Array:
    """Of each document the tokens at its end that repeat it with one period, int32 [S]."""
    return jnp.max(loops.repeated_SP, axis=1)
