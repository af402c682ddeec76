"""Figures of the report, drawn as SVG.

The SVG is written by hand rather than by a plotting library so that it takes its colours and its
font from the page: one drawing serves the light and the dark scheme, its text stays text, and it
is sized to be read at 390 pixels. Coordinates are in the units of `WIDTH` × `HEIGHT`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from sbp_jax.report.axes import LABEL_HEIGHT, Area, Scale, spread, svg
from sbp_jax.report.results import Point

WIDTH, HEIGHT = 440, 290
TOP, LEFT, BOTTOM = 14, 46, 44
LETTER = 8.2  # width of a letter of the labels, about
CURVE_POINTS = 200  # as many as can be told apart at this width
BURN_IN = 0.15  # share of the training whose steep fall may leave the figure


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve, the class that gives it its colour, and maybe one point to mark."""

    name: str
    style: str
    points: Sequence[Point]
    marked: Point | None = None


def curves(series: Sequence[Series], *, name: str, description: str) -> Markup:
    """Losses (nats per token) by training tokens; the steep beginning may leave the figure.

    Args:
      series: at least one, with at least one point each.
      name: unlike that of any other figure on the page.
      description: the figure in words, for those who do not see it.
    """
    series = [dataclasses.replace(s, points=thin(s.points, CURVE_POINTS)) for s in series]
    labels = [_cut(s.name, 13) for s in series]
    right = WIDTH - 12 - LETTER * max(len(label) for label in labels)
    last = max(s.points[-1].tokens for s in series)
    low, high = loss_range(series)
    x = Scale(0, last, LEFT, right)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    area = Area(LEFT, right, TOP, HEIGHT - BOTTOM)
    drawn = []
    for s in series:
        path = " ".join(f"{x(p.tokens):.1f},{y(p.loss):.1f}" for p in s.points)
        drawn.append(f'<polyline class="curve {s.style}" points="{path}"/>')
        for p in [s.marked] if s.marked else []:
            drawn.append(
                f'<circle class="mark {s.style}" cx="{x(p.tokens):.1f}" cy="{y(p.loss):.1f}" r="4">'
                f"<title>{escape(s.name)}: {p.loss:.4f} at {p.tokens:,} tokens</title></circle>"
            )
    parts = [
        *area.levels(y),
        *area.bottom(x, 4, "training tokens"),
        *area.clipped(drawn, name),
    ]
    heights = spread([y(min(s.points[-1].loss, high)) for s in series], LABEL_HEIGHT)
    for s, label, height in zip(series, labels, heights, strict=True):
        parts.append(
            f'<text class="label {s.style}" x="{right + 8:.1f}" y="{height + 5:.1f}">'
            f"{escape(label)}</text>"
        )
    return svg(parts, WIDTH, HEIGHT, name, description)


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    alpha: float | None,
    name: str,
    description: str,
) -> Markup:
    """Counts between edges; what lies above `alpha` stands out, and `alpha` is marked.

    Args:
      edges: one more than `counts`, increasing.
      counts: at least one.
      alpha: the threshold; None where all lies above it.
      name: unlike that of any other figure on the page.
      description: the figure in words, for those who do not see it.
    """
    right = WIDTH - 12
    x = Scale(edges[0], edges[-1], LEFT, right)
    y = Scale(0, max(*counts, 1), HEIGHT - BOTTOM, TOP + 18)
    area = Area(LEFT, right, TOP, HEIGHT - BOTTOM)
    parts = [*area.levels(y), *area.bottom(x, 5, "similarity")]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        cut = low if alpha is None else min(max(alpha, low), high)
        title = f"<title>{low:.3g} to {high:.3g}: {count:,}</title>"
        for start, end, style in ((low, cut, "below"), (cut, high, "above")):
            if count and end > start:
                parts.append(
                    f'<rect class="bar {style}" x="{x(start):.2f}" y="{y(count):.1f}" '
                    f'width="{x(end) - x(start):.2f}" height="{y(0) - y(count):.1f}">{title}</rect>'
                )
    if alpha is not None and edges[0] <= alpha <= edges[-1]:
        place = x(alpha)
        anchor = "end" if place > (LEFT + right) / 2 else "start"
        parts.append(
            f'<line class="threshold" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" '
            f'y2="{HEIGHT - BOTTOM}"/><text class="label" text-anchor="{anchor}" '
            f'x="{place + (-7 if anchor == "end" else 7):.1f}" y="{TOP + 9}">α = {alpha:g}</text>'
        )
    return svg(parts, WIDTH, HEIGHT, name, description)


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """Means of neighbouring points, so that at most `most` are left; the last is kept as it is."""
    if len(points) <= most:
        return list(points)
    size = math.ceil((len(points) - 1) / (most - 1))
    groups = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    means = [
        Point(
            round(sum(p.tokens for p in group) / len(group)),
            sum(p.loss for p in group) / len(group),
        )
        for group in groups
    ]
    return [*means, points[-1]]


def loss_range(series: Sequence[Series]) -> tuple[float, float]:
    """Losses to show: all of them, but for the steep fall at the beginning of training."""
    last = max(s.points[-1].tokens for s in series)
    late = [p.loss for s in series for p in s.points if p.tokens >= BURN_IN * last]
    low, high = min(late), max(late)
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
