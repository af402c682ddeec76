"""Figures of the report, drawn as SVG.

The SVG is written by hand rather than by a plotting library so that it takes its colours and its
font from the page: one drawing serves the light and the dark scheme, its text stays text, and it
is sized to be read at 390 pixels. Coordinates are in the units of `WIDTH` × `HEIGHT`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from sbp_jax.report.results import Point
from sbp_jax.report.verdict import short

WIDTH, HEIGHT = 440, 290
TOP, LEFT, BOTTOM = 14, 46, 44
LETTER = 8.2  # width of a letter of the labels, about
LABEL_HEIGHT = 16  # distance between two labels that would else overlap
CURVE_POINTS = 200  # as many as can be told apart at this width
BURN_IN = 0.15  # share of the training whose steep fall may leave the figure


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve, the class that gives it its colour, and maybe one point to mark."""

    name: str
    style: str
    points: Sequence[Point]
    marked: Point | None = None


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps values between `low` and `high` to a stretch of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)


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
    parts = [*_horizontal_grid(y, right), *_bottom_axis(x, ticks(0, last, 4), "training tokens")]
    parts.append(
        f'<clipPath id="clip-{escape(name)}"><rect x="{LEFT}" y="{TOP - 4}" '
        f'width="{right - LEFT + 6:.1f}" height="{HEIGHT - BOTTOM - TOP + 8}"/></clipPath>'
    )
    parts.append(f'<g clip-path="url(#clip-{escape(name)})">')
    for s in series:
        path = " ".join(f"{x(p.tokens):.1f},{y(p.loss):.1f}" for p in s.points)
        parts.append(f'<polyline class="curve {s.style}" points="{path}"/>')
        for p in [s.marked] if s.marked else []:
            parts.append(
                f'<circle class="mark {s.style}" cx="{x(p.tokens):.1f}" cy="{y(p.loss):.1f}" r="4">'
                f"<title>{escape(s.name)}: {p.loss:.4f} at {p.tokens:,} tokens</title></circle>"
            )
    parts.append("</g>")
    heights = spread([y(min(s.points[-1].loss, high)) for s in series], LABEL_HEIGHT)
    for s, label, height in zip(series, labels, heights, strict=True):
        parts.append(
            f'<text class="label {s.style}" x="{right + 8:.1f}" y="{height + 5:.1f}">'
            f"{escape(label)}</text>"
        )
    return _svg(parts, name, description)


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
    parts = [
        *_horizontal_grid(y, right),
        *_bottom_axis(x, ticks(edges[0], edges[-1], 5), "similarity"),
    ]
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
    return _svg(parts, name, description)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values between `low` and `high`, `about` as many as asked for."""
    rough = (high - low) / max(about, 1)
    if rough <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= 0.75 * rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


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


def spread(places: Sequence[float], distance: float) -> list[float]:
    """Moves places apart until neighbours are `distance` from each other, in their old order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [float(p) for p in places]
    for _ in range(50):
        for first, second in itertools.pairwise(order):
            overlap = distance - (moved[second] - moved[first])
            if overlap > 1e-6:
                moved[first] -= overlap / 2
                moved[second] += overlap / 2
    return moved


def loss_range(series: Sequence[Series]) -> tuple[float, float]:
    """Losses to show: all of them, but for the steep fall at the beginning of training."""
    last = max(s.points[-1].tokens for s in series)
    late = [p.loss for s in series for p in s.points if p.tokens >= BURN_IN * last]
    low, high = min(late), max(late)
    room = 0.04 * (high - low) or 0.5
    return low - room, high + room


def _horizontal_grid(y: Scale, right: float) -> list[str]:
    values = ticks(y.low, y.high, 5)
    digits = decimals(values)
    parts = []
    for value in values:
        label = short(value) if y.low == 0 else f"{value:.{digits}f}"
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{right:.1f}" y1="{y(value):.1f}" '
            f'y2="{y(value):.1f}"/><text class="tick" text-anchor="end" x="{LEFT - 7}" '
            f'y="{y(value) + 5:.1f}">{label}</text>'
        )
    return parts


def _bottom_axis(x: Scale, values: Sequence[float], title: str) -> list[str]:
    base = HEIGHT - BOTTOM
    digits = decimals(values)
    parts = [f'<line class="axis" x1="{LEFT}" x2="{x.end:.1f}" y1="{base}" y2="{base}"/>']
    for value in values:
        label = short(value) if abs(x.high) > 10 else f"{value:.{digits}f}".replace("-", "−")
        parts.append(
            f'<line class="axis" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{base}" '
            f'y2="{base + 4}"/><text class="tick" text-anchor="middle" x="{x(value):.1f}" '
            f'y="{base + 19}">{label}</text>'
        )
    middle = (x.start + x.end) / 2
    parts.append(
        f'<text class="tick" text-anchor="middle" x="{middle:.1f}" y="{base + 38}">{title}</text>'
    )
    return parts


def decimals(values: Sequence[float]) -> int:
    """How many decimals tell evenly spaced values apart."""
    if len(values) < 2:
        return 2
    step = values[1] - values[0]
    return next((d for d in range(6) if abs(round(step, d) - step) < 1e-9), 6)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _svg(parts: Sequence[str], name: str, description: str) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title-{escape(name)}">'
        f'<title id="title-{escape(name)}">{escape(description)}</title>{"".join(parts)}</svg>'
    )
