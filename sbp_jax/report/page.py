"""The page: puts results into the template, with numbers written as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sbp_jax.report import axes, plots
from sbp_jax.report.examples import Synthetic
from sbp_jax.report.results import ORACLE, REPETITION, SBP, Arm, Pairs, Point, Results
from sbp_jax.report.verdict import cautions, limits, percent, seed_noise, short, verdict

TEMPLATES = Path(__file__).parent
# What HTML cannot hold, and documents may: control characters and halves of surrogate pairs.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
# A document longer than this is cut on the page, and the cut is said.
SHOWN_CHARACTERS = 4000


def render(results: Results, synthetic: Synthetic | None, *, name: str) -> str:
    """The whole page, which asks for nothing from anywhere else.

    Args:
      results: the run's figures.
      synthetic: the synthetic corpus, if the run has one.
      name: what the run is called.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # documents contain markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        whole=whole, decimal=decimal, signed=signed, short=short, percent=percent, duration=duration
    )
    styles = arm_styles(results)
    text = environment.get_template("page.html").render(
        name=name,
        results=results,
        synthetic=synthetic,
        styles=styles,
        verdict=verdict(results),
        limits=limits(results),
        cautions=cautions(results),
        seed_noise=seed_noise(results),
        track=track(results),
        figures=figures(results, styles),
        compositions={arm.name: composition(arm) for arm in results.arms},
        longest=max([*results.seconds.values(), 1e-9]),
        cut=cut,
    )
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def template_files() -> list[Path]:
    """The files that, beside the code, decide how the page looks."""
    return [TEMPLATES / "page.html", TEMPLATES / "page.css"]


def arm_styles(results: Results) -> dict[str, str]:
    """The class that colours each arm: the usual arms have their own, others take the next."""
    usual = {REPETITION: "arm-repetition", SBP: "arm-sbp", ORACLE: "arm-oracle"}
    others = [arm.name for arm in results.arms if arm.name not in usual]
    more = {other: f"arm-other-{1 + i % 3}" for i, other in enumerate(others)}
    return {arm.name: {**usual, **more}[arm.name] for arm in results.arms}


def figures(results: Results, styles: dict[str, str]) -> dict[str, Markup]:
    """The drawings by name; one that there is no data for is left out."""
    found = {}
    losses: tuple[tuple[str, str, Callable[[Arm], tuple[Point, ...]]], ...] = (
        ("dev", "Development loss", lambda arm: arm.dev_curve),
        ("train", "Training loss", lambda arm: arm.train_curve),
    )
    for name, title, curve in losses:
        series = [
            plots.Series(
                arm.name,
                styles[arm.name],
                curve(arm),
                arm.best_dev if name == "dev" else None,
            )
            for arm in results.arms
            if curve(arm)
        ]
        if series:
            ends = ", ".join(f"{s.name} ends at {s.points[-1].loss:.4f}" for s in series)
            found[name] = plots.curves(
                series,
                name=name,
                description=f"{title} in nats per token by training tokens: {ends}.",
            )
    if results.pairs:
        found |= pair_figures(results.pairs)
    return found


def pair_figures(pairs: Pairs) -> dict[str, Markup]:
    """Histograms of what was near and of what was kept: one hides the other in one figure."""
    found = {}
    if any(pairs.neighbours):
        found["neighbours"] = plots.histogram(
            pairs.edges,
            pairs.neighbours,
            alpha=pairs.alpha,
            name="neighbours",
            description=f"Histogram of the similarities of {sum(pairs.neighbours):,} neighbours.",
        )
    if any(pairs.pairs):
        first = next(bin_ for bin_, count in enumerate(pairs.pairs) if count)
        found["pairs"] = plots.histogram(
            pairs.edges[first:],
            pairs.pairs[first:],
            alpha=None,
            name="pairs",
            description=f"Histogram of the similarities of {sum(pairs.pairs):,} pairs.",
        )
    return found


def track(results: Results) -> dict[str, Any]:
    """Where the held-out losses lie on a line, in percent of its length.

    Returns:
      `places`: percent by arm; `low` and `high`: the losses at the ends; `noise`: start and width
      of the stretch within seed noise of repetition, None where there is none to show.
    """
    losses = [arm.heldout_loss for arm in results.arms]
    width = seed_noise(results)
    room = max(0.08 * (max(losses) - min(losses)), 1.2 * (width or 0.01))
    scale = axes.Scale(min(losses) - room, max(losses) + room, 0, 100)
    baseline = results.arm(REPETITION)
    noise = None
    if baseline is not None and width is not None:
        start = max(scale(baseline.heldout_loss - width), 0)
        end = min(scale(baseline.heldout_loss + width), 100)
        noise = start, end - start
    return {
        "places": {arm.name: scale(arm.heldout_loss) for arm in results.arms},
        "low": scale.low,
        "high": scale.high,
        "noise": noise,
    }


def composition(arm: Arm) -> list[tuple[str, int, float]]:
    """What an arm's training tokens were: kind, tokens, percent of all.

    `first` are real tokens read for the first time, `again` the same once more, `synthetic` the
    synthetic ones, `other` what no task accounts for (padding).
    """
    real = sum(source.tokens for source in arm.sources if not source.synthetic)
    synthetic = sum(source.tokens for source in arm.sources if source.synthetic)
    first = min(arm.unique_tokens, real)
    kinds = [
        ("first", first),
        ("again", real - first),
        ("synthetic", synthetic),
        ("other", max(arm.train_tokens - real - synthetic, 0)),
    ]
    whole_bar = max(sum(tokens for _, tokens in kinds), 1)
    return [(kind, tokens, 100 * tokens / whole_bar) for kind, tokens in kinds if tokens]


def cut(text: str) -> tuple[str, int]:
    """The part of a document that is shown, and how many characters are not."""
    return text[:SHOWN_CHARACTERS], max(len(text) - SHOWN_CHARACTERS, 0)


def whole(value: float) -> str:
    """12,345; what is not a count keeps two decimals."""
    return f"{value:,}" if isinstance(value, int) else decimal(value, 2)


def decimal(value: float, digits: int = 4) -> str:
    """3.0412, with a proper minus sign."""
    return f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 4) -> str:
    """+0.0068, −0.0155, or 0.0000 without a sign."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if not float(f"{value:.{digits}f}") else text


def duration(seconds: float) -> str:
    """4.2 s, 3 min 5 s, 2 h 10 min."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{math.floor(minutes / 60)} h {minutes % 60} min"
