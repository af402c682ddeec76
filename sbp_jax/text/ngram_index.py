"""Which of some texts a new text contains: an index of their runs of n words.

Overlap is measured as among near-duplicates: the containment of shingle sets (`shingles`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sbp_jax.text import shingles


class NgramIndex:
    """Texts, to be found in others.

    Args:
      texts: by name. Those without a word cannot be found.
      n: words in a run.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], n: int = shingles.SHINGLE_WORDS):
        self.n, self.names = n, list[str]()
        sets = []
        for name, text in texts:
            self.names.append(name)
            sets.append(shingles.shingles(text, n))
        self.sizes = np.array([len(found) for found in sets], np.int64)
        owners = np.repeat(np.arange(len(sets)), self.sizes)
        hashes = np.concatenate([np.zeros(0, np.uint64), *sets])
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.owners = hashes[order], owners[order]

    def most_contained(self, text: str) -> tuple[str, float] | None:
        """The text of the index that shares most with another text.

        Returns:
          Its name, and the containment: shared runs over those of the smaller of the two. None if
          no run is shared.
        """
        mine = shingles.shingles(text, self.n)
        first = np.searchsorted(self.hashes, mine, "left")
        counts = np.searchsorted(self.hashes, mine, "right") - first
        if not counts.any():
            return None
        at = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        shared = np.bincount(self.owners[at], minlength=len(self.names))
        containment = shared / np.maximum(np.minimum(self.sizes, len(mine)), 1)
        best = int(np.argmax(containment))
        return self.names[best], float(containment[best])
