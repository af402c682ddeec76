"""What the figures of an experiment say in words, by bars that are the same for all experiments.

SBP has to lie below repetition, and below every control, by more than `BAR` standard errors of the
difference over seeds. `ideal`, what a perfect synthesizer would write, is a ceiling and no control.
What is not met is said as plainly as what is.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sbp_jax.report.page import decimal, signed
from sbp_jax.report.verdict import percent

BAR = 2.0  # standard errors
FEW_SEEDS = 3
CEILING = "ideal"
MET, FAILED, UNKNOWN = "met", "not met", "cannot be told"
# Arms that are more, or other, than what SBP is to be better than.
NOT_CONTROLS = ("sbp", "repetition", "oracle", "second_round", "repetition_charged", CEILING)


@dataclasses.dataclass(frozen=True)
class Bar:
    """What had to be shown, the figures, and what came of it: `MET`, `FAILED` or `UNKNOWN`."""

    claim: str
    figures: str
    outcome: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A headline, the bars, how high the ceiling is (if known), and reasons to be careful."""

    title: str
    bars: tuple[Bar, ...]
    ceiling: str
    cautions: tuple[str, ...]


def verdict(entry: Mapping[str, Any]) -> Verdict:
    """The outcome of an experiment."""
    arms = {**entry["arms"], **entry["controls"]}
    bars, outcomes = [], {}
    for name in ("repetition", *_controls(entry)):
        found = arms[name].get("sbp_lead")
        if found is not None:
            what = "the best regularised repetition" if name == "repetition" else name
            outcomes[name] = outcome(found)
            claim = f"SBP below {what} by more than {BAR:g} standard errors"
            bars.append(Bar(claim, lead(found) + _by_seed(arms, name), outcomes[name]))
    if "sbp" in arms:
        if entry["least_seeds_ahead"] is not None:
            bars.append(_of_the_seeds(entry))
        if "oracle" in arms:
            bars.append(_of_the_oracle(entry))
        if entry["least_share"] is not None:
            bars.append(_of_the_share(entry))
    return Verdict(_title(entry, outcomes), tuple(bars), _ceiling(entry), tuple(_cautions(entry)))


def outcome(found: Mapping[str, Any]) -> str:
    """Whether a lead is larger than `BAR` standard errors; unknown where there are none."""
    if found["standard_errors"] is None:
        return UNKNOWN
    return MET if found["standard_errors"] > BAR else FAILED


def lead(found: Mapping[str, Any]) -> str:
    """+0.0310 ± 0.0021 nats per token (14.8 standard errors; 95%: 0.0250 to 0.0370)."""
    if found["standard_errors"] is None:
        return f"{signed(found['mean'])} nats per token; no standard error"
    return (
        f"{signed(found['mean'])} ± {decimal(found['standard_error'])} nats per token "
        f"({decimal(found['standard_errors'], 1)} standard errors; 95%: "
        f"{decimal(found['low'])} to {decimal(found['high'])})"
    )


def _by_seed(arms: Mapping[str, Any], name: str) -> str:
    """; below it in 4 of 5 seeds."""
    below, seeds = _ahead(arms, name)
    return f"; below it in {below} of {seeds} seeds" if seeds > 1 else ""


def _ahead(arms: Mapping[str, Any], name: str) -> tuple[int, int]:
    """In how many seeds SBP lies below an arm, and of how many."""
    pairs = list(zip(arms["sbp"]["by_seed"], arms[name]["by_seed"], strict=True))
    return sum(own < other for own, other in pairs), len(pairs)


def share(found: Mapping[str, Any] | None) -> str:
    """23% (95%: 18% to 28%)."""
    if found is None or found["mean"] is None:
        return "undefined"
    if found["low"] is None:
        return f"{percent(found['mean'])} (one seed)"
    return f"{percent(found['mean'])} (95%: {percent(found['low'])} to {percent(found['high'])})"


def _controls(entry: Mapping[str, Any]) -> list[str]:
    """Controls that SBP is to be better than."""
    return [name for name in entry["controls"] if name not in NOT_CONTROLS]


