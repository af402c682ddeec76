"""Filters: which samples do not enter the corpus, each with the figure that decided."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from sbp_jax.settings import configurable
from sbp_jax.text.repetition import repetition
from sbp_jax.text.shingles import containment, shingles, words


@configurable
@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Limits of what is kept. The paper has a rule-based repetition filter; the limits are ours.

    Attributes:
      min_words: a text of fewer is too short.
      max_repetition: largest share of 4-word runs that repeat earlier ones of the same text. A
        document that was ended in a loop is rejected whatever its share.
      max_seed_copy: largest share of the shorter text's 13-word shingles that seed and text have
        in common.
      keep_unfinished: whether a text that was cut at the length limit is kept. Rejecting them
        would bias the corpus to short documents.
    """

    min_words: int = 10
    max_repetition: float = 0.5
    max_seed_copy: float = 0.5
    keep_unfinished: bool = True


class Judged(NamedTuple):
    """What the filters found of a text.

    Attributes:
      rejected_by: the first filter that rejects it, None if it is kept.
      repetition: share of repeated 4-word runs.
      seed_copy: share of common shingles.
    """

    rejected_by: str | None
    repetition: float
    seed_copy: float


FILTERS = ("not_a_number", "too_short", "repetition", "seed_copy", "unfinished")


def judge(text: str, finish_reason: str, seed_shingles: np.ndarray, config: FilterConfig) -> Judged:
    """Takes a text's scores and the first filter in the order of `FILTERS` that rejects it."""
    if finish_reason == "nan":
        return Judged("not_a_number", 0.0, 0.0)
    repeated = repetition(text)
    copied = containment(shingles(text), seed_shingles)
    if len(words(text)) < config.min_words:
        rejected_by = "too_short"
    elif finish_reason == "repetition" or repeated > config.max_repetition:
        rejected_by = "repetition"
    elif copied > config.max_seed_copy:
        rejected_by = "seed_copy"
    elif finish_reason == "length" and not config.keep_unfinished:
        rejected_by = "unfinished"
    else:
        rejected_by = None
    return Judged(rejected_by, repeated, copied)
