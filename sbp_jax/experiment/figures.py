"""Drawings of results: losses by training tokens, intervals of arms side by side, gains of a sweep.

They are SVG without colours, which a page's style sheet gives them; `standalone` makes a file of
one, on white, that looks the same wherever it is shown. Scales and axes are those of the report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from markupsafe import Markup, escape

from sbp_jax.report.axes import LABEL_HEIGHT, Area, Scale, spread, svg

WIDTH, HEIGHT = 480, 310
TOP, LEFT, BOTTOM = 30, 52, 46
LETTER = 8.6  # width of a letter of the labels, about, where a narrow page has them larger
ROW = 30  # height of an arm's row
BURN_IN = 0.3  # share of the training whose steep fall may leave the figure
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
# As in the report's style sheet, by the class of an arm.
COLOURS = {
    "arm-repetition": "#b4530a",
    "arm-sbp": "#1b5fc1",
    "arm-oracle": "#13795b",
    "arm-other-1": "#8038a8",
    "arm-other-2": "#a8275f",
    "arm-other-3": "#5f6b1c",
    "arm-quiet": "#5c636b",
}
MADE_BY = "<!-- made by sbp results -->"


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve with what it is uncertain by.

    Attributes:
      name: its label.
      style: the class that gives it its colour.
      points: (x, y).
      spans: (low, high) of each point.
      marks: whether the points are measurements of their own, with their spans as whiskers; a
        band otherwise.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    spans: Sequence[tuple[float, float]]
    marks: bool = False


@dataclasses.dataclass(frozen=True)
class Level:
    """A dashed line across the figure."""

    name: str
    value: float


@dataclasses.dataclass(frozen=True)
class Interval:
    """An arm's mean, its interval (None for one seed), and its seeds."""

    name: str
    style: str
    mean: float
    span: tuple[float, float] | None
    seeds: Sequence[float]


def lines(
    series: Sequence[Line],
    levels: Sequence[Level] = (),
    *,
    horizontal: str,
    vertical: str,
    name: str,
    description: str,
) -> Markup:
    """Curves, with their names at their ends.

    Args:
      series: at least one, with at least one point each.
      levels: values of the vertical axis to mark.
      horizontal: what that axis shows.
      vertical: likewise.
      name: unlike that of any other figure on the page.
      description: the figure in words, for those who do not see it.
    """
    names = [line.name for line in series] + [level.name for level in levels]
    right = WIDTH - 10 - LETTER * max(map(len, names))
    along = [x for line in series for x, _ in line.points]
    marked = any(line.marks for line in series)
    first = min(along) if marked else 0.0
    x = Scale(first, max(along), LEFT + (14 if marked else 0), right - (14 if marked else 0))
    late = max(along) * BURN_IN if not marked else min(along)
    shown = [level.value for level in levels]
    for line in series:
        for (place, value), (low, high) in zip(line.points, line.spans, strict=True):
            if place >= late:
                shown += [value, low, high]
    y = _vertical(min(shown), max(shown), HEIGHT - BOTTOM, TOP)
    area = Area(LEFT, right, TOP, HEIGHT - BOTTOM)
    drawn = [
        f'<line class="level" x1="{LEFT}" x2="{right:.1f}" y1="{y(level.value):.1f}" '
        f'y2="{y(level.value):.1f}"/>'
        for level in levels
    ]
    drawn += [part for line in series for part in _drawn(line, x, y)]
    parts = [
        f'<text class="tick" x="4" y="{TOP - 14}">{escape(vertical)}</text>',
        *area.levels(y),
        *area.bottom(x, 4, horizontal),
        *area.clipped(drawn, name),
    ]
    ends = [line.points[-1][1] for line in series] + [level.value for level in levels]
    inside = [y(min(max(end, y.low), y.high)) for end in ends]
    heights = spread(inside, LABEL_HEIGHT)
    styles = [line.style for line in series] + ["arm-quiet"] * len(levels)
    for label, style, height in zip(names, styles, heights, strict=True):
        parts.append(
            f'<text class="label {style}" x="{right + 7:.1f}" y="{height + 5:.1f}">'
            f"{escape(label)}</text>"
        )
    return svg(parts, WIDTH, HEIGHT, name, description)


