"""Repetition: how much of a text says again what the same text has said already."""

from __future__ import annotations

import numpy as np

from sbp_jax.text.shingles import ngram_hashes, words

REPETITION_WORDS = 4


def repetition(text: str, n: int = REPETITION_WORDS) -> float:
    """The share of runs of `n` words that stood earlier in the same text.

    This is seq-rep-n, 1 − |distinct n-grams| / |n-grams|, of Welleck et al., "Neural Text
    Generation with Unlikelihood Training" (2020), taken over words in lower case.

    Args:
      text: any text.
      n: words in a run, at least 1.

    Returns:
      From 0 (nothing is repeated, or the text has no more than `n` words) to just under 1.

    Raises:
      ValueError: `n` is less than 1.
    """
    runs = ngram_hashes(words(text), n)
    return 1.0 - len(np.unique(runs)) / len(runs) if len(runs) else 0.0
