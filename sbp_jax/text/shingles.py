"""Shingles: a text as the set of its runs of n words, hashed, and likeness as overlap of such sets.

The set of shingles of a document and its resemblance (Jaccard) and containment are those of
A. Broder, "On the resemblance and containment of documents" (1997). Hashes depend on the text
alone, never on the process, so sets written by one machine may be compared on another. Two
different shingles share a hash with probability about 2^-64.
"""

from __future__ import annotations

import functools
import hashlib
import re

import numpy as np

SHINGLE_WORDS = 13

_WORD = re.compile(r"\w+")
_RADIX = 0x9E3779B97F4A7C15  # odd, so multiplication by it loses nothing modulo 2^64


def words(text: str) -> list[str]:
    """The words of a text: runs of letters, digits and underscores, in lower case."""
    return _WORD.findall(text.lower())


def shingles(text: str, n: int = SHINGLE_WORDS) -> np.ndarray:
    """The distinct hashed runs of `n` words of a text.

    Args:
      text: any text; what stands between words does not count.
      n: words in a shingle, at least 1.

    Returns:
      uint64 [shingles], ascending, no value twice. A text of fewer than `n` words has one shingle
      of all its words; a text without words has none.

    Raises:
      ValueError: `n` is less than 1.
    """
    return np.unique(ngram_hashes(words(text), n))


def ngram_hashes(tokens: list[str], n: int) -> np.ndarray:
    """Hashes of all runs of `n` tokens in their order, uint64 [max(1, tokens - n + 1)].

    Fewer than `n` tokens make one run of all of them; no tokens make none.

    Raises:
      ValueError: `n` is less than 1.
    """
    if n < 1:
        raise ValueError(f"a shingle has at least 1 word, not {n}")
    if not tokens:
        return np.zeros(0, np.uint64)
    n_used = min(n, len(tokens))
    hashed = np.fromiter(map(_word_hash, tokens), np.uint64, len(tokens))
    count = len(tokens) - n_used + 1
    # A polynomial in the words' hashes; uint64 arithmetic wraps, which is what is wanted. Starting
    # from the length keeps a short text's only shingle apart from longer ones.
    result = np.full(count, n_used, np.uint64)
    for offset in range(n_used):
        result = result * np.uint64(_RADIX) + hashed[offset : offset + count]
    return _mix(result)


def overlap(a: np.ndarray, b: np.ndarray) -> int:
    """How many shingles two sets (as `shingles` returns them) share."""
    return len(np.intersect1d(a, b, assume_unique=True))


def containment(a: np.ndarray, b: np.ndarray) -> float:
    """|A ∩ B| / min(|A|, |B|): the share of the smaller set that is in the larger; 0 if empty."""
    smaller = min(len(a), len(b))
    return overlap(a, b) / smaller if smaller else 0.0


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B|, Broder's resemblance; 0 if both are empty."""
    shared = overlap(a, b)
    union = len(a) + len(b) - shared
    return shared / union if union else 0.0


MEASURES = {"containment": containment, "jaccard": jaccard}


@functools.lru_cache(maxsize=1 << 18)  # a corpus has few distinct words, and blake2b is slow
def _word_hash(word: str) -> int:
    # surrogatepass: a lone surrogate is text too, and must not end the stage that meets it
    data = word.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014): spreads every bit over all 64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