def intervals(
    arms: Sequence[Interval],
    levels: Sequence[Level] = (),
    *,
    horizontal: str,
    name: str,
    description: str,
) -> Markup:
    """Arms one below the other: seeds as dots, the mean as a circle, the interval as a line.

    Args:
      arms: at least one.
      levels: values of the horizontal axis to mark; their names, if they have one, stand above.
      horizontal: what that axis shows.
      name: unlike that of any other figure on the page.
      description: the figure in words, for those who do not see it.
    """
    left = 14 + LETTER * max(len(arm.name) for arm in arms)
    named = [level for level in levels if level.name]
    top = 14 + LABEL_HEIGHT * len(named)
    base = top + ROW * len(arms)
    values = [level.value for level in levels]
    for arm in arms:
        values += [arm.mean, *(arm.span or ()), *arm.seeds]
    room = 0.04 * (max(values) - min(values)) or 0.5
    x = Scale(min(values) - room, max(values) + room, left, WIDTH - 14)
    parts = Area(left, WIDTH - 14, top, base).bottom(x, 4, horizontal)
    for level in levels:
        place = x(level.value)
        if not level.name:
            parts.append(
                f'<line class="level" x1="{place:.1f}" x2="{place:.1f}" y1="{top - 4}" '
                f'y2="{base}"/>'
            )
            continue
        height = top - 8 - LABEL_HEIGHT * (len(named) - 1 - named.index(level))
        reach = LETTER * len(level.name) + 8
        anchor = "end" if place + reach > WIDTH and place - reach > 0 else "start"
        parts.append(
            f'<line class="level" x1="{place:.1f}" x2="{place:.1f}" y1="{height - 9}" '
            f'y2="{base}"/><text class="label arm-quiet" text-anchor="{anchor}" '
            f'x="{place + (-6 if anchor == "end" else 6):.1f}" y="{height}">'
            f"{escape(level.name)}</text>"
        )
    for number, arm in enumerate(arms):
        y = top + ROW * (number + 0.5)
        style = arm.style
        parts.append(
            f'<text class="label {style}" text-anchor="end" x="{left - 8:.1f}" y="{y + 5:.1f}">'
            f"{escape(arm.name)}</text>"
        )
        if arm.span:
            parts.append(
                f'<line class="whisker {style}" x1="{x(arm.span[0]):.1f}" '
                f'x2="{x(arm.span[1]):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        parts.append(
            f'<circle class="mark {style}" cx="{x(arm.mean):.1f}" cy="{y:.1f}" r="5">'
            f"<title>{escape(arm.name)}: {arm.mean:.4f}</title></circle>"
        )
        for seed in arm.seeds:
            parts.append(
                f'<circle class="seed {style}" cx="{x(seed):.1f}" cy="{y + 9:.1f}" r="1.8"/>'
            )
    return svg(parts, WIDTH, base + BOTTOM, name, description)


def standalone(drawing: Markup) -> str:
    """The drawing as a file: with a style of its own, on white."""
    rules = [
        f"svg{{font:13px {FONT};font-variant-numeric:tabular-nums}}",
        ".paper{fill:#fff}.tick{fill:#5c636b}.label{font-weight:600}.grid{stroke:#e6e3dc}",
        ".axis{stroke:#5c636b}.curve{fill:none;stroke-width:2.2;stroke-linejoin:round}",
        ".level{stroke:#5c636b;stroke-dasharray:5 4}.whisker,.mark{stroke-width:2.2}",
        ".mark{fill:#fff}.band{opacity:.16}.seed{opacity:.65}",
    ]
    for style, colour in COLOURS.items():
        rules.append(f".curve.{style},.whisker.{style},.mark.{style}{{stroke:{colour}}}")
        rules.append(f".label.{style},.band.{style},.seed.{style}{{fill:{colour}}}")
    opening, rest = str(drawing).split(">", 1)
    size = opening.split('viewBox="0 0 ')[1].split('"')[0].split()
    opening += f' xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}"'
    style = f'<style>{"".join(rules)}</style><rect class="paper" width="100%" height="100%"/>'
    return f"{opening}>{MADE_BY}{style}{rest}\n"


def _drawn(line: Line, x: Scale, y: Scale) -> list[str]:
    parts = []
    if not line.marks and any(low < high for low, high in line.spans):
        there = [
            f"{x(p[0]):.1f},{y(s[1]):.1f}" for p, s in zip(line.points, line.spans, strict=True)
        ]
        back = [
            f"{x(p[0]):.1f},{y(s[0]):.1f}" for p, s in zip(line.points, line.spans, strict=True)
        ]
        parts.append(
            f'<polygon class="band {line.style}" points="{" ".join(there + back[::-1])}"/>'
        )
    path = " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in line.points)
    parts.append(f'<polyline class="curve {line.style}" points="{path}"/>')
    if not line.marks:
        return parts
    for (place, value), (low, high) in zip(line.points, line.spans, strict=True):
        if low < high:
            parts.append(
                f'<line class="whisker {line.style}" x1="{x(place):.1f}" x2="{x(place):.1f}" '
                f'y1="{y(low):.1f}" y2="{y(high):.1f}"/>'
            )
        parts.append(
            f'<circle class="mark {line.style}" cx="{x(place):.1f}" cy="{y(value):.1f}" r="4">'
            f"<title>{escape(line.name)}: {value:.4f} at {place:g}</title></circle>"
        )
    return parts


def _vertical(low: float, high: float, start: float, end: float) -> Scale:
    room = 0.05 * (high - low) or 0.5
    return Scale(low - room, high + room, start, end)
