"""A page to choose α by: neighbours by similarity, and what pairs of each similarity are like.

The similarity of an embedder says nothing by itself. So all neighbours that were looked at are
dealt to bands of equal width; of each band some pairs, drawn by a seed, are measured and a few are
shown side by side. No filter is applied and no artefact is left.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import jinja2
import numpy as np

from sbp_jax.data.documents import Document
from sbp_jax.errors import UserError
from sbp_jax.pair.pairs import Candidates
from sbp_jax.text.shingles import MEASURES, shingles, words

BANDS = 8
BINS = 48
SEED = 0
MEASURED = 1000  # pairs of a band, at most
SHOWN = 3
SHOWN_CHARACTERS = 1500
# What HTML cannot hold, and documents may: control characters and halves of surrogate pairs.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Measured:
    """A pair, and how alike its documents are.

    Attributes:
      seed: d1.
      target: d2.
      similarity: inner product of their vectors.
      shared_shingles: of 13 words, by the near-duplicates' measure.
      word_overlap: Jaccard index of their sets of words.
      length_ratio: words of the shorter over those of the longer; 1 if neither has any.
    """

    seed: Document
    target: Document
    similarity: float
    shared_shingles: float
    word_overlap: float
    length_ratio: float


@dataclasses.dataclass(frozen=True)
class Band:
    """The pairs of a stretch of similarity.

    Attributes:
      low: its lower end, within it.
      high: its upper end, which only the last has within it.
      pairs: how many there are.
      pairs_from: pairs of this band and those above, as `alpha` at its lower end would leave.
      documents_from: documents that are in one of those.
      measured: how many of the band's pairs the following are of.
      near_duplicates: share of near-duplicates; this and the next two None if nothing is measured.
      length_ratio: median of the lengths' ratios.
      word_overlap: mean Jaccard index of the words.
      examples: some of the measured pairs.
    """

    low: float
    high: float
    pairs: int
    pairs_from: int
    documents_from: int
    measured: int
    near_duplicates: float | None
    length_ratio: float | None
    word_overlap: float | None
    examples: tuple[Measured, ...]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What the page shows.

    Attributes:
      documents: of both corpora; of the one where they are one.
      neighbours: how many of each target were looked at.
      threshold: share of shingles above which two documents are near-duplicates.
      bands: lowest first.
      edges: similarities between which `counts` counts.
      counts: pairs by similarity.
    """

    documents: int
    neighbours: int
    threshold: float
    bands: tuple[Band, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]


def inspect(
    candidates: Candidates,
    seeds: Sequence[Document],
    targets: Sequence[Document],
    *,
    neighbours: int,
    threshold: float,
    measure: str = "containment",
) -> Inspection:
    """Deals pairs to bands and measures some of each.

    Args:
      candidates: what was found; of one corpus, each pair is looked at in one direction.
      seeds: the documents d1.
      targets: the documents d2; the same object where they are one corpus.
      neighbours: how many of each target were looked at.
      threshold: share of shingles above which two documents are near-duplicates.
      measure: of that share, one of `shingles.MEASURES`.

    Raises:
      UserError: no two documents are neighbours.
    """
    kept = np.isfinite(candidates.similarities)
    if seeds is targets:
        kept &= candidates.seeds < candidates.targets
    found = candidates.where(kept)
    if not len(found):
        raise UserError("pair: no two documents are neighbours: embed more documents")
    low, high = float(found.similarities.min()), float(found.similarities.max())
    if high - low < 1e-6:
        low, high = low - 0.01, high + 0.01
    edges = np.linspace(low, high, BANDS + 1)
    band_of = np.clip(np.searchsorted(edges, found.similarities, "right") - 1, 0, BANDS - 1)
    bands = []
    for number in range(BANDS):
        members, above = np.flatnonzero(band_of == number), band_of >= number
        rng = np.random.default_rng([SEED, number])
        drawn = rng.permutation(members)[:MEASURED].tolist()
        measured = [_measure(found, place, seeds, targets, measure) for place in drawn]
        ends = found.seeds[above], found.targets[above]
        partnered = (
            len(np.unique(np.concatenate(ends)))
            if seeds is targets
            else sum(len(np.unique(one)) for one in ends)
        )
        bands.append(
            Band(
                low=float(edges[number]),
                high=float(edges[number + 1]),
                pairs=len(members),
                pairs_from=int(above.sum()),
                documents_from=partnered,
                measured=len(measured),
                near_duplicates=_mean([one.shared_shingles > threshold for one in measured]),
                length_ratio=(
                    float(np.median([one.length_ratio for one in measured])) if measured else None
                ),
                word_overlap=_mean([one.word_overlap for one in measured]),
                examples=tuple(measured[:SHOWN]),
            )
        )
    bins = np.linspace(low, high, BINS + 1)
    return Inspection(
        documents=len(seeds) if seeds is targets else len(seeds) + len(targets),
        neighbours=neighbours,
        threshold=threshold,
        bands=tuple(bands),
        edges=tuple(bins.tolist()),
        counts=tuple(np.histogram(found.similarities, bins)[0].tolist()),
    )


def render(name: str, inspection: Inspection) -> str:
    """The page, which asks for nothing from anywhere else; all text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sbp_jax.pair", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        whole=lambda value: f"{value:,}",
        decimal=lambda value, digits=2: (
            "–" if value is None else f"{value:.{digits}f}".replace("-", "−")
        ),
        percent=lambda value: "–" if value is None else f"{100 * value:.1f}%",
    )
    text = environment.get_template("inspect.html").render(
        name=name,
        inspection=inspection,
        most=max(*inspection.counts, 1),
        shown_characters=SHOWN_CHARACTERS,
    )
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _measure(
    found: Candidates,
    place: int,
    seeds: Sequence[Document],
    targets: Sequence[Document],
    measure: str,
) -> Measured:
    seed, target = seeds[int(found.seeds[place])], targets[int(found.targets[place])]
    first, second = words(seed.text), words(target.text)
    union = len({*first, *second})
    longest = max(len(first), len(second))
    return Measured(
        seed=seed,
        target=target,
        similarity=float(found.similarities[place]),
        shared_shingles=MEASURES[measure](shingles(seed.text), shingles(target.text)),
        word_overlap=len({*first} & {*second}) / union if union else 0.0,
        length_ratio=min(len(first), len(second)) / longest if longest else 1.0,
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
