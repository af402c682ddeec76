"""What every figure has: scales, axes with round numbers, a clipped area, and the SVG around it.

Coordinates are in the units of the drawing. Colours and fonts are the style sheet's.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from sbp_jax.report.verdict import short

LABEL_HEIGHT = 16  # distance between two labels that would else overlap


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


@dataclasses.dataclass(frozen=True)
class Area:
    """Where the curves are drawn: a rectangle of the drawing, `base` its lower edge."""

    left: float
    right: float
    top: float
    base: float

    def levels(self, y: Scale) -> list[str]:
        """Horizontal lines at round values of `y`, with their numbers left of them."""
        values = ticks(y.low, y.high, 5)
        parts = []
        for value in values:
            label = short(value) if y.low == 0 else _number(value, values)
            parts.append(
                f'<line class="grid" x1="{self.left:.1f}" x2="{self.right:.1f}" '
                f'y1="{y(value):.1f}" y2="{y(value):.1f}"/><text class="tick" text-anchor="end" '
                f'x="{self.left - 7:.1f}" y="{y(value) + 5:.1f}">{label}</text>'
            )
        return parts

    def bottom(self, x: Scale, about: int, title: str) -> list[str]:
        """The lower axis, with `about` so many round values of `x`."""
        base = self.base
        values = ticks(x.low, x.high, about)
        parts = [
            f'<line class="axis" x1="{self.left:.1f}" x2="{self.right:.1f}" y1="{base}" '
            f'y2="{base}"/>'
        ]
        for value in values:
            label = short(value) if abs(x.high) > 1000 else _number(value, values)
            parts.append(
                f'<line class="axis" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{base}" '
                f'y2="{base + 4}"/><text class="tick" text-anchor="middle" x="{x(value):.1f}" '
                f'y="{base + 19}">{label}</text>'
            )
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{(self.left + self.right) / 2:.1f}" '
            f'y="{base + 38}">{escape(title)}</text>'
        )
        return parts

    def clipped(self, parts: Sequence[str], name: str) -> list[str]:
        """What of a drawing lies in the area; `name` is the figure's."""
        return [
            f'<clipPath id="clip-{escape(name)}"><rect x="{self.left:.1f}" y="{self.top - 4}" '
            f'width="{self.right - self.left + 6:.1f}" height="{self.base - self.top + 8}"/>'
            f'</clipPath><g clip-path="url(#clip-{escape(name)})">',
            *parts,
            "</g>",
        ]


def svg(parts: Sequence[str], width: float, height: float, name: str, description: str) -> Markup:
    """A drawing of elements that are escaped already.

    Args:
      parts: in the order in which they are drawn.
      width: of the drawing.
      height: likewise.
      name: unlike that of any other figure on the page.
      description: the figure in words, for those who do not see it.
    """
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-labelledby="title-{escape(name)}"><title id="title-{escape(name)}">'
        f"{escape(description)}</title>{''.join(parts)}</svg>"
    )


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


def decimals(values: Sequence[float]) -> int:
    """How many decimals tell evenly spaced values apart."""
    if len(values) < 2:
        return 2
    step = values[1] - values[0]
    return next((d for d in range(6) if abs(round(step, d) - step) < 1e-9), 6)


def _number(value: float, values: Sequence[float]) -> str:
    return f"{value:.{decimals(values)}f}".replace("-", "−")
