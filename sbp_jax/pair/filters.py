"""Filters that look into the documents of a pair: source, length, held-out text, near-duplicates.

Each is made from the documents and gives a function from seeds and targets, int64 [c], to which of
these pairs it takes, bool [c]. A document that stands in many pairs is looked at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from sbp_jax.data.documents import Document
from sbp_jax.data.vocabularies import Vocabulary
from sbp_jax.errors import UserError
from sbp_jax.pair.pairs import Filter
from sbp_jax.text import minhash
from sbp_jax.text.ngram_index import NgramIndex
from sbp_jax.text.shingles import MEASURES, shingles

SHINGLE_SETS_HELD = 1 << 14  # of the documents that the signatures cannot decide


def same_feature(
    seeds: Sequence[Document], targets: Sequence[Document], names: Sequence[str]
) -> Filter:
    """Takes pairs that have the same value of one of the features; no value is no likeness.

    Raises:
      UserError: a feature is known of no document.
    """
    for name in names:
        if not any(document.features.get(name) for one in (seeds, targets) for document in one):
            known = sorted({key for one in (seeds, targets) for d in one for key in d.features})
            raise UserError(
                f"pair.same_feature: no document has the feature {name!r}: expected some of "
                f"{known}; a task's other text features are kept where cache.documents = True"
            )

    def taken(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        result = np.zeros(len(first), bool)
        for name in names:
            numbers: dict[str, int] = {}
            values = [
                [numbers.setdefault(d.features.get(name) or "", len(numbers)) for d in one]
                for one in (seeds, targets)
            ]
            of_seeds, of_targets = (np.array(v, np.int64) for v in values)
            result |= (of_seeds[first] == of_targets[second]) & (
                of_seeds[first] != numbers.get("", -1)
            )
        return result

    return taken


def too_long(
    seeds: Sequence[Document],
    targets: Sequence[Document],
    vocabulary: Vocabulary,
    seed_tokens: int | None,
    target_tokens: int | None,
) -> Filter:
    """Takes pairs of which `sbp cache` would cut a document at these lengths.

    d1 counts its tokens, d2 also its end, as for `cache.seed_length` and `cache.target_length`.
    """

    def longer(documents: Sequence[Document], most: int, indices: np.ndarray) -> np.ndarray:
        def measure(chosen: list[int]) -> list[bool]:
            texts = [documents[i].text for i in chosen]
            return [len(ids) > most for ids in vocabulary.encode_batch(texts)]

        return _of_documents(measure, indices)

    def taken(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        result = np.zeros(len(first), bool)
        if seed_tokens is not None:
            result |= longer(seeds, seed_tokens, first)
        if target_tokens is not None:
            result |= longer(targets, target_tokens - 1, second)
        return result

    return taken


def held_out(
    seeds: Sequence[Document], targets: Sequence[Document], index: NgramIndex, overlap: float
) -> Filter:
    """Takes pairs of which d1 or d2 has a containment of `overlap` or more with an indexed text."""

    def contains(documents: Sequence[Document], indices: np.ndarray) -> np.ndarray:
        def measure(chosen: list[int]) -> list[bool]:
            most = (index.most_contained(documents[i].text) for i in chosen)
            return [found is not None and found[1] >= overlap for found in most]

        return _of_documents(measure, indices)

    return lambda first, second: contains(seeds, first) | contains(targets, second)


def near_duplicates(
    seeds: Sequence[Document],
    targets: Sequence[Document],
    threshold: float,
    method: str = "exact",
    measure: str = "containment",
) -> Filter:
    """Takes pairs whose 13-word shingles are more alike than `threshold`.

    `exact` compares the shingles of each pair, and holds those of all documents that are in one.
    `minhash` holds `minhash.SLOTS` numbers of each and compares those; where they leave a doubt,
    and only there, the shingles decide. The neighbours are the candidates, so no LSH index, which
    finds candidates, has to be held; and it would miss a short document inside a long one.

    Args:
      seeds: the documents d1.
      targets: the documents d2; the same object where they are one corpus.
      threshold: of the measure.
      method: `exact` or `minhash`.
      measure: `containment`, |A ∩ B| / min(|A|, |B|), or `jaccard`, |A ∩ B| / |A ∪ B|.
    """
    likeness = MEASURES[measure]
    corpora = {id(seeds): seeds, id(targets): targets}

    def compare(keys: np.ndarray, shingles_of: Callable) -> np.ndarray:
        sets = ((shingles_of(id(seeds), s), shingles_of(id(targets), t)) for s, t in keys.tolist())
        return np.fromiter((likeness(a, b) > threshold for a, b in sets), bool, len(keys))

    def read(corpus: int, index: int) -> np.ndarray:
        return shingles(corpora[corpus][index].text)

    def by_signatures(keys: np.ndarray) -> np.ndarray:
        sizes, signatures, places = [], [], []
        for column, corpus in enumerate((seeds, targets)):
            chosen, inverse = np.unique(keys[:, column], return_inverse=True)
            sets = (shingles(corpus[i].text) for i in chosen.tolist())
            counted, signed = minhash.sign(sets, len(chosen))
            sizes.append(counted[inverse])
            signatures.append(signed)
            places.append(inverse)
        estimates = minhash.agreement(signatures[0], signatures[1], (places[0], places[1]))
        low, high = minhash.bounds(estimates, sizes[0], sizes[1], measure)
        result = low > threshold
        doubtful = ~result & (high > threshold)
        logging.info(
            "near-duplicates: shingles decide %d of %d pairs", int(doubtful.sum()), len(keys)
        )
        held = functools.lru_cache(SHINGLE_SETS_HELD)(read)
        result[doubtful] = compare(keys[doubtful], held)
        return result

    def taken(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        if seeds is targets:  # both directions of a pair are one question
            first, second = np.minimum(first, second), np.maximum(first, second)
        keys, inverse = np.unique(np.stack([first, second], 1), axis=0, return_inverse=True)
        if method == "exact":
            return compare(keys, functools.cache(read))[inverse.reshape(-1)]
        return by_signatures(keys)[inverse.reshape(-1)]

    return taken


def _of_documents(measure: Callable[[list[int]], list[bool]], indices: np.ndarray) -> np.ndarray:
    """What is measured of each document once, at each of its indices, bool [c]."""
    chosen, inverse = np.unique(indices, return_inverse=True)
    return np.array(measure(chosen.tolist()), bool)[inverse]
