"""What an experiment holds fixed, and the sweeps that move one part of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sbp_jax.errors import UserError
from sbp_jax.model.decoder import DecoderConfig
from sbp_jax.settings import configurable

# On which fields of a design each thing hangs that is made once for all arms or changes of a sweep.
BASE = ("model", "row_length", "batch_size", "passes")
PAIRS = (
    *BASE,
    "embedder",
    "alpha",
    "neighbours",
    "near_duplicates",
    "max_pairs_per_document",
)
SYNTHESIZER = (
    *PAIRS,
    "pair_length",
    "seed_length",
    "target_length",
    "tune_steps",
    "tune_batch_size",
)
CORPUS = (*SYNTHESIZER, "share", "temperature", "top_p", "slots")
# Counts of at least one, where they are set.
WHOLE = (
    "row_length",
    "batch_size",
    "seed_length",
    "target_length",
    "tune_steps",
    "tune_batch_size",
    "neighbours",
    "max_pairs_per_document",
    "slots",
)


@configurable
@dataclasses.dataclass(frozen=True)
class Design:
    """All that the arms of an experiment share.

    Attributes:
      model: of every arm; its vocabulary is the corpus's.
      row_length: L, of the arms' rows.
      batch_size: B, rows a step.
      passes: over D_pretrain in the repetition arm; they set the steps of all arms.
      share: of the rows of an arm that reads other text beside D_pretrain.
      embedder: finds related documents: `TfidfEmbedder`, `ActivationEmbedder` (of the base model,
        whatever checkpoint it names) or `HuggingFaceEmbedder`.
      alpha: pairs are more similar than this.
      neighbours: that are looked at of each document.
      near_duplicates: pairs that share a larger part of the smaller one's runs of 13 words are left
        out; None for none.
      max_pairs_per_document: partners of a document, the most similar ones; None for all.
      pair_length: of rows of pairs.
      seed_length: d1 is cut to so many tokens.
      target_length: likewise d2, its end among them, and what is sampled.
      tune_steps: of the synthesizer, on pairs.
      tune_batch_size: rows of such a step.
      temperature: of the sampler.
      top_p: likewise.
      slots: documents that are sampled at a time.
      augmentation: in the augmentation arm, the share of tokens that are read as others.
    """

    model: DecoderConfig
    row_length: int
    batch_size: int
    pair_length: int
    seed_length: int
    target_length: int
    tune_steps: int
    tune_batch_size: int
    embedder: Any
    alpha: float
    passes: float = 20.0
    share: float = 0.375
    neighbours: int = 200
    near_duplicates: float | None = 0.5
    max_pairs_per_document: int | None = None
    temperature: float = 1.0
    top_p: float = 0.9
    slots: int = 64
    augmentation: float = 0.15

    def __post_init__(self):
        for name in WHOLE:
            if (number := getattr(self, name)) is not None and number < 1:
                raise UserError(f"Design.{name} = {number}: expected 1 or more")
        expected = {
            "share": (0 <= self.share < 1, "0 to below 1"),
            "augmentation": (0 < self.augmentation < 1, "above 0 and below 1"),
            "passes": (0 < self.passes < math.inf, "a number above 0"),
            "alpha": (-1 <= self.alpha < 1, "a similarity of -1 to below 1"),
            "temperature": (0 < self.temperature < math.inf, "a number above 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and up to 1"),
            "near_duplicates": (
                self.near_duplicates is None or 0 < self.near_duplicates <= 1,
                "above 0 and up to 1, or None",
            ),
        }
        for name, (fits, what) in expected.items():
            if not fits:
                raise UserError(f"Design.{name} = {getattr(self, name)}: expected {what}")
        if self.seed_length + 1 + self.target_length > self.pair_length:
            raise UserError(
                f"Design.pair_length = {self.pair_length}: a pair has up to seed_length + 1 + "
                f"target_length = {self.seed_length + 1 + self.target_length} tokens"
            )

    def part(self, fields: Sequence[str]) -> dict[str, Any]:
        """Some of its fields, by name."""
        return {name: getattr(self, name) for name in fields}

    def changed(self, changes: Mapping[str, Any]) -> Design:
        """With other values of some fields, or of the model's as `model.width`.

        Raises:
          UserError: a field is unknown.
        """
        own: dict[str, Any] = {}
        of_model: dict[str, Any] = {}
        for name, value in changes.items():
            where, field = (of_model, name[6:]) if name.startswith("model.") else (own, name)
            known = {f.name for f in dataclasses.fields(self.model if where is of_model else self)}
            if field not in known:
                raise UserError(f"Sweep: Design has no {name}: expected one of {sorted(known)}")
            where[field] = value
        if of_model:
            own["model"] = dataclasses.replace(self.model, **of_model)
        return dataclasses.replace(self, **own)


@configurable
@dataclasses.dataclass(frozen=True)
class Sweep:
    """Arms trained again for each of several changes of the design.

    Attributes:
      name: what is swept, as the page calls it.
      changes: of the design, one after the other: `[{'share': 0.125}, {'share': 0.25}]`. Fields of
        the model are `model.width`, ….
      arms: that are trained for each.
      retune: whether the settings of the arms are chosen anew for each; otherwise they are those of
        the unchanged design.
    """

    name: str
    changes: Sequence[Mapping[str, Any]]
    arms: Sequence[str] = ("sbp",)
    retune: bool = False
