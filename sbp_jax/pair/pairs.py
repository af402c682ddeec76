"""From neighbours to pairs: threshold, filters and caps, each counted.

A pair is directed: d1 is the seed that is read, d2 the target that is written. The paper keeps
pairs above a similarity α and removes near-duplicates by shared 13-token shingles; what share of
shingles makes a near-duplicate is this project's choice.
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
    """How many candidates each filter took, in the order in which they are applied."""

    self_pairs: int = 0
    below_alpha: int = 0
    above_upper_bound: int = 0
    near_duplicates: int = 0
    over_cap: int = 0


def select(
    found: np.ndarray,
    products: np.ndarray,
    *,
    same_corpus: bool,
    alpha: float,
    upper_bound: float | None,
    near_duplicate: Callable[[int, int], bool],
    max_per_seed: int | None,
) -> tuple[list[Pair], Removed]:
    """Chooses pairs among the neighbours of each target.

    Where seeds and targets are one corpus, a kept pair is kept in both directions.

    Args:
      found: int [targets, k], for each target the nearest seeds.
      products: float32 [targets, k], their inner products.
      same_corpus: whether seeds and targets are the same documents.
      alpha: pairs must lie above it.
      upper_bound: and not above this, if given.
      near_duplicate: whether a seed and a target are near-duplicates.
      max_per_seed: at most so many targets a seed, the most similar ones.

    Returns:
      Pairs by seed, most similar first, and what was removed.
    """
    removed = Removed()
    kept: dict[tuple[int, int], float] = {}
    checked: dict[tuple[int, int], bool] = {}
    for target, (seeds, similarities) in enumerate(zip(found, products, strict=True)):
        for seed, similarity in zip(seeds.tolist(), similarities.tolist(), strict=True):
            if same_corpus and seed == target:
                removed.self_pairs += 1
                continue
            if not similarity > alpha:
                removed.below_alpha += 1
                continue
            if upper_bound is not None and similarity > upper_bound:
                removed.above_upper_bound += 1
                continue
            pair = (min(seed, target), max(seed, target)) if same_corpus else (seed, target)
            if pair not in checked:
                checked[pair] = near_duplicate(seed, target)
            if checked[pair]:
                removed.near_duplicates += 1
                continue
            kept[seed, target] = similarity
            if same_corpus:
                kept[target, seed] = similarity
    by_seed: dict[int, list[Pair]] = {}
    for (seed, target), similarity in kept.items():
        by_seed.setdefault(seed, []).append(Pair(seed, target, similarity))
    chosen = []
    for seed in sorted(by_seed):
        ranked = sorted(by_seed[seed], key=lambda pair: (-pair.similarity, pair.target))
        chosen += ranked[:max_per_seed]
        removed.over_cap += len(ranked) - len(ranked[:max_per_seed])
    return chosen, removed


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
    pairs (`pairs`); `filters` says what each removed, in their order.
    """
    edges = np.linspace(min(0.0, float(products.min(initial=0.0))), 1.0, bins + 1)
    per_seed = np.bincount([pair.seed for pair in pairs], minlength=seeds)
    similarities = [pair.similarity for pair in pairs]
    return {
        "alpha": alpha,
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
