"""Sweeps: what becomes of SBP's gain when one part of the design is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sbp_jax.experiment import cells, figures, parts, statistics

# Fields of the design that repetition and the oracle hang on.
OF_EVERY_ARM = ("row_length", "batch_size", "passes")


def section(name: str, entry: Mapping[str, Any], sweep: str) -> parts.Section:
    """Gains of the design and of each change of it; a figure where one number is changed."""
    swept = entry["sweeps"][sweep]
    keys = list(dict.fromkeys(key for point in swept for key in point["changes"]))
    design = {key: _of_the_design(entry, key) for key in keys}
    points = _points(entry, swept, design)
    named = {arm for point in points for arm in point["arms"]}
    arms = [arm for arm in parts.ordered(entry) if arm in named]
    arms += sorted(named - {*arms})
    gains = {arm: [_gain(entry, point, design, arm) for point in points] for arm in arms}
    rows = []
    for number, point in enumerate(points):
        values = [cells.change(point["changes"][key]) for key in keys]
        if point["changes"] == design:
            values[0] += " (design)"
        for arm in (arm for arm in arms if arm in point["arms"]):
            found = point["arms"][arm]
            gain, recovered = gains[arm][number]
            rows.append(
                (
                    *values,
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
    settings: Mapping[str, Any] = next(
        (found["settings"] for point in points for found in point["arms"].values()), {}
    )
    header += (cells.named(settings),)
    tables = [
        parts.Table(
            "Losses and gains",
            header,
            tuple(rows),
            text_columns=len(keys) + 1,
            note="Mean ± standard error over seeds, nats per token; shares with their 95% "
            "interval.",
        )
    ]
    figure = None
    if len(keys) == 1:
        drawn = {arm: gains[arm] for arm in arms if arm != "repetition"}
        figure = _sweep_figure(name, sweep, keys[0], points, drawn)
    if len(keys) == 2:
        crossed = _crossed(swept, points, keys, gains)
        tables[:0] = [crossed] if crossed else []
    failed = tuple(
        f"{', '.join(f'{k} {cells.change(v)}' for k, v in one['changes'].items())} was not to be "
        f"made: {one['failed']}"
        for one in swept
        if "failed" in one
    )
    shown = (figure,) if figure else ()
    return parts.Section(f"Sweep: {sweep}", failed, figures=shown, tables=tuple(tables))


def _points(
    entry: Mapping[str, Any], swept: Sequence[Mapping[str, Any]], design: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Values of a sweep, each with all keys, and the design's where it is not one of them.

    Numbers are in order; else the design is first.
    """
    points = [{"changes": {**design, **one["changes"]}, "arms": one["arms"]} for one in swept]
    if all(point["changes"] != design for point in points):
        known = {**entry["arms"], **entry["controls"]}
        named = {arm for one in swept for arm in one["arms"]}
        arms = {arm: found for arm, found in known.items() if arm in named}
        points.insert(0, {"changes": dict(design), "arms": arms})
    if len(design) == 1:
        (key,) = design
        if all(cells.is_number(point["changes"][key]) for point in points):
            points.sort(key=lambda point: point["changes"][key])
    return points


def _of_the_design(entry: Mapping[str, Any], key: str) -> Any:
    """The value of `alpha`, or of `model.width`."""
    value: Any = entry["config"]["design"]
    for part in key.split("."):
        value = value[part]
    return value


def _sweep_figure(
    name: str,
    sweep: str,
    key: str,
    points: Sequence[Mapping[str, Any]],
    gains: Mapping[str, Sequence[tuple[dict[str, Any] | None, str | None]]],
) -> parts.Figure | None:
    """Gains by the number that is changed; None where it is no number, or there is nothing."""
    places = [point["changes"][key] for point in points]
    if len(set(map(str, places))) < 2 or not all(cells.is_number(place) for place in places):
        return None
    series = []
    for arm, found in gains.items():
        known = [(place, gain) for place, (gain, _) in zip(places, found, strict=True) if gain]
        if key == "share" and arm != "oracle" and 0 not in places:
            known.insert(0, (0.0, {"mean": 0.0, "standard_error": None}))  # repetition
        if len(known) > 1:
            series.append(
                figures.Line(
                    arm,
                    parts.style(arm),
                    [(place, gain["mean"]) for place, gain in known],
                    [_span(gain) for _, gain in known],
                    marks=True,
                )
            )
    if not series:
        return None
    what = key.removeprefix("model.").replace("_", " ")
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


def _gain(
    entry: Mapping[str, Any], point: Mapping[str, Any], design: Mapping[str, Any], arm: str
) -> tuple[dict[str, Any] | None, str | None]:
    """The lead over repetition of the same design, and the share of its oracle's gain."""
    changed = [key for key, value in point["changes"].items() if value != design[key]]
    touched = any(key.startswith("model.") or key in OF_EVERY_ARM for key in changed)
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
    swept: Sequence[Mapping[str, Any]],
    points: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    gains: Mapping[str, Any],
) -> parts.Table | None:
    """Gains of the first arm by two settings; None unless each value met each of the other."""
    rows, columns = (
        list(dict.fromkeys(cells.change(one["changes"].get(key)) for one in swept)) for key in keys
    )
    arm = next((name for name in gains if name != "repetition"), None)
    if arm is None or len(rows) < 2 or len(columns) < 2:
        return None
    found = {
        tuple(cells.change(point["changes"][key]) for key in keys): cells.NONE
        if gain is None
        else cells.of(gain, sign=True)
        for point, (gain, _) in zip(points, gains[arm], strict=True)
    }
    if not all((row, column) in found for row in rows for column in columns):
        return None
    first, second = (key.replace("_", " ") for key in keys)
    return parts.Table(
        f"Gain of {arm} over repetition: {first} (down) × {second} (across)",
        (first, *columns),
        tuple((row, *(found[row, column] for column in columns)) for row in rows),
        note="Nats per token, mean ± standard error over seeds.",
    )


def _span(gain: Mapping[str, Any]) -> tuple[float, float]:
    reach = gain["standard_error"] or 0.0
    return gain["mean"] - reach, gain["mean"] + reach
