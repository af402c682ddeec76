"""Means over seeds with their intervals, and the share of the oracle's gain that is recovered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


def mean_and_interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over seeds, standard error and the interval of Student's t at `CONFIDENCE`.

    Args:
      values: one of each seed; at least one.

    Returns:
      `mean`, `standard_error`, `low` and `high`; None but for the mean of a single seed.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "standard_error": None, "low": None, "high": None}
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return {"mean": mean, "standard_error": error, "low": mean - reach, "high": mean + reach}


def gain_recovered(
    repetition: Sequence[float], arm: Sequence[float], oracle: Sequence[float]
) -> dict[str, Any]:
    """The share of the oracle's gain over repetition that an arm has, seed by seed.

    Args:
      repetition: held-out losses of the seeds.
      arm: likewise, of the same seeds.
      oracle: likewise.

    Returns:
      As `mean_and_interval`; `by_seed` beside. All None where the oracle gained nothing in a seed.
    """
    possible = np.subtract(repetition, oracle)
    if np.any(possible <= 0):
        return dict.fromkeys(("mean", "standard_error", "low", "high", "by_seed"))
    shares = (np.subtract(repetition, arm) / possible).tolist()
    return {**mean_and_interval(shares), "by_seed": shares}


def lead(arm: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """By how much an arm's losses lie below another's, seed by seed.

    Returns:
      As `mean_and_interval`, and `standard_errors`, by how many the mean lies above 0, None for one
      seed or no difference between seeds.
    """
    found: dict[str, Any] = mean_and_interval(np.subtract(other, arm).tolist())
    error = found["standard_error"]
    found["standard_errors"] = found["mean"] / error if error else None
    return found


def summary(losses: Mapping[str, Mapping[str, Any]], controls: Sequence[str]) -> dict[str, Any]:
    """Arms and controls with their gains, and what share of the oracle's gain SBP recovered.

    Args:
      losses: by arm, `by_seed` the held-out losses.
      controls: which of them are controls.
    """
    by_seed = {name: arm["by_seed"] for name, arm in losses.items()}
    found: dict[str, Any] = {"arms": {}, "controls": {}}
    for name, arm in losses.items():
        one = {**arm, "heldout_loss": mean_and_interval(by_seed[name])}
        if name != "repetition":
            one["lead_over_repetition"] = lead(by_seed[name], by_seed["repetition"])
        if "oracle" in by_seed:
            one["oracle_gain_recovered"] = gain_recovered(
                by_seed["repetition"], by_seed[name], by_seed["oracle"]
            )
        if "sbp" in by_seed and name not in ("sbp", "oracle"):
            one["sbp_lead"] = lead(by_seed["sbp"], by_seed[name])
        found["controls" if name in controls else "arms"][name] = one
    if {"sbp", "oracle"} <= set(by_seed):
        found["oracle_gain_recovered"] = found["arms"]["sbp"]["oracle_gain_recovered"]
    return found
