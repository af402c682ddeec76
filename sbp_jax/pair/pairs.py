"""From neighbours to pairs: filters in one order, each of which counts what it takes.

A pair is directed: d1 is the seed that is read, d2 the target that is written. The paper keeps
pairs above a similarity α and removes near-duplicates by shared 13-token shingles; the other
filters, and what share of shingles makes a near-duplicate, are this project's choice. Nothing is
lost unseen: every candidate is a pair in the end, or counted under the one filter that took it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Pair:
    """A directed pair.

    Attributes:
      seed: index of d1 among the seeds.
      target: index of d2 among the targets.
      similarity: inner product of their unit vectors.
    """

    seed: int
    target: int
    similarity: float


@dataclasses.dataclass
class Removed:
    """How many candidates each filter took, in the order in which they are applied.

    Attributes:
      self_pairs: a document with itself.
      below_alpha: not above α.
      above_upper_bound: above the upper bound.
      not_mutual: only one of the two documents is among the other's neighbours.
      same_feature: of one source, URL or the like.
      too_long: d1 or d2 has more tokens than the synthesizer reads or writes.
      held_out: d1 or d2 contains a text that is to stay unseen.
      near_duplicates: d1 and d2 share too many shingles.
      hubs: a document has more similar partners, as many as one may have.
      over_cap: d1 has more similar targets, as many as one may have.
    """

    self_pairs: int = 0
    below_alpha: int = 0
    above_upper_bound: int = 0
    not_mutual: int = 0
    same_feature: int = 0
    too_long: int = 0
    held_out: int = 0
    near_duplicates: int = 0
    hubs: int = 0
    over_cap: int = 0

    @property
    def total(self) -> int:
        """Candidates taken by all filters together."""
        return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Directed pairs that may be kept, by seed and then target, none twice.

    Attributes:
      seeds: int64 [c], indices of d1.
      targets: int64 [c], indices of d2.
      similarities: float64 [c].
      mutual: bool [c], whether each is among the other's neighbours.
    """

    seeds: np.ndarray
    targets: np.ndarray
    similarities: np.ndarray
    mutual: np.ndarray

    def __len__(self) -> int:
        return len(self.seeds)

    def where(self, kept: np.ndarray) -> Candidates:
        """Those at which `kept`, bool [c], is true."""
        return Candidates(*(getattr(self, f.name)[kept] for f in dataclasses.fields(self)))


# Which candidates a filter takes: seeds int64 [c] and targets int64 [c] to bool [c].
Filter = Callable[[np.ndarray, np.ndarray], np.ndarray]


def candidates(found: np.ndarray, products: np.ndarray, *, same_corpus: bool) -> Candidates:
    """The neighbours of all targets as directed pairs.

    Where seeds and targets are one corpus, what was found in one direction is a candidate in both,
    at the larger of the similarities that were found.

    Args:
      found: int [targets, k], for each target the nearest seeds; below 0 where there is none.
      products: float32 [targets, k], their inner products.
      same_corpus: whether seeds and targets are the same documents.
    """
    seeds = np.asarray(found, np.int64).reshape(-1)
    targets = np.repeat(np.arange(len(found)), found.shape[1])
    similarities = np.asarray(products, np.float64).reshape(-1)
    there = seeds >= 0
    seeds, targets, similarities = seeds[there], targets[there], similarities[there]
    directions = np.ones(len(seeds), np.int8)
    if same_corpus:
        seeds, targets = np.concatenate([seeds, targets]), np.concatenate([targets, seeds])
        similarities = np.concatenate([similarities, similarities])
        directions = np.concatenate([directions, 2 * directions])
    order = np.lexsort((-similarities, targets, seeds))
    seeds, targets, similarities = seeds[order], targets[order], similarities[order]
    new = np.ones(len(seeds), bool)
    new[1:] = (np.diff(seeds) != 0) | (np.diff(targets) != 0)
    first = np.flatnonzero(new)
    both = np.bitwise_or.reduceat(directions[order], first) if len(first) else directions[:0]
    return Candidates(seeds[first], targets[first], similarities[first], both == 3)


