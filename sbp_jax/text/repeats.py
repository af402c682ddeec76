"""Repeats: which texts of a corpus are near-duplicates of an earlier one that stays.

Texts meet in buckets of equal parts of their MinHash signatures (locality-sensitive hashing: A.
Rajaraman and J. Ullman, "Mining of massive datasets", chapter 3), and only with those that stay, so
a cluster of n near-duplicates takes n comparisons and not n². Where signatures leave a doubt the
shingles decide. What is held of a text is its signature, and of the few that share a bucket some
numbers more.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Sequence

import numpy as np

from sbp_jax.text import minhash
from sbp_jax.text.shingles import jaccard, shingles

MISSED = 1e-3  # share of the pairs exactly at the threshold that may meet in no bucket
_SHINGLE_SETS_HELD = 1 << 12


def repeats(texts: Sequence[str], threshold: float) -> dict[int, int]:
    """The texts that are near-duplicates of an earlier one, each with the first such that stays.

    Args:
      texts: in the order in which the first stays. The result follows from them alone.
      threshold: Jaccard index of 13-word shingles above which two are near-duplicates, 0 to 1.
        Pairs whose index is below 0.05 may be missed.

    Returns:
      Index of the text → index of the earlier one. Texts without a word are in no pair.
    """
    sizes, signatures = minhash.sign((shingles(text) for text in texts), len(texts))
    buckets_of: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
    rows = band_rows(threshold)
    for band in range(minhash.SLOTS // rows):
        part = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows])
        _, buckets, counts = np.unique(
            part.view(np.dtype((np.void, part.itemsize * rows))).reshape(-1),
            return_inverse=True,
            return_counts=True,
        )
        for place in np.flatnonzero((counts[buckets] > 1) & (sizes > 0)).tolist():
            buckets_of[place].append((band, int(buckets[place])))

    held = functools.lru_cache(_SHINGLE_SETS_HELD)(lambda place: shingles(texts[place]))

    def first_alike(place: int, others: list[int]) -> int | None:
        first, second = np.array(others), np.full(len(others), place)
        estimates = minhash.agreement(signatures, signatures, (first, second))
        low, high = minhash.bounds(estimates, sizes[first], sizes[second], "jaccard")
        for other, least, most in zip(others, low.tolist(), high.tolist(), strict=True):
            if least > threshold:
                return other
            if most > threshold and jaccard(held(other), held(place)) > threshold:
                return other
        return None

    staying: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
    found = {}
    for place in sorted(buckets_of):
        others = sorted({other for bucket in buckets_of[place] for other in staying[bucket]})
        first = first_alike(place, others) if others else None
        if first is not None:
            found[place] = first
            continue
        for bucket in buckets_of[place]:
            staying[bucket].append(place)
    return found


def band_rows(threshold: float) -> int:
    """Slots of a bucket's key: as many as leave no more than `MISSED` of the pairs unmet."""
    for rows in range(minhash.SLOTS // 8, 1, -1):
        if (1 - threshold**rows) ** (minhash.SLOTS // rows) <= MISSED:
            return rows
    return 1