def _of_the_oracle(entry: Mapping[str, Any]) -> Bar:
    found = entry["arms"]["sbp"].get("oracle_gain_recovered")
    claim = "a share of the oracle’s gain is recovered: its 95% interval lies above 0"
    if found is None or found["mean"] is None:
        return Bar(claim, "undefined: in some seed the oracle gained nothing", UNKNOWN)
    if found["low"] is None:
        return Bar(claim, share(found), UNKNOWN)
    return Bar(claim, share(found), MET if found["low"] > 0 else FAILED)


def _of_the_seeds(entry: Mapping[str, Any]) -> Bar:
    least = entry["least_seeds_ahead"]
    below, seeds = _ahead(entry["arms"], "repetition")
    claim = f"SBP below repetition in at least {least} of {seeds} seeds"
    return Bar(claim, f"{below} of {seeds}", MET if below >= least else FAILED)


def _of_the_share(entry: Mapping[str, Any]) -> Bar:
    least = entry["least_share"]
    claim = f"at least {percent(least)} of the oracle’s gain is recovered"
    found = entry["arms"]["sbp"].get("oracle_gain_recovered")
    if found is None or found["low"] is None:
        return Bar(claim, share(found), UNKNOWN)
    return Bar(claim, share(found), MET if found["mean"] >= least else FAILED)


def _title(entry: Mapping[str, Any], outcomes: Mapping[str, str]) -> str:
    if "sbp" not in entry["arms"]:
        return f"Held-out losses of {len(entry['arms']) + len(entry['controls'])} arms, without SBP"
    against = entry["arms"]["repetition"]["sbp_lead"]
    if against["standard_errors"] is None:
        side = "below" if against["mean"] > 0 else "above"
        return f"SBP lies {side} repetition, without a standard error: nothing is established"
    if against["standard_errors"] < -BAR:
        return "SBP is worse than repetition"
    if outcomes["repetition"] != MET:
        return "SBP and repetition are not told apart"
    controls = {name: found for name, found in outcomes.items() if name != "repetition"}
    if not controls:
        return "SBP beats repetition; no control was trained that would say why"
    unbeaten = [name for name, found in controls.items() if found != MET]
    if unbeaten:
        return f"SBP beats repetition, but not {_listed(unbeaten)}"
    number = (
        f"all {len(controls)} controls"
        if len(controls) > 1
        else f"the control {next(iter(controls))}"
    )
    return f"SBP beats repetition and {number}"


def _ceiling(entry: Mapping[str, Any]) -> str:
    arm = {**entry["arms"], **entry["controls"]}.get(CEILING)
    if arm is None or "oracle_gain_recovered" not in arm:
        return ""
    return (
        f"What a perfect synthesizer would write recovers {share(arm['oracle_gain_recovered'])} of "
        "the oracle’s gain: that is the ceiling here, and no control that SBP could beat."
    )


