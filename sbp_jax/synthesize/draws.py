"""In which order seed documents are drawn: all alike, or in proportion to a weight.

A draw has a number. Which seed it takes, and how often that was taken before, follow from the
number alone, so that every host knows any part of the order without the rest and without asking.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import numpy as np

from sbp_jax.data.documents import Document
from sbp_jax.errors import UserError


class UniformDraws:
    """Every seed once a round, each round in an order of its own.

    Args:
      seeds: N, how many there are.
      seed: of the rounds' orders.
      times: rounds.

    Attributes:
      count: how many draws there are.
    """

    def __init__(self, seeds: int, seed: int, times: int):
        self.seeds, self.seed = seeds, seed
        self.count = seeds * times
        self._order = functools.lru_cache(maxsize=2)(self._new_order)  # N numbers each

    def draw(self, numbers_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The seed of each draw and how often it was drawn before, int64 [n] both."""
        rounds_n, places_n = np.divmod(numbers_n, self.seeds)
        seeds_n = np.empty_like(places_n)
        for number in np.unique(rounds_n):
            inside_n = rounds_n == number
            seeds_n[inside_n] = self._order(int(number))[places_n[inside_n]]
        return seeds_n, rounds_n

    def _new_order(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, number]).permutation(self.seeds)


class ProportionalDraws:
    """Every seed as often as its share of all weight says, spread evenly.

    The seeds, sorted by weight, are parted into two groups of like weight, each of these again, and
    so on to single seeds. Of the first m draws of a group its lighter part has round(q m), where q
    is its share, and the heavier part the rest. So m alone says which part the next draw is of, and
    how many that had before; a draw is followed down to its seed in some log2 N steps.

    After n draws a seed of share s was drawn s n times, but for an error: up to half a draw from
    each parting on its way, times the seed's share of the part that it went to. Equal weights gave
    less than 1, others of many kinds up to 1.24, and none can give 2: the last parting adds at most
    a half, and no group but a single seed is more than two thirds of the one that it came from.
    (Tijdeman's schedule, The chairman assignment problem, 1980, always keeps below 1, but what it
    draws is known only from its beginning on.)

    Args:
      weights_N: float64, finite, at least 0, not all of them 0. A seed of 0 is never drawn.
      seed: orders seeds of one weight.
      times: no seed is drawn more often; at least 2, since the heaviest is left room for the error.

    Attributes:
      count: how many draws there are.
    """

    def __init__(self, weights_N: np.ndarray, seed: int, times: int):
        weights_N = weights_N / weights_N.max()
        drawn = np.random.default_rng(seed).permutation(np.flatnonzero(weights_N))
        # The lightest first: sums that begin with the heaviest would swallow the others.
        self.seeds = drawn[np.argsort(weights_N[drawn], kind="stable")]
        self.sums = np.concatenate([[0.0], np.cumsum(weights_N[self.seeds])])
        self.count = math.floor((times - 1) * self.sums[-1])  # the heaviest has a weight of 1

    def draw(self, numbers_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The seed of each draw and how often it was drawn before, int64 [n] both."""
        before_n = np.array(numbers_n, np.int64)
        low_n = np.zeros_like(before_n)  # a group is the seeds from low to below high
        high_n = np.full_like(before_n, len(self.seeds))
        while (several := np.flatnonzero(high_n - low_n > 1)).size:
            low, high, before = low_n[several], high_n[several], before_n[several]
            middle = self._middle(low, high)
            start, parting, end = self.sums[low], self.sums[middle], self.sums[high]
            left_is_lighter = parting - start <= end - parting
            lighter = np.where(left_is_lighter, parting - start, end - parting) / (end - start)
            # A share of at most a half never rounds up by two draws for one, whatever its last bit.
            had, will_have = (np.floor(lighter * m + 0.5) for m in (before, before + 1))
            to_lighter = will_have > had
            to_left = to_lighter == left_is_lighter
            before_n[several] = np.where(to_lighter, had, before - had)
            low_n[several] = np.where(to_left, low, middle)
            high_n[several] = np.where(to_left, middle, high)
        return self.seeds[low_n], before_n

    def _middle(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Where groups are parted: as near to half of their weight as single seeds allow."""
        half = (self.sums[low] + self.sums[high]) / 2
        above = np.clip(np.searchsorted(self.sums, half), low + 1, high - 1)
        below = np.maximum(above - 1, low + 1)
        return np.where(half - self.sums[below] <= self.sums[above] - half, below, above)


def read_weights(documents: Iterable[Document], feature: str) -> np.ndarray:
    """Weights of seed documents, float64, from a feature that holds a number as text.

    Raises:
      UserError: a document lacks the feature, or has no finite number of at least 0 there; or all
        have 0.
    """
    weights = np.fromiter((_weight(document, feature) for document in documents), np.float64)
    if not weights.any():
        raise UserError(
            f"synthesize.weight_by = {feature!r}: all {len(weights)} seeds have weight 0, and none "
            "could be drawn: name another feature"
        )
    return weights


def _weight(document: Document, feature: str) -> float:
    where = f"synthesize.weight_by = {feature!r}: document {document.id!r}"
    if feature not in document.features:
        raise UserError(
            f"{where} has no such feature (it has {sorted(document.features)}): a task's text "
            "features are kept where cache.documents = True"
        )
    text = document.features[feature]
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise UserError(
            f"{where} has {text!r} there: expected a finite number of at least 0; mend the task, "
            "or name another feature"
        )
    return weight
