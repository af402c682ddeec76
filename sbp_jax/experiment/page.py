"""The pages of results: one in Markdown with figures beside it, one in HTML that holds all."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from sbp_jax.experiment import figures
from sbp_jax.experiment.parts import Section
from sbp_jax.experiment.sections import sections
from sbp_jax.experiment.verdict import Verdict, share, verdict
from sbp_jax.report.page import TEMPLATES as OF_THE_REPORT
from sbp_jax.report.page import UNPRINTABLE, duration
from sbp_jax.report.verdict import short

TEMPLATES = Path(__file__).parent
MADE_BY = figures.MADE_BY
MARKDOWN = re.compile(r"([\\`*<>|\[\]]|(?<![^\W_])_|_(?![^\W_]))")
# The paper's own figures, as its tables give them.
PAPER = (
    "The paper (Yang et al., Synthetic bootstrapped pretraining, arXiv 2509.15248) reports that "
    "SBP recovers 42%, 48% and 58% of the oracle’s gain in average accuracy of question "
    "answering: with 3B parameters on 200B tokens, 3B on 1T, and 6B on 1T. Those are the paper’s "
    "figures, at its scale; nothing here reproduces them."
)


@dataclasses.dataclass(frozen=True)
class Chapter:
    """An experiment on the page.

    Attributes:
      name: of its gin file.
      entry: its figures.
      verdict: what they say.
      setting: its size, in a sentence.
      source: config hash and machine, which stand at every figure and table.
      share: of the oracle's gain.
      made_from: what has to be there before its command can be given; empty for nothing.
      sections: figures and tables.
    """

    name: str
    entry: Mapping[str, Any]
    verdict: Verdict
    setting: str
    source: str
    share: str
    made_from: str
    sections: list[Section]


def render(experiments: Mapping[str, Mapping[str, Any]], *, stem: str) -> dict[str, str]:
    """The text of every file that is made of results, by its place beside them.

    Args:
      experiments: entries by name, as `results.read` gives them.
      stem: of the pages' names.
    """
    chapters = [chapter(name, experiments[name]) for name in sorted(experiments)]
    found = {
        f"{stem}.html": _fill("results.html", chapters, stem),
        f"{stem}.md": _fill("results.md", chapters, stem),
    }
    for one in chapters:
        for section in one.sections:
            for figure in section.figures:
                found[f"figures/{figure.name}.svg"] = figures.standalone(figure.drawing)
    return found


def chapter(name: str, entry: Mapping[str, Any]) -> Chapter:
    """An experiment, ready for the templates."""
    setting = (
        f"{short(entry['parameters'])} parameters; {entry['documents']:,} documents, "
        f"{entry['unique_tokens']:,} tokens of unique text; {entry['train_tokens']:,} training "
        f"tokens an arm, {entry['passes']:g} passes in the repetition arm; synthetic share "
        f"{entry['synthetic_share']:g}; {_seeds(entry)}."
    )
    return Chapter(
        name,
        entry,
        verdict(entry),
        setting,
        f"config {entry['config_hash']} · {entry['machine']}",
        share(entry["oracle_gain_recovered"]) if "oracle_gain_recovered" in entry else "–",
        _made_from(entry),
        sections(name, entry),
    )


def preface(chapters: list[Chapter]) -> list[str]:
    """What the paper reports, and how far from it this is."""
    text = (
        "Here the models are tiny, and what is measured is held-out loss in nats per token, not "
        "accuracy: shares of the oracle’s gain cannot be set beside the paper’s. What the figures "
        "can show is whether the mechanism works at this size, on these documents, against "
        "controls that were tuned alike."
    )
    if chapters:
        sizes = sorted(one.entry["parameters"] for one in chapters)
        low, high = short(sizes[0]), short(sizes[-1])
        size = low if low == high else f"{low} to {high}"
        text = text.replace("are tiny", f"are tiny ({size} parameters)")
    return [PAPER, text]


def _made_from(entry: Mapping[str, Any]) -> str:
    """The artefacts of a text, which its gin file has the settings for."""
    text = entry["config"]["corpus"].get("TextCorpus")
    if text is None:
        return ""
    rows = [text[role] for role in ("train", "dev", "heldout", "oracle")]
    scopes = ", ".join(f"--scope={name}" for name in rows)
    return (
        f"First, with the same file, sbp vocab --scope={text['vocab']} and sbp cache with each of "
        f"{scopes}."
    )


def _seeds(entry: Mapping[str, Any]) -> str:
    count = len(entry["seeds"])
    others = len(entry["tuning_seeds"])
    chosen = "another" if others == 1 else f"{others} others"
    return f"{count} seed{'s' if count != 1 else ''}, settings chosen on {chosen}"


def _fill(template: str, chapters: list[Chapter], stem: str) -> str:
    html = template.endswith(".html")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATES, OF_THE_REPORT]),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(duration=duration, md=_markdown, anchor=_anchor)
    text = environment.get_template(template).render(
        chapters=chapters, preface=preface(chapters), stem=stem
    )
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _anchor(text: str) -> str:
    return re.sub(r"[^\w-]", "-", text)
