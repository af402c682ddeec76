"""Sweeps: what becomes of SBP's gain when one part of the design is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sbp_jax.experiment import cells, figures, parts, statistics

# Fields of the design that repetition and the oracle hang on.
OF_EVERY_ARM = ("row_length", "batch_size", "passes")


def section(name: str, entry: Mapping[str, Any], sweep: str) -> parts.Section:
    """Gains for each change of the design; a figure where one number is changed."""
    points = entry["sweeps"][sweep]
    keys = list(dict.fromkeys(key for point in points for key in point["changes"]))
    arms = list(dict.fromkeys(arm for point in points for arm in point["arms"]))
    gains = {arm: [_gain(entry, point, arm) for point in points] for arm in arms}
    rows = []
    for number, point in enumerate(points):
        for arm, found in point["arms"].items():
            gain, recovered = gains[arm][number]
            rows.append(
                (
                    *(cells.change(point["changes"].get(key)) for key in keys),
                    arm,
                    cells.of(found["heldout_loss"]),
                    cells.NONE
                    if gain is None or arm == "repetition"
                    else cells.of(gain, sign=True),
                    cells.NONE
                    if recovered is None or arm in ("repetition", "oracle")
                    else recovered,
                    cells.listed(found["settings"]),
                )
            )
    header = (*(key.removeprefix("model.").replace("_", " ") for key in keys), "arm")
    header += ("held-out loss", "gain over repetition", "of the oracle’s gain")
    named: Mapping[str, Any] = next(
        (found["settings"] for point in points for found in point["arms"].values()), {}
    )
    header += (cells.named(named),)
    table = parts.Table(
        "Losses and gains",
        header,
        tuple(rows),
        text_columns=len(keys) + 1,
        note="Mean ± standard error over seeds, nats per token; shares with their 95% interval.",
    )
    drawn = [arm for arm in arms if arm != "repetition"]
    figure = _sweep_figure(name, entry, sweep, keys, {arm: gains[arm] for arm in drawn})
    tables = [table]
    if len(keys) == 2 and (crossed := _crossed(sweep, points, keys, gains)):
        tables.insert(0, crossed)
    return parts.Section(
        f"Sweep: {sweep}", figures=(figure,) if figure else (), tables=tuple(tables)
    )


def _sweep_figure(
    name: str,
    entry: Mapping[str, Any],
    sweep: str,
    keys: Sequence[str],
    gains: Mapping[str, Sequence[tuple[dict[str, Any] | None, str | None]]],
) -> parts.Figure | None:
    """Gains by the number that is changed; None where it is no number, or there is nothing."""
    if len(keys) != 1:
        return None
    places = [point["changes"].get(keys[0]) for point in entry["sweeps"][sweep]]
    if len(set(map(str, places))) < 2 or not all(cells.is_number(place) for place in places):
        return None
    series = []
    for arm, found in gains.items():
        points = {
            place: gain for place, (gain, _) in zip(places, found, strict=True) if gain is not None
        }
        points |= _of_the_design(entry, keys[0], arm, points)
        if len(points) > 1:
            ordered = sorted(points.items())
            series.append(
                figures.Line(
                    arm,
                    parts.style(arm),
                    [(place, gain["mean"]) for place, gain in ordered],
                    [_span(gain) for _, gain in ordered],
                    marks=True,
                )
            )
    if not series:
        return None
    what = keys[0].removeprefix("model.").replace("_", " ")
    what = "synthetic share" if what == "share" else what
    slug = "".join(c if c.isalnum() else "-" for c in sweep.lower()).strip("-") or "sweep"
    told = "; ".join(
        f"{line.name}: " + ", ".join(f"{gain:.4f} at {place:g}" for place, gain in line.points)
        for line in series
    )
    return parts.Figure(
        f"{name}-sweep-{slug}",
        f"Gain over repetition against {what}",
        "Nats per token of held-out documents below repetition, paired by seed; means with "
        "standard errors. Dashed: repetition.",
        figures.lines(
            series,
            [figures.Level("repetition", 0.0)],
            horizontal=what,
            vertical="gain over repetition, nats per token",
            name=f"{name}-sweep-{slug}",
            description=f"Gain over repetition in nats per token by {what}. {told}.",
        ),
    )


def _of_the_design(
    entry: Mapping[str, Any], key: str, arm: str, points: Mapping[float, Any]
) -> dict[float, Any]:
    """The arm of the unchanged design, where the sweep leaves it out; at share 0, repetition."""
    found: dict[float, Any] = {}
    design: Any = entry["config"].get("design", {})
    for part in key.split("."):
        design = design.get(part) if isinstance(design, Mapping) else None
    unchanged = {**entry["arms"], **entry["controls"]}.get(arm, {}).get("lead_over_repetition")
    if cells.is_number(design) and design not in points and unchanged is not None:
        found[design] = unchanged
    if key == "share" and arm != "oracle" and 0 not in points:
        found[0.0] = {"mean": 0.0, "standard_error": None}
    return found


def _gain(
    entry: Mapping[str, Any], point: Mapping[str, Any], arm: str
) -> tuple[dict[str, Any] | None, str | None]:
    """The lead over repetition of the same design, and the share of its oracle's gain."""
    touched = any(key.startswith("model.") or key in OF_EVERY_ARM for key in point["changes"])
    known = {} if touched else entry["arms"]
    baseline = {**known, **point["arms"]}.get("repetition")
    oracle = {**known, **point["arms"]}.get("oracle")
    if baseline is None:
        return None, None
    own = point["arms"].get(arm)
    if own is None:
        return None, None
    gain = statistics.lead(own["by_seed"], baseline["by_seed"])
    if oracle is None:
        return gain, None
    found = statistics.gain_recovered(baseline["by_seed"], own["by_seed"], oracle["by_seed"])
    return gain, cells.recovered({"oracle_gain_recovered": found})


def _crossed(
    sweep: str, points: Sequence[Mapping[str, Any]], keys: Sequence[str], gains: Mapping[str, Any]
) -> parts.Table | None:
    """Gains of the first arm by two settings; None where not every change has both."""
    if not all(key in point["changes"] for point in points for key in keys):
        return None
    down, across = ([point["changes"][key] for point in points] for key in keys)
    arm = (
        next(name for name in gains if name != "repetition")
        if len(gains) > 1
        else next(iter(gains))
    )
    found: dict[tuple[str, str], str] = {}
    for first, second, (gain, _) in zip(down, across, gains[arm], strict=True):
        found[cells.change(first), cells.change(second)] = (
            cells.NONE if gain is None else cells.of(gain, sign=True)
        )
    rows = list(dict.fromkeys(map(cells.change, down)))
    columns = list(dict.fromkeys(map(cells.change, across)))
    if len(rows) < 2 or len(columns) < 2:
        return None
    first, second = (key.replace("_", " ") for key in keys)
    return parts.Table(
        f"Gain of {arm} over repetition: {first} (down) × {second} (across)",
        (first, *columns),
        tuple((row, *(found.get((row, column), cells.NONE) for column in columns)) for row in rows),
        note="Nats per token, mean ± standard error over seeds.",
    )


def _span(gain: Mapping[str, Any]) -> tuple[float, float]:
    reach = gain["standard_error"] or 0.0
    return gain["mean"] - reach, gain["mean"] + reach