def select(
    found: np.ndarray,
    products: np.ndarray,
    *,
    same_corpus: bool,
    alpha: float,
    upper_bound: float | None = None,
    mutual_only: bool = False,
    same_feature: Filter | None = None,
    too_long: Filter | None = None,
    held_out: Filter | None = None,
    near_duplicate: Filter | None = None,
    max_pairs_per_document: int | None = None,
    max_per_seed: int | None = None,
) -> tuple[list[Pair], Removed]:
    """Chooses pairs among the neighbours of each target.

    The filters are applied in the order of `Removed`: the cheap ones first, and those that rank
    what is left last.

    Args:
      found: int [targets, k], for each target the nearest seeds.
      products: float32 [targets, k], their inner products.
      same_corpus: whether seeds and targets are the same documents; a candidate is then one in both
        directions.
      alpha: pairs must lie above it.
      upper_bound: and not above this, if given.
      mutual_only: whether each must be among the other's neighbours.
      same_feature: takes pairs of one source.
      too_long: takes pairs that the synthesizer cannot hold.
      held_out: takes pairs with text that is to stay unseen.
      near_duplicate: takes near-duplicates.
      max_pairs_per_document: a document has at most so many partners, the most similar ones.
      max_per_seed: at most so many targets a seed, the most similar ones.

    Returns:
      Pairs by seed, most similar first, and what was removed.
    """
    left = candidates(found, products, same_corpus=same_corpus)
    removed = Removed()

    def take(name: str, taken: np.ndarray) -> None:
        nonlocal left
        setattr(removed, name, int(taken.sum()))
        left = left.where(~taken)

    if same_corpus:
        take("self_pairs", left.seeds == left.targets)
    take("below_alpha", ~(left.similarities > alpha))  # no number is not above it either
    if upper_bound is not None:
        take("above_upper_bound", left.similarities > upper_bound)
    if mutual_only:
        take("not_mutual", ~left.mutual)
    filters = {
        "same_feature": same_feature,
        "too_long": too_long,
        "held_out": held_out,
        "near_duplicates": near_duplicate,
    }
    for name, filter_ in filters.items():
        if filter_ is not None:
            take(name, filter_(left.seeds, left.targets))
    if max_pairs_per_document is not None:
        take("hubs", _beyond_partners(left, max_pairs_per_document, same_corpus))
    left = left.where(np.lexsort((left.targets, -left.similarities, left.seeds)))
    if max_per_seed is not None:
        first = np.searchsorted(left.seeds, left.seeds)  # of the same seed
        take("over_cap", np.arange(len(left)) - first >= max_per_seed)
    columns = left.seeds.tolist(), left.targets.tolist(), left.similarities.tolist()
    return [Pair(*row) for row in zip(*columns, strict=True)], removed


def _beyond_partners(left: Candidates, most: int, same_corpus: bool) -> np.ndarray:
    """Which pairs go so that no document has more than `most` partners, bool [c].

    The most similar pairs choose first: one goes only if a document of it has `most` more similar
    partners that stay. Both directions of a pair are one, and go together.
    """
    order = np.lexsort((left.targets, left.seeds, -left.similarities)).tolist()
    seeds, targets = left.seeds.tolist(), left.targets.tolist()
    of_seeds: dict[int, int] = {}
    of_targets: dict[int, int] = of_seeds if same_corpus else {}
    decided: dict[tuple[int, int], bool] = {}
    taken = np.zeros(len(left), bool)
    for place in order:
        seed, target = seeds[place], targets[place]
        pair = (min(seed, target), max(seed, target)) if same_corpus else (seed, target)
        if pair not in decided:
            full = max(of_seeds.get(seed, 0), of_targets.get(target, 0)) >= most
            decided[pair] = full
            if not full:
                of_seeds[seed] = of_seeds.get(seed, 0) + 1
                of_targets[target] = of_targets.get(target, 0) + 1
        taken[place] = decided[pair]
    return taken


def statistics(
    pairs: Sequence[Pair],
    removed: Removed,
    products: np.ndarray,
    *,
    seeds: int,
    alpha: float,
    bins: int = 40,
) -> dict:
    """What is worth knowing of pairs, for JSON.

    The histogram counts by similarity all neighbours that were looked at (`counts`) and the kept
    pairs (`pairs`); `filters` says what each removed, in their order, and with `pairs` adds up to
    `candidates`.
    """
    edges = np.linspace(min(0.0, float(products.min(initial=0.0))), 1.0, bins + 1)
    per_seed = np.bincount([pair.seed for pair in pairs], minlength=seeds)
    similarities = [pair.similarity for pair in pairs]
    return {
        "alpha": alpha,
        "candidates": len(pairs) + removed.total,
        "pairs": len(pairs),
        "seeds": int((per_seed > 0).sum()),
        "documents": seeds,
        "histogram": {
            "edges": [round(float(edge), 4) for edge in edges],
            "counts": np.histogram(np.clip(products, None, 1.0), edges)[0].tolist(),
            "pairs": np.histogram(np.clip(similarities, None, 1.0), edges)[0].tolist(),
        },
        "pairs_per_document": float(per_seed.mean()),
        "median_pairs_per_document": float(np.median(per_seed)),
        "most_pairs_of_a_document": int(per_seed.max()),
        "share_without_pairs": float((per_seed == 0).mean()),
        "filters": dataclasses.asdict(removed),
    }
