"""Filters: which samples do not enter the corpus, each with the figure that decided.

All but one look at a text alone and decide when it is written. Near-duplicates among the texts
themselves are known when all are there: they are looked for in the plan's order, in which the first
of them stays, so the corpus does not depend on who wrote what first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sbp_jax.errors import UserError
from sbp_jax.settings import configurable
from sbp_jax.text import language
from sbp_jax.text.compression import compression
from sbp_jax.text.ngram_index import NgramIndex
from sbp_jax.text.repetition import repetition
from sbp_jax.text.shingles import containment, shingles, words


@configurable
@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """Limits of what is kept; None for no limit.

    The paper has a rule-based repetition filter and tells no limits: these, and the other filters,
    are ours. Copies are measured by containment, the share of the shorter text's 13-word shingles
    that both have.

    Attributes:
      min_words: a text of fewer is too short.
      max_repetition: largest share of 4-word runs that repeat earlier ones of the same text. A
        document that was ended in a loop is rejected whatever its share.
      max_compression: largest ratio of a text's bytes to what zstandard makes of them. It grows
        with length: real documents of the demo have 1.9, the longest, of 16 kB, 3.5.
      languages: codes of ISO 639, as ['en']: a text whose most probable language is another is
        rejected; None to look at none. That of code or tables is a guess.
      max_seed_copy: largest containment with the text's own seed.
      max_corpus_copy: likewise with any document of the artefact that the seeds are from, which
        each process then holds an index of (`NgramIndex` tells its memory).
      corpus_copy_one_in: of the runs in that index one in so many is looked at, which divides its
        memory and makes the containment an estimate.
      exclude: artefacts with documents (`cache.documents = True`), as 'rows/dev', or SeqIO tasks
        with all their splits, as 'tasks.lambada:test', that no text may overlap.
      exclude_overlap: the containment from which it does, as `cache.overlap`.
      max_near_duplicate: largest Jaccard index of the 13-word shingles of two texts of the corpus.
        `synthesize.tokens` counts what these take.
      keep_unfinished: whether a text that was cut at the length limit is kept. Rejecting them
        would bias the corpus to short documents.

    Raises:
      UserError: a limit is out of range.
    """

    min_words: int | None = 10
    max_repetition: float | None = 0.5
    max_compression: float | None = 4.0
    languages: Sequence[str] | None = None
    max_seed_copy: float | None = 0.5
    max_corpus_copy: float | None = 0.5
    corpus_copy_one_in: int = 1
    exclude: Sequence[str] = ()
    exclude_overlap: float = 0.5
    max_near_duplicate: float | None = 0.5
    keep_unfinished: bool = True

    def __post_init__(self):
        for name in ("max_repetition", "max_seed_copy", "max_corpus_copy", "max_near_duplicate"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise UserError(
                    f"FilterConfig.{name} = {share}: expected a share from 0 to 1, or None"
                )
        if not 0 < self.exclude_overlap <= 1:
            raise UserError(
                f"FilterConfig.exclude_overlap = {self.exclude_overlap}: expected a share above 0 "
                "and up to 1"
            )
        if self.max_compression is not None and not self.max_compression > 0:
            raise UserError(
                f"FilterConfig.max_compression = {self.max_compression}: expected a ratio above 0, "
                "or None"
            )
        if self.corpus_copy_one_in < 1:
            raise UserError(
                f"FilterConfig.corpus_copy_one_in = {self.corpus_copy_one_in}: expected at least 1"
            )
        for name in ("exclude", "languages"):
            if isinstance(value := getattr(self, name), str):  # a sequence too, of its letters
                raise UserError(f"FilterConfig.{name} = {value!r}: expected a list, as [{value!r}]")
        if self.languages is not None:
            unknown = sorted(set(self.languages) - set(language.known()))
            if unknown or not self.languages:
                raise UserError(
                    f"FilterConfig.languages = {list(self.languages)}: expected codes of ISO 639 "
                    f"that langid knows, as ['en', 'de']; it does not know {unknown}"
                    if unknown
                    else "FilterConfig.languages = []: expected at least one code, or None"
                )


class Judged(NamedTuple):
    """What the filters found of a text.

    Attributes:
      rejected_by: the first filter that rejects it, None if it is kept.
      repetition: share of repeated 4-word runs.
      compression: bytes of the text over its bytes compressed.
      language: the most probable one's code; empty if it was not looked at.
      seed_copy: containment with the seed.
      corpus_copy: largest containment with a training document; None if none was looked at.
      alike: the training document or evaluation text for which it is rejected, or None.
    """

    rejected_by: str | None
    repetition: float = 0.0
    compression: float = 0.0
    language: str = ""
    seed_copy: float = 0.0
    corpus_copy: float | None = None
    alike: str | None = None


NEAR_DUPLICATE = "near_duplicate"
FILTERS = (
    "not_a_number",
    "too_short",
    "repetition",
    "compression",
    "language",
    "seed_copy",
    "corpus_copy",
    "excluded",
    "unfinished",
    NEAR_DUPLICATE,
)


def judge(
    text: str,
    finish_reason: str,
    seed_shingles: np.ndarray,
    config: FilterConfig,
    corpus: NgramIndex | None = None,
    excluded: NgramIndex | None = None,
) -> Judged:
    """Takes a text's scores and the first filter in the order of `FILTERS` that rejects it.

    Args:
      text: as decoded.
      finish_reason: `stop`, `length` or `nan`.
      seed_shingles: of its seed, as `shingles` gives them.
      config: the limits.
      corpus: the training documents; None to look at none.
      excluded: the texts that none may overlap, likewise.
    """
    if finish_reason == "nan":
        return Judged("not_a_number")
    repeated, compressed = repetition(text), compression(text)
    spoken = language.language(text) if config.languages is not None else ""
    copied = containment(shingles(text), seed_shingles)
    nearest = corpus.most_contained(text) if corpus else None
    overlapping = excluded.most_contained(text) if excluded else None
    rejected_by, alike = None, None
    if _below(len(words(text)), config.min_words):
        rejected_by = "too_short"
    elif finish_reason == "repetition" or _above(repeated, config.max_repetition):
        rejected_by = "repetition"
    elif _above(compressed, config.max_compression):
        rejected_by = "compression"
    elif config.languages is not None and spoken not in config.languages:
        rejected_by = "language"
    elif _above(copied, config.max_seed_copy):
        rejected_by = "seed_copy"
    elif nearest and _above(nearest[1], config.max_corpus_copy):
        rejected_by, alike = "corpus_copy", nearest[0]
    elif overlapping and overlapping[1] >= config.exclude_overlap:
        rejected_by, alike = "excluded", overlapping[0]
    elif finish_reason == "length" and not config.keep_unfinished:
        rejected_by = "unfinished"
    corpus_copy = (nearest[1] if nearest else 0.0) if corpus else None
    return Judged(rejected_by, repeated, compressed, spoken, copied, corpus_copy, alike)


def _above(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit


def _below(value: float, limit: float | None) -> bool:
    return limit is not None and value < limit