def _cautions(entry: Mapping[str, Any]) -> list[str]:
    found = []
    seeds, arms = len(entry["seeds"]), {**entry["arms"], **entry["controls"]}
    if seeds == 1:
        found.append("One seed has no standard error: whatever it shows may be chance.")
    elif seeds < FEW_SEEDS:
        found.append(f"{seeds} seeds say little about the spread between seeds.")
    if "sbp" in arms and not _controls(entry):
        found.append("No control was trained: a gain could come from any other text as well.")
    if "TextCorpus" in entry["config"]["corpus"] and seeds > 1:
        found.append(
            "All seeds have the same documents: the intervals tell what other trainings and "
            "samples of this text would give, and not what another text would."
        )
    edges = [text for name in arms if (text := _edge(entry, name))]
    edges += [text for kind in entry["synthesizers"] if (text := _edge_of(entry, kind))]
    if edges:
        found.append(
            "Chosen settings at the edge of what was tried, beyond which might lie better ones: "
            f"{'; '.join(edges)}."
        )
    fixed = _fixed(entry)
    if fixed:
        found.append(f"Given to all arms, and not searched: {_listed(fixed)}.")
    lucky = [text for name in arms if (text := _lucky(entry, name))]
    if lucky:
        found.append(
            "Where settings were chosen they did far better than in the seeds that are reported, "
            "so luck may have been taken for a good setting, and a better one missed: "
            f"{'; '.join(lucky)} (development loss where chosen, and mean over seeds)."
        )
    falling = [
        name
        for name, arm in arms.items()
        if arm["steps"] and _median(arm["step_by_seed"]) >= arm["steps"]
    ]
    if falling:
        found.append(
            f"Development loss was least at the last step in {_listed(falling)}: with more steps "
            "it might have fallen on."
        )
    outside = [
        one["seeds_in_train"] for one in entry.get("leakage", ()) if one["seeds_in_train"] < 1
    ]
    if outside:
        found.append(
            f"In {len(outside)} of {seeds} seeds some synthetic documents have seeds outside "
            "D_pretrain: held-out text may have leaked."
        )
    leaked = [one for one in entry.get("leakage", ()) if one["difference"]["low"] > 0]
    if leaked:
        found.append(
            f"In {len(leaked)} of {seeds} seeds the synthetic text has more n-grams of held-out "
            "documents than chance would give (95% interval above 0)."
        )
    whole = [one for one in entry.get("leakage", ()) if one["whole"]["difference"]["low"] > 0]
    if whole:
        found.append(
            f"In {len(whole)} of {seeds} seeds the synthetic text has most of more held-out "
            "documents than chance would give (95% interval above 0)."
        )
    return found


def _edge(entry: Mapping[str, Any], name: str) -> str:
    """`sbp dropout 0.2`, of an arm's settings that were least or most of those tried."""
    chosen = entry["arms" if name in entry["arms"] else "controls"][name]["settings"]
    parts = _at_the_edge(chosen, entry["tuning"].get(name, ()))
    return f"{name} {', '.join(parts)}" if parts else ""


def _edge_of(entry: Mapping[str, Any], kind: str) -> str:
    """`synthesizer (related) learning rate 0.0003`, likewise of a synthesizer."""
    chosen = entry["synthesizers"][kind][0]
    settings = {"start": chosen["start"], **chosen["settings"]}
    parts = _at_the_edge(settings, entry["synthesizer_tuning"].get(kind, ()))
    return f"synthesizer ({kind}) {', '.join(parts)}" if parts else ""


def _at_the_edge(chosen: Mapping[str, float], tried: Sequence[Mapping[str, float]]) -> list[str]:
    found = []
    for key, value in chosen.items():
        values = sorted({one[key] for one in tried if key in one})
        # Beyond no dropout, no weight decay and the end of the base model's training is nothing.
        ends = value == 0 or (key == "start" and value == 1)
        if len(values) > 1 and value in (values[0], values[-1]) and not ends:
            found.append(f"{key.replace('_', ' ')} {value:g}")
    return found


def _fixed(entry: Mapping[str, Any]) -> list[str]:
    """`learning rate 0.01`, of settings of which one value alone was tried for each arm."""
    tried = [one for arm in entry["tuning"].values() for one in arm]
    keys = dict.fromkeys(key for one in tried for key in one if key != "dev_loss")
    values = {key: {one[key] for one in tried if key in one} for key in keys}
    return [
        f"{key.replace('_', ' ')} {next(iter(own)):g}"
        for key, own in values.items()
        if len(own) == 1
    ]


def _lucky(entry: Mapping[str, Any], name: str) -> str:
    """`repetition 1.0187 against 1.1899`, of settings that did far better where they were chosen.

    Far is `BAR` standard deviations over the seeds. Some of that is in every choice: the best of
    many is one that had luck, too.
    """
    tried = [one["dev_loss"] for one in entry["tuning"].get(name, [])]
    losses = entry["arms" if name in entry["arms"] else "controls"][name]["dev_by_seed"]
    if not tried or len(losses) < FEW_SEEDS:
        return ""
    mean = statistics.fmean(losses)
    if min(tried) > mean - BAR * statistics.stdev(losses):
        return ""
    return f"{name} {decimal(min(tried))} against {decimal(mean)}"


def _median(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]


def _listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
