"""What a page of results is made of: sections of paragraphs, figures and tables.

All text in them is plain: the templates escape it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from sbp_jax.experiment.verdict import CEILING

# Arms and controls in the order that pages have them in.
MEANINGS = {
    "repetition": "D_pretrain, over and over; the base model too",
    "sbp": "D_pretrain, and text of a synthesizer tuned on related pairs",
    "oracle": "as many tokens of different documents, each read once",
    "random_pairs": "as sbp, the synthesizer tuned on pairs whose d1 is drawn at random",
    "from_scratch": "as sbp, the synthesizer tuned from random parameters",
    "unconditional": "D_pretrain, and what the base model writes by itself",
    "shuffled_seeds": "as sbp, reading seeds whose tokens are dealt out anew among all of them",
    "ideal": "D_pretrain, and what a perfect synthesizer writes: the ceiling",
    "augmentation": "D_pretrain, and its rows with some of the tokens read as others",
    "second_round": "as sbp, the synthesizer tuned from the sbp arm’s model",
    "repetition_charged": "as repetition, for as many more tokens as SBP costs in all",
}
STYLES = {
    "repetition": "arm-repetition",
    "sbp": "arm-sbp",
    "oracle": "arm-oracle",
    CEILING: "arm-other-1",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header.

    Attributes:
      title: what it shows.
      header: of the columns.
      rows: as many cells as the header has.
      text_columns: how many columns, from the left, are words and no figures.
      note: below it.
      folded: whether it is opened by the reader.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    note: str = ""
    folded: bool = False


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing, the name of its file, and what it shows."""

    name: str
    title: str
    caption: str
    drawing: Markup


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of an experiment's results."""

    title: str
    paragraphs: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()


def ordered(entry: Mapping[str, Any]) -> dict[str, Any]:
    """All arms and controls of an experiment, as `MEANINGS` has them, others behind."""
    arms = {**entry["arms"], **entry["controls"]}
    return {name: arms[name] for name in (*MEANINGS, *sorted(arms)) if name in arms}


def style(name: str) -> str:
    """The class that gives an arm its colour."""
    return STYLES.get(name, "arm-quiet")
