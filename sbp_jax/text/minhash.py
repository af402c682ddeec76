"""MinHash: what two sets share, from short signatures of them instead of the sets.

Two signatures agree in a slot with a probability of the sets' Jaccard index (A. Broder, "On the
resemblance and containment of documents", 1997), so the number of slots that agree bounds it. The
signatures are rensa's R-MinHash, in which a hash is worked on once and not once a slot (S.
Dahlgaard, M. Knudsen and M. Thorup, "Fast similarity sketching", 2017, arXiv 1704.04370).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import rensa

SLOTS = 128
SEED = 0
# How far the bounds of an estimate lie from it, in standard deviations.
DEVIATIONS = 3.0
_AT_ONCE = 1 << 16  # pairs of signatures compared at once: bounds memory, not the result
_SETS_AT_ONCE = 1024  # that are in memory to be signed


def signatures(sets: Sequence[np.ndarray]) -> np.ndarray:
    """Signatures of sets of hashes, uint32 [n, SLOTS].

    Args:
      sets: distinct hashes, uint64, of each of n sets. The signature of an empty one means nothing.
    """
    if not len(sets):
        return np.zeros((0, SLOTS), np.uint32)
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in sets])]).astype(np.uint64)
    flat = np.concatenate([np.zeros(0, np.uint64), *sets]).astype(np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, SLOTS, SEED)
    return np.array(matrix.to_rows(), np.uint32).reshape(len(sets), SLOTS)


def sign(sets: Iterable[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and signatures of sets that are made one after the other, and of which few are held.

    Args:
      sets: as `signatures` takes them.
      count: how many there are.

    Returns:
      int64 [n] and uint32 [n, SLOTS].
    """
    sizes = np.zeros(count, np.int64)
    signed = np.zeros((count, SLOTS), np.uint32)
    done = 0
    for block in itertools.batched(sets, _SETS_AT_ONCE):
        part = slice(done, done + len(block))
        sizes[part], signed[part] = [len(one) for one in block], signatures(block)
        done += len(block)
    return sizes, signed


def agreement(first: np.ndarray, second: np.ndarray, pairs: tuple) -> np.ndarray:
    """The share of slots in which two signatures agree: the estimate of the Jaccard index.

    Args:
      first: signatures, uint32 [n, SLOTS].
      second: signatures, uint32 [m, SLOTS].
      pairs: which of the first with which of the second, two arrays int [p].

    Returns:
      float64 [p].
    """
    found = np.zeros(len(pairs[0]))
    for start in range(0, len(found), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        found[part] = np.mean(first[pairs[0][part]] == second[pairs[1][part]], axis=1)
    return found


def bounds(
    estimates: np.ndarray, first_sizes: np.ndarray, second_sizes: np.ndarray, measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """Between which values the likeness of two sets very likely lies.

    The bounds are those of the Jaccard index by Wilson's score interval (1927) at `DEVIATIONS`. For
    the containment they are turned by |A ∩ B| = J · (|A| + |B|) / (1 + J), so a small set in a
    large one, which have a Jaccard index near 0, are not taken for different: their bounds lie far
    apart.

    Args:
      estimates: of the Jaccard index, float [p].
      first_sizes: |A|, int [p].
      second_sizes: |B|, int [p].
      measure: one of `shingles.MEASURES`.

    Returns:
      Lower and upper bounds, float64 [p]; both 0 where a set is empty.
    """
    squared = DEVIATIONS**2 / SLOTS
    middle = (estimates + squared / 2) / (1 + squared)
    spread = np.sqrt(squared * (estimates * (1 - estimates) + squared / 4)) / (1 + squared)
    smaller, larger = np.minimum(first_sizes, second_sizes), np.maximum(first_sizes, second_sizes)
    low, high = np.clip(middle - spread, 0, 1), np.clip(middle + spread, 0, 1)
    if measure == "jaccard":
        # What is shared is no more than the smaller set.
        high = np.minimum(high, smaller / np.maximum(larger, 1))
        low = np.minimum(low, high)
    else:
        scale = (smaller + larger) / np.maximum(smaller, 1)
        low, high = (np.clip(bound / (1 + bound) * scale, 0, 1) for bound in (low, high))
    return np.where(smaller > 0, low, 0.0), np.where(smaller > 0, high, 0.0)
