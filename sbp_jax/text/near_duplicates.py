"""Near-duplicates: all pairs of documents whose shingles overlap, and clusters of such pairs.

The search is exact. Documents meet through an inverted index from shingle to documents, and a
document asks it only for its rarest shingles: of |A| shingles, at least t·|A| must be shared for a
containment of t, so one of the |A| − ⌈t·|A|⌉ + 1 rarest is (the prefix filter of Chaudhuri,
Ganti and Kaushik, "A primitive operator for similarity joins in data cleaning", 2006). Boilerplate
that stands in thousands of documents is therefore looked up only where a document is little else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

# How many (document, document) meetings are held at once: bounds memory, not the result.
_MEETINGS_AT_ONCE = 1 << 22


def near_duplicate_pairs(
    shingle_sets: Sequence[np.ndarray], threshold: float
) -> list[tuple[int, int, float]]:
    """All pairs of documents with a containment of at least `threshold`.

    Args:
      shingle_sets: for each document its distinct shingles, uint64, in any order.
      threshold: least containment, |A ∩ B| / min(|A|, |B|), above 0 and at most 1.

    Returns:
      `(i, j, containment)` with i < j, in ascending order. Empty sets are in no pair. Time and
      memory grow with the number of pairs found.

    Raises:
      ValueError: the threshold is not above 0 and at most 1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, not {threshold}")
    index = _Index(shingle_sets)
    pairs: list[tuple[int, int, float]] = []
    for batch in index.batches(threshold):
        first, second = index.candidates(batch)
        shared = index.overlaps(first, second)
        smaller = np.minimum(index.sizes[first], index.sizes[second])
        containment = shared / smaller
        kept = containment >= threshold
        low, high = np.minimum(first, second), np.maximum(first, second)
        pairs += zip(
            low[kept].tolist(), high[kept].tolist(), containment[kept].tolist(), strict=True
        )
    return sorted(pairs)


def clusters(n: int, pairs: Iterable[tuple[int, int] | tuple[int, int, float]]) -> np.ndarray:
    """Labels of the connected components of `n` documents under `pairs`.

    Returns:
      int64 [n]; the label of a cluster is the lowest index of its documents.

    Raises:
      IndexError: a pair names a document outside 0 … n − 1.
    """
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j, *_ in pairs:
        if not (0 <= i < n and 0 <= j < n):
            raise IndexError(f"pair ({i}, {j}) names a document outside 0 … {n - 1}")
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    return np.array([root(i) for i in range(n)], np.int64).reshape(n)


class _Index:
    """Shingle sets with shingles renumbered by rarity (0 the rarest), and the inverse of them."""

    def __init__(self, shingle_sets: Sequence[np.ndarray]):
        self.sizes = np.array([len(s) for s in shingle_sets], np.int64)
        # starts[i]:starts[i + 1] are document i's entries
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        flat = np.concatenate([np.zeros(0, np.uint64), *shingle_sets]).astype(np.uint64)
        _, numbers, counts = np.unique(flat, return_inverse=True, return_counts=True)
        by_rarity = np.argsort(counts, kind="stable")
        rank = np.empty_like(by_rarity)
        rank[by_rarity] = np.arange(len(by_rarity))
        owners = np.repeat(np.arange(len(self.sizes)), self.sizes)
        entries = rank[numbers.reshape(-1)]
        order = np.lexsort((entries, owners))
        self.shingles = entries[order]  # per document ascending: rarest first
        self.owners = owners
        # The inverted index: postings[first[s]:first[s + 1]] are the documents that hold s.
        by_shingle = np.argsort(self.shingles, kind="stable")
        self.postings = owners[by_shingle]
        self.frequency = counts[by_rarity]
        self.first = np.concatenate([[0], np.cumsum(self.frequency)]).astype(np.int64)
        # (document, shingle) as one number, ascending, for membership tests by bisection
        self.stride = len(counts) + 1
        self.keys = self.owners * self.stride + self.shingles

    def batches(self, threshold: float) -> Iterable[np.ndarray]:
        """Entries to look up, every document's rarest, in parts of a bounded number of meetings."""
        needed = np.maximum(np.ceil(threshold * self.sizes - 1e-9), 1).astype(np.int64)
        asked = self.sizes - needed + 1
        position = np.arange(len(self.shingles)) - self.starts[self.owners]
        entries = np.flatnonzero(position < asked[self.owners])
        owners = self.owners[entries]
        meetings = np.cumsum(self.frequency[self.shingles[entries]])
        begin = 0
        while begin < len(entries):
            done = meetings[begin - 1] if begin else 0
            end = int(np.searchsorted(meetings, done + _MEETINGS_AT_ONCE, side="right"))
            end = max(end, begin + 1)
            if end < len(entries):  # a document's entries stay together: its pairs come out once
                owner = owners[end]
                whole = int(np.searchsorted(owners, owner, side="left"))
                if whole == begin:  # more meetings than are held at once, all of one document
                    whole = int(np.searchsorted(owners, owner, side="right"))
                end = whole
            yield entries[begin:end]
            begin = end

    def candidates(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct pairs (asking document, another that is no smaller) that meet in `entries`."""
        found = self.shingles[entries]
        counts = self.frequency[found]
        asking = np.repeat(self.owners[entries], counts)
        offsets = np.arange(len(asking)) - np.repeat(np.cumsum(counts) - counts, counts)
        met = self.postings[np.repeat(self.first[found], counts) + offsets]
        # The smaller set asks; among equals the earlier document, so that no pair comes twice.
        size_asking, size_met = self.sizes[asking], self.sizes[met]
        kept = (size_met > size_asking) | ((size_met == size_asking) & (met > asking))
        pairs = np.unique(asking[kept] * len(self.sizes) + met[kept])
        return pairs // len(self.sizes), pairs % len(self.sizes)

    def overlaps(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """How many shingles the documents of each pair share, int64 [pairs]."""
        result = np.zeros(len(first), np.int64)
        lookups = np.cumsum(self.sizes[first])
        begin = 0
        while begin < len(first):
            done = lookups[begin - 1] if begin else 0
            end = int(np.searchsorted(lookups, done + _MEETINGS_AT_ONCE, side="right"))
            end = max(end, begin + 1)
            sizes = self.sizes[first[begin:end]]
            pair = np.repeat(np.arange(end - begin), sizes)
            offsets = np.arange(len(pair)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            wanted = self.shingles[self.starts[first[begin:end]][pair] + offsets]
            keys = second[begin:end][pair] * self.stride + wanted
            at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
            result[begin:end] = np.bincount(pair[self.keys[at] == keys], minlength=end - begin)
            begin = end
        return result
