"""What a sample of documents is like, in figures that know no model.

How varied texts are is told by distinct-n (J. Li et al., "A diversity-promoting objective function
for neural conversation models", 2016) and the compression ratio, and not by self-BLEU: that takes
n² comparisons, and says little beside those two (C. Shaib et al., "Standardizing the measurement of
text diversity", 2024). Both depend on how much text they are taken of: compare equal numbers of
words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sbp_jax.text.near_duplicates import near_duplicate_pairs
from sbp_jax.text.shingles import ngram_hashes, shingles, words

NGRAMS = (1, 2, 3, 4, 5)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NEAR_DUPLICATE = 0.5  # containment of 13-word shingles, as between splits
RESAMPLES = 1000
COVERED = 0.95
BINS = 24


class Figure(NamedTuple):
    """A mean over documents, with its interval at a confidence of `COVERED`."""

    mean: float
    low: float
    high: float


def figure(values: ArrayLike, weights: ArrayLike | None = None) -> Figure:
    """The sum of some documents' values over the sum of their weights.

    The interval is that of percentiles of resampled documents (B. Efron, "Bootstrap methods:
    another look at the jackknife", 1979), drawn by a fixed seed.

    Args:
      values: of each document; at least one.
      weights: of each document, as its tokens where the value is a sum over these; 1 if not given.
        Where all are 0 the figure is 0.
    """
    above = np.asarray(values, np.float64)
    below = np.ones(len(above)) if weights is None else np.asarray(weights, np.float64)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(len(above), size=len(above))
        drawn.append(_ratio(above[chosen].sum(), below[chosen].sum()))
    low, high = np.quantile(drawn, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return Figure(_ratio(above.sum(), below.sum()), float(low), float(high))


def duplicates(texts: Sequence[str]) -> dict[int, float]:
    """Share of near-duplicates among the first N texts, for N by powers of ten and for all.

    The paper's duplicate@N: a text counts if any other of the N shares `NEAR_DUPLICATE` of the
    shorter one's 13-word shingles with it.
    """
    pairs = near_duplicate_pairs([shingles(text) for text in texts], NEAR_DUPLICATE)
    sizes = [n for n in (10**power for power in range(1, 12)) if n < len(texts)]
    found = {}
    for size in [*sizes, len(texts)]:
        members = {place for *ends, _ in pairs if max(ends) < size for place in ends}
        found[size] = len(members) / size
    return found


def distinct(texts: Sequence[str], words_in_all: int) -> dict[int, float]:
    """distinct-n: kinds of runs of n words over runs, in the first so many words of the texts."""
    tokens = _first_words(texts, words_in_all)
    found = {}
    for n in NGRAMS:
        runs = [ngram_hashes(one, n) for one in tokens if len(one) >= n]
        every = np.concatenate([np.zeros(0, np.uint64), *runs])
        found[n] = _ratio(len(np.unique(every)), len(every))
    return found


def new_ngrams(
    samples: Sequence[Sequence[str]], corpus: Iterable[str], own: Sequence[int]
) -> list[dict[int, Figure]]:
    """Of some samples of texts the share of runs of n words that a corpus does not have.

    The corpus is passed over once, and only what the samples have is held.

    Args:
      samples: texts.
      corpus: texts.
      own: for each sample how many documents of the corpus do not count: 0, or 1 where the texts
        are documents of the corpus and are compared with the others.

    Returns:
      By n, for each sample.
    """
    runs = {n: [[_runs(text, n) for text in texts] for texts in samples] for n in NGRAMS}
    wanted = {
        n: np.unique(np.concatenate([np.zeros(0, np.uint64), *(r for one in found for r in one)]))
        for n, found in runs.items()
    }
    documents = {n: np.zeros(len(known), np.int64) for n, known in wanted.items()}
    for text in corpus:
        for n in NGRAMS:
            at, there = _look_up(wanted[n], np.unique(_runs(text, n)))
            documents[n][at[there]] += 1

    def share(n: int, place: int) -> Figure:
        found = runs[n][place]
        new = [int((documents[n][_look_up(wanted[n], r)[0]] <= own[place]).sum()) for r in found]
        return figure(new, [len(r) for r in found])

    return [{n: share(n, place) for n in NGRAMS} for place in range(len(samples))]


def histogram(samples: Sequence[np.ndarray]) -> tuple[list[int], list[list[int]]]:
    """Common edges, and the counts of each sample; the last bin has what is longer too."""
    every = np.concatenate(samples)
    # Whole numbers, so that every bin has as many lengths in it.
    step = max(1, int(np.ceil(np.quantile(every, 0.95) / BINS)))
    edges = np.arange(BINS + 1) * step
    counts = [np.histogram(np.minimum(one, edges[-1]), edges)[0].tolist() for one in samples]
    return edges.tolist(), counts


def word_count(texts: Sequence[str]) -> int:
    """Words in all of them."""
    return sum(len(words(text)) for text in texts)


def first_words(texts: Sequence[str], count: int) -> str:
    """So many words of the texts, as one text with a line for each."""
    return "\n".join(" ".join(tokens) for tokens in _first_words(texts, count))


def _first_words(texts: Sequence[str], count: int) -> list[list[str]]:
    found = []
    for text in texts:
        if count <= 0:
            break
        found.append(words(text)[:count])
        count -= len(found[-1])
    return found


def _runs(text: str, n: int) -> np.ndarray:
    tokens = words(text)
    return ngram_hashes(tokens, n) if len(tokens) >= n else np.zeros(0, np.uint64)


def _look_up(known: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of values among ascending ones, and which are there."""
    if not len(known):
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return at, known[at] == values


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else 0.0
