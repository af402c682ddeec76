"""Which of some texts a new text contains: an index of their runs of n words.

Overlap is measured as among near-duplicates: the containment of shingle sets (`shingles`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sbp_jax.text import shingles


class NgramIndex:
    """Texts, to be found in others.

    A run takes 12 bytes, and 32 while the index is made: of 1 GB of English, some 170 million
    words, 2 and 5.5 GB. `one_in` divides that, and what is measured of two texts is then an
    estimate of their containment (Broder's sketches modulo a number); a text of few runs may be
    left with none, and is not found.

    Args:
      texts: by name. Those without a word cannot be found.
      n: words in a run.
      one_in: of the runs one in so many is looked at, chosen by its hash.
    """

    def __init__(
        self,
        texts: Iterable[tuple[str, str]],
        n: int = shingles.SHINGLE_WORDS,
        one_in: int = 1,
    ):
        self.n, self.one_in, self.names = n, one_in, list[str]()
        sets = []
        for name, text in texts:
            self.names.append(name)
            sets.append(self._runs(text))
        self.sizes = np.array([len(found) for found in sets], np.int64)
        hashes = np.concatenate([np.zeros(0, np.uint64), *sets])
        del sets
        owners = np.repeat(np.arange(len(self.sizes), dtype=np.int32), self.sizes)
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.owners = hashes[order], owners[order]

    def most_contained(self, text: str) -> tuple[str, float] | None:
        """The text of the index that shares most with another text.

        Returns:
          Its name, and the containment: shared runs over those of the smaller of the two. None if
          no run is shared.
        """
        mine = self._runs(text)
        first = np.searchsorted(self.hashes, mine, "left")
        counts = np.searchsorted(self.hashes, mine, "right") - first
        if not counts.any():
            return None
        at = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        found, shared = np.unique(self.owners[at], return_counts=True)
        containment = shared / np.minimum(self.sizes[found], len(mine))
        best = int(np.argmax(containment))
        return self.names[found[best]], float(containment[best])

    def _runs(self, text: str) -> np.ndarray:
        found = shingles.shingles(text, self.n)
        return found if self.one_in == 1 else found[found % np.uint64(self.one_in) == 0]
