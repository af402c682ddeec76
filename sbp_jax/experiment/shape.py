"""What the result of an experiment holds, and a check that some JSON holds it.

A shape is `str`, `int` or `float` (a finite number), `Maybe` of one (null as well), `[shape]` for a
list, `(shape, shape)` for one of that length, `Each(shape)` for an object with any keys, or an
object of shapes, in which a key with a `?` behind it may be missing, and under `TOGETHER` stand
keys that are null together or not at all. Keys that no shape names are let be.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from sbp_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Maybe:
    """The shape, or null."""

    shape: Any


@dataclasses.dataclass(frozen=True)
class Each:
    """An object in which every value has the shape."""

    shape: Any


TOGETHER = "&"
INTERVAL: dict[str, Any] = {
    TOGETHER: ("standard_error", "low", "high"),
    "mean": Maybe(float),
    "standard_error": Maybe(float),
    "low": Maybe(float),
    "high": Maybe(float),
}
LEAD: dict[str, Any] = {**INTERVAL, "mean": float, "standard_errors": Maybe(float)}
TRAINED: dict[str, Any] = {
    "by_seed": [float],
    "dev_by_seed": [float],
    "step_by_seed": [int],
    "steps": Maybe(int),
    "passes": [Each(float)],
    "settings": Each(float),
    "heldout_loss": {**INTERVAL, "mean": float},
}
ARM: dict[str, Any] = {
    **TRAINED,
    "curves": [[(float, float)]],
    "lead_over_repetition?": LEAD,
    "oracle_gain_recovered?": INTERVAL,
    "sbp_lead?": LEAD,
}
DIFFERENCE: dict[str, Any] = {
    "heldout": float,
    "chance": float,
    "difference": {"mean": float, "low": float, "high": float},
}
RESULT: dict[str, Any] = {
    "question": str,
    "criterion": str,
    "least_share": Maybe(float),
    "least_seeds_ahead": Maybe(int),
    "before": str,
    "config_hash": str,
    "seeds": [int],
    "tuning_seeds": [int],
    "parameters": int,
    "documents": int,
    "unique_tokens": int,
    "train_tokens": int,
    "passes": float,
    "synthetic_share": float,
    "heldout_tokens": [int],
    "bayes_loss": [Maybe(float)],
    "arms": Each(ARM),
    "controls": Each(ARM),
    "oracle_gain_recovered?": INTERVAL,
    "tuning": Each([Each(float)]),
    "synthesizer_tuning": Each([Each(float)]),
    "synthesizers": Each(
        [
            {
                "start": float,
                "settings": Each(float),
                "step": int,
                "related": float,
                "random": float,
                "gain": float,
                "copies_new_facts?": float,
            }
        ]
    ),
    "corpora": Each([Each(float)]),
    "pairs": [{"pairs": int, "pairs_per_document": float, "share_without_pairs": float}],
    "sweeps": Each([{"changes": Each(object), "arms": Each(TRAINED), "failed?": str}]),
    "leakage?": [
        {
            "ngram": int,
            "documents": int,
            "seeds_in_train": float,
            **DIFFERENCE,
            "whole": DIFFERENCE,
        }
    ],
    "cost?": [{"base": float, "tuning": float, "synthesis": float}],
}
TEXT = dict.fromkeys(("train", "dev", "heldout", "oracle", "vocab"), str)
# What `sbp results` adds to it.
ENTRY: dict[str, Any] = {
    **RESULT,
    "seconds": float,
    "machine": str,
    "command": str,
    "config": {"corpus": {"TextCorpus?": TEXT}, "design": Each(object)},
}

NAMES: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a finite number",
    list: "a list",
    dict: "an object",
}


def check(value: Any, shape: Any, *, file: os.PathLike | str, key: str, remedy: str) -> None:
    """Checks a value of a JSON file.

    Args:
      value: that was read.
      shape: that it should have.
      file: where it stands.
      key: in the file, dotted; empty for all of it.
      remedy: what to do about one that does not fit.

    Raises:
      UserError: it has another shape; the line names the first key that does not fit.
    """
    found = _misfit(value, shape, key)
    if found:
        place, what, expected = found
        raise UserError(
            f"{os.fspath(file)}: {place or 'its content'} {what}, expected {expected}: {remedy}"
        )


def check_seeds(
    entry: Mapping[str, Any], *, file: os.PathLike | str, key: str, remedy: str
) -> None:
    """Checks that a result has one value of each seed, and what others are compared with.

    Raises:
      UserError: a list is longer or shorter than `seeds`, or `repetition` is missing.
    """
    start, seeds = f"{key}." if key else "", len(entry["seeds"])
    if "repetition" not in entry["arms"]:
        raise UserError(f"{os.fspath(file)}: {start}arms.repetition is missing: {remedy}")
    if "sbp" in entry["arms"]:
        for group in ("arms", "controls"):
            for name, arm in entry[group].items():
                if "sbp_lead" not in arm and name not in ("sbp", "oracle"):
                    raise UserError(
                        f"{os.fspath(file)}: {start}{group}.{name}.sbp_lead is missing: {remedy}"
                    )
    lists = {name: entry.get(name, []) for name in ("heldout_tokens", "bayes_loss", "pairs")}
    lists |= {name: entry.get(name, []) for name in ("leakage", "cost")}
    for group in ("arms", "controls"):
        for name, arm in entry[group].items():
            for field in ("by_seed", "dev_by_seed", "step_by_seed", "curves", "passes"):
                lists[f"{group}.{name}.{field}"] = arm[field]
    for group in ("synthesizers", "corpora"):
        lists |= {f"{group}.{name}": values for name, values in entry[group].items()}
    for sweep, points in entry["sweeps"].items():
        for number, point in enumerate(points):
            for name, arm in point["arms"].items():
                place = f"sweeps.{sweep}.{number}.arms.{name}"
                lists |= {f"{place}.{f}": arm[f] for f in ("by_seed", "dev_by_seed")}
    optional = ("pairs", "leakage", "cost")
    for place, values in lists.items():
        if len(values) != seeds and not (place in optional and not values):
            raise UserError(
                f"{os.fspath(file)}: {start}{place} has {len(values)} values, expected {seeds}, "
                f"one of each seed: {remedy}"
            )
    if not seeds:
        raise UserError(
            f"{os.fspath(file)}: {start}seeds is empty, expected one at least: {remedy}"
        )


def _misfit(value: Any, shape: Any, key: str) -> tuple[str, str, str] | None:
    """The first place that does not fit, what is there, and what was expected."""
    if isinstance(shape, Maybe):
        return None if value is None else _misfit(value, shape.shape, key)
    if shape is object:
        return None
    if isinstance(shape, type):
        fits = isinstance(value, int | float if shape is float else shape)
        fits = fits and not isinstance(value, bool) and not _is_infinite(value)
        return None if fits else (key, f"is {_short(value)}", NAMES[shape])
    kind: Any = dict if isinstance(shape, dict | Each) else list
    if type(value) is not kind:
        return key, f"is {_short(value)}", _name(shape)
    start = f"{key}." if key else ""
    parts: list[tuple[Any, Any, str]] = []
    if isinstance(shape, tuple):
        if len(value) != len(shape):
            return key, f"is {_short(value)}", f"a list of {len(shape)}"
        parts = [(one, shape[n], f"{start}{n}") for n, one in enumerate(value)]
    elif isinstance(shape, list):
        parts = [(one, shape[0], f"{start}{n}") for n, one in enumerate(value)]
    elif isinstance(shape, Each):
        parts = [(one, shape.shape, f"{start}{name}") for name, one in value.items()]
    else:
        for name, inner in shape.items():
            bare = name.removesuffix("?")
            if name == TOGETHER:
                if len({value.get(one) is None for one in inner}) > 1:
                    return key, f"is {_short(value)}", f"all of {', '.join(inner)} or none"
            elif bare in value:
                parts.append((value[bare], inner, f"{start}{bare}"))
            elif bare == name:
                return f"{start}{name}", "is missing", _name(inner)
    return next((found for part in parts if (found := _misfit(*part))), None)


def _name(shape: Any) -> str:
    """A shape in words."""
    if isinstance(shape, Maybe):
        return _name(shape.shape)
    if isinstance(shape, type):
        return NAMES[shape]
    return NAMES[dict if isinstance(shape, dict | Each) else list]


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
