"""How figures are written in the cells of tables: with signs, errors and percentages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sbp_jax.experiment import statistics
from sbp_jax.experiment.verdict import share
from sbp_jax.report.page import decimal, signed
from sbp_jax.report.verdict import short

NONE = "–"
SETTINGS = ("learning_rate", "weight_decay", "dropout")


def in_order(keys: Iterable[str]) -> list[str]:
    """Names of settings, each once: the usual ones first."""
    found = sorted(set(keys))
    return sorted(found, key=lambda key: SETTINGS.index(key) if key in SETTINGS else len(SETTINGS))


def named(settings: Iterable[str]) -> str:
    """`learning rate, weight decay, dropout`: the header of cells of `listed`."""
    return ", ".join(key.replace("_", " ") for key in in_order(settings))


def listed(settings: Mapping[str, Any]) -> str:
    """`0.003, 0.1, 0`."""
    return ", ".join(plain(settings[key]) for key in in_order(settings))


def average(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)


def of(found: Mapping[str, Any] | None, sign: bool = False) -> str:
    """1.0402 ± 0.0021."""
    if found is None:
        return NONE
    text = signed(found["mean"]) if sign else decimal(found["mean"])
    error = found["standard_error"]
    return text if error is None else f"{text} ± {decimal(error)}"


def mean_of(values: Sequence[float], sign: bool = False) -> str:
    """Of one value a seed: 1.0402 ± 0.0021."""
    return of(statistics.mean_and_interval(values), sign)


def shares(values: Sequence[float], digits: int = 1) -> str:
    """99.1% ± 0.2%."""
    if not values:
        return NONE
    found = statistics.mean_and_interval(values)
    text = exact_percent(found["mean"], digits)
    error = found["standard_error"]
    return text if not error else f"{text} ± {100 * error:.{digits}f}%"


def exact_percent(value: float | None, digits: int = 2) -> str:
    """100% of all and 0% of none, and of them alone."""
    if value in (0, 1):
        return f"{value:.0%}"
    text = f"{100 * (value or 0.0):.{digits}f}"
    if text in (f"{100:.{digits}f}", f"{0:.{digits}f}"):
        return (
            f">{100 - 10**-digits:.{digits}f}%"
            if (value or 0) > 0.5
            else f"<{10**-digits:.{digits}f}%"
        )
    return f"{text}%".replace("-", "−")


def points(value: float) -> str:
    """A difference of shares in percentage points: +0.070."""
    return signed(100 * value, 3)


def errors(found: Mapping[str, Any], sign: bool = True) -> str:
    """+0.0310 ± 0.0021 (14.8 SE)."""
    text = of(found, sign)
    if found["standard_errors"] is None:
        return text
    errors = found["standard_errors"] if sign else abs(found["standard_errors"])
    return f"{text} ({decimal(errors, 1)} SE)"


def number(values: Sequence[Mapping[str, Any]], key: str) -> str:
    """The mean over seeds of a count."""
    return short(average([one[key] for one in values]))


def steps(arm: Mapping[str, Any]) -> str:
    """800, 850 of 1,000."""
    steps = [f"{step:,}" for step in dict.fromkeys(arm["step_by_seed"])]
    return f"{', '.join(steps)} of {arm['steps']:,}" if arm["steps"] else ", ".join(steps)


def plain(value: Any) -> str:
    """0.003."""
    return NONE if value is None else f"{value:g}"


def change(value: Any) -> str:
    """A changed value; of an embedder its name, checkpoint or model, and layer."""
    if isinstance(value, Mapping):
        inner = [str(v) for k, v in value.items() if k in ("checkpoint", "model", "name") and v]
        if value.get("layer") is not None:
            inner.append(f"layer {value['layer']}")
        return " ".join([str(value.get("", "")), *inner]).strip() or NONE
    if value is None:
        return "none"
    return f"{value:g}" if is_number(value) else str(value)


def is_number(value: Any) -> bool:
    """Whether it is one that can stand on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def recovered(arm: Mapping[str, Any]) -> str:
    """The share of the oracle's gain that an arm has, with its interval: 41% (38% to 44%)."""
    found = arm.get("oracle_gain_recovered")
    return NONE if found is None else share(found).replace("95%: ", "")
