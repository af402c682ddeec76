"""The sections of an experiment's results: words, figures and tables of what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sbp_jax.experiment import cells, figures, parts, sweeps
from sbp_jax.report.page import decimal
from sbp_jax.report.verdict import percent, short

SYNTHESIZERS = {
    "related": "related pairs (sbp)",
    "random": "random pairs",
    "scratch": "related pairs, from scratch",
    "second": "related pairs, from the sbp arm’s model",
}
# Of a synthetic corpus, with what to wish for.
QUALITIES = (
    ("documents", "documents", ""),
    ("tokens", "tokens", ""),
    ("copies_of_the_seed", "copies of the seed", "lower"),
    ("copies_of_any_document", "copies of any document of D_pretrain", "lower"),
    ("mostly_copied", "of whose 13‑grams D_pretrain has half or more", "lower"),
    ("different", "distinct", "higher"),
    ("ended_by_themselves", "ended by themselves", "higher"),
    ("names_the_seeds_concept", "about the seed’s concept", "higher"),
    ("facts_of_the_seed", "facts stated that are the seed’s", "higher"),
    ("facts_true", "facts stated that are true", "higher"),
    ("concepts_covered", "concepts covered", "higher"),
    ("new_concept_and_genre", "new combination of concept and genre", "higher"),
)


def sections(name: str, entry: Mapping[str, Any]) -> list[parts.Section]:
    """All parts that there are figures for, in their order."""
    made = [
        losses(name, entry),
        *(sweeps.section(name, entry, sweep) for sweep in sorted(entry["sweeps"])),
        synthesizer(entry),
        corpora(entry),
        leakage(entry),
        cost(entry),
        settings(entry),
    ]
    return [section for section in made if section is not None]


def losses(name: str, entry: Mapping[str, Any]) -> parts.Section:
    """Development losses by tokens, and held-out losses of all arms."""
    arms = parts.ordered(entry)
    seeds = len(entry["seeds"])
    drawn = [arm for arm in ("repetition", "sbp", "oracle") if arms.get(arm, {}).get("curves")]
    series = [_curve(arm, arms[arm]["curves"]) for arm in drawn if all(arms[arm]["curves"])]
    levels = []
    if (bayes := _bayes(entry)) is not None:
        levels.append(figures.Level("Bayes", bayes))
    ends = ", ".join(f"{line.name} {line.points[-1][1]:.4f}" for line in series)
    band = f"Lines are means of {seeds} seeds, bands reach from the lowest to the highest seed. "
    dashed = "Dashed: the least loss that any model can have (Bayes-optimal, held-out documents). "
    shown = []
    if series:
        shown.append(
            parts.Figure(
                f"{name}-loss",
                "Development loss against training tokens",
                f"Nats per token. {band if seeds > 1 else 'One seed. '}{dashed if levels else ''}"
                "The steep fall at the beginning leaves the figure.",
                figures.lines(
                    series,
                    levels,
                    horizontal="training tokens",
                    vertical="development loss, nats per token",
                    name=f"{name}-loss",
                    description=f"Development loss by training tokens ends at: {ends}.",
                ),
            )
        )
    shown.append(_side_by_side(name, arms, levels))
    return parts.Section(
        "Losses", figures=tuple(shown), tables=(outcomes(entry), chosen(entry), meanings(arms))
    )


def outcomes(entry: Mapping[str, Any]) -> parts.Table:
    """Held-out losses with leads."""
    rows = []
    for name, arm in parts.ordered(entry).items():
        own = arm.get("sbp_lead")
        rows.append(
            (
                name,
                cells.of(arm["heldout_loss"]),
                cells.of(arm.get("lead_over_repetition"), sign=True),
                cells.NONE if name in ("repetition", "oracle") else cells.recovered(arm),
                cells.NONE if own is None else cells.errors(own),
            )
        )
    return parts.Table(
        "Arms and controls",
        (
            *("arm", "held-out loss", "lead over repetition", "of the oracle’s gain"),
            "SBP’s lead over it",
        ),
        tuple(rows),
        note="Losses in nats per token, mean ± standard error over seeds; leads are differences "
        "seed by seed, positive where the arm is better (SE: standard errors); shares with their "
        "95% interval.",
    )


def chosen(entry: Mapping[str, Any]) -> parts.Table:
    """Settings and steps of all arms."""
    arms = parts.ordered(entry)
    keys = cells.in_order(key for arm in arms.values() for key in arm["settings"])
    rows = tuple(
        (name, *(cells.plain(arm["settings"].get(key)) for key in keys), cells.steps(arm))
        for name, arm in arms.items()
    )
    return parts.Table(
        "Chosen settings",
        ("arm", *(key.replace("_", " ") for key in keys), "step"),
        rows,
        note="Settings are those of the least mean development loss on "
        f"{'a seed' if len(entry['tuning_seeds']) == 1 else 'seeds'} of their own; the step is "
        "that of the least development loss of each seed.",
    )


def meanings(arms: Mapping[str, Any]) -> parts.Table:
    """What each arm reads."""
    told = {**parts.MEANINGS}
    passes = max((max(one.values()) for one in arms.get("oracle", {}).get("passes", ())), default=0)
    if passes > 1:
        told["oracle"] = (
            f"all the text there is, D_pretrain’s and other, {decimal(passes, 1)} times over"
        )
    rows = tuple((name, told.get(name, cells.NONE)) for name in arms)
    return parts.Table("What each arm reads", ("arm", "reads"), rows, text_columns=2, folded=True)


def synthesizer(entry: Mapping[str, Any]) -> parts.Section | None:
    """Whether the synthesizers have learned to use d1."""
    rows = []
    known = entry["synthesizers"]
    for kind in [*(k for k in SYNTHESIZERS if k in known), *sorted({*known} - {*SYNTHESIZERS})]:
        found = known[kind]
        rows.append(
            (
                SYNTHESIZERS.get(kind, kind),
                cells.mean_of([one["related"] for one in found]),
                cells.mean_of([one["random"] for one in found]),
                cells.mean_of([one["gain"] for one in found], sign=True),
                cells.shares(
                    [one["copies_new_facts"] for one in found if "copies_new_facts" in one]
                ),
                cells.NONE if kind in ("scratch", "second") else percent(found[0]["start"]),
                cells.listed(found[0]["settings"]),
                ", ".join(f"{step:,}" for step in dict.fromkeys(one["step"] for one in found)),
            )
        )
    if not rows:
        return None
    named = next(iter(known.values()))[0]["settings"]
    header = (
        *("tuned on", "NLL(d2|d1)", "NLL(d2|random)", "gain", "new facts copied"),
        *("base taken at", cells.named(named), "steps"),
    )
    paragraphs = []
    if entry["pairs"]:
        pairs = entry["pairs"]
        paragraphs.append(
            f"Pairs of related documents, means over seeds: {cells.number(pairs, 'pairs')} in all, "
            f"{cells.number(pairs, 'pairs_per_document')} a document; "
            f"{cells.shares([one['share_without_pairs'] for one in pairs])} of the documents have "
            "none."
        )
    table = parts.Table(
        "The synthesizer’s gate",
        header,
        tuple(rows),
        note="Nats per token of development documents, which no model was trained on, after a "
        "related d1 and after one drawn at random. New facts copied: of seeds whose facts no "
        "document ever stated, the share of facts stated as the seed has them. Mean ± standard "
        "error over seeds.",
    )
    return parts.Section("Does the synthesizer use its seed?", tuple(paragraphs), tables=(table,))


def corpora(entry: Mapping[str, Any]) -> parts.Section | None:
    """What the synthetic texts are like."""
    found = entry["corpora"]
    if not found:
        return None
    names = [name for name in parts.ordered(entry) if name in found]
    rows = []
    for key, title, wish in QUALITIES:
        if any(key in one for name in names for one in found[name]):
            values = [[one[key] for one in found[name] if key in one] for name in names]
            counted = key in ("documents", "tokens")
            values_of_arms = [
                short(cells.average(own)) if counted and own else cells.shares(own, digits=2)
                for own in values
            ]
            rows.append((f"{title} ({wish} is better)" if wish else title, *values_of_arms))
    table = parts.Table(
        "Quality of the synthetic text",
        ("share of documents, or of facts", *names),
        tuple(rows),
        note="Mean ± standard error over seeds.",
    )
    return parts.Section("What was written", tables=(table,))


def leakage(entry: Mapping[str, Any]) -> parts.Section | None:
    """Whether held-out text has found its way into the synthetic text."""
    found = entry.get("leakage", ())
    if not found:
        return None
    rows = tuple(
        (
            str(seed),
            f"{one['documents']:,}",
            cells.exact_percent(one["seeds_in_train"]),
            *_beside_chance(one),
            *_beside_chance(one["whole"]),
        )
        for seed, one in zip(entry["seeds"], found, strict=True)
    )
    ngram = found[0]["ngram"]
    inside = all(one["seeds_in_train"] == 1 for one in found)
    text = (
        "Every synthetic document goes back to a seed of D_pretrain. "
        if inside
        else "Some synthetic documents have seeds outside D_pretrain. "
    )
    above = sum(one["difference"]["low"] > 0 for one in found)
    whole = sum(one["whole"]["difference"]["low"] > 0 for one in found)
    text += (
        f"Held-out n‑grams are more frequent than by chance in {_seeds(above, found)}, and more "
        f"held-out documents are there for the most part in {_seeds(whole, found)}."
    )
    table = parts.Table(
        "Leakage",
        (
            *("seed", "documents", "seeds in D_pretrain"),
            *("held-out n‑grams", "by chance", "difference"),
            *("held-out documents", "by chance", "difference"),
        ),
        rows,
        note=f"Of the {ngram}‑grams of held-out documents that D_pretrain does not have, the share "
        "that the synthetic text has; by chance: of documents drawn in the same way, which nothing "
        "was trained on. Held-out documents: those of which it has half of these n‑grams or more. "
        "Differences in percentage points, with their 95% intervals over resampled documents: a "
        "leak that is smaller than an interval is wide need not be seen.",
    )
    return parts.Section("Has held-out text leaked?", (text,), tables=(table,))


def cost(entry: Mapping[str, Any]) -> parts.Section:
    """Training tokens of each arm; and with the base model, tuning and synthesis charged to SBP."""
    arms = parts.ordered(entry)
    own, rows = float(entry["train_tokens"]), []
    extra = entry.get("cost", ())
    charged = (
        {key: cells.average([one[key] for one in extra]) for key in ("base", "tuning", "synthesis")}
        if extra
        else {}
    )
    for name, arm in arms.items():
        more = sum(charged.values()) if name == "repetition_charged" else 0.0
        real = cells.average([one.get("real", 0.0) for one in arm["passes"]])
        other = [
            cells.average([one.get(key, 0.0) for one in arm["passes"]])
            for key in arm["passes"][0]
            if key != "real"
        ]
        rows.append(
            (
                name,
                f"{round(own + more):,}",
                f"{decimal(real, 1)}" if real else cells.NONE,
                f"{decimal(sum(other), 2)}" if other else cells.NONE,
            )
        )
    tables = [
        parts.Table(
            "First account: tokens of training, the same for each arm",
            ("arm", "training tokens", "passes over D_pretrain", "passes over other text"),
            tuple(rows),
            note="As the paper counts. Rows are counted with their padding."
            + (" Only repetition_charged has more." if "repetition_charged" in arms else ""),
        )
    ]
    paragraphs = []
    if charged:
        total = own + sum(charged.values())
        charges = [
            ("the sbp arm’s own training", own),
            ("base model", charged["base"]),
            ("tuning", charged["tuning"]),
            ("synthesis", charged["synthesis"]),
            ("in all", total),
        ]
        tables.append(
            parts.Table(
                "Second account: everything that SBP costs",
                ("part", "training tokens", "times an arm’s training"),
                tuple(
                    (what, f"{round(value):,}", decimal(value / own, 2)) for what, value in charges
                ),
                note="In tokens of training; a sampled or read token is a third of one (a forward "
                "pass). Means over seeds; the search for settings is charged to no arm.",
            )
        )
        paragraphs.append(_charged(entry, total / own))
    return parts.Section("What it costs", tuple(paragraphs), tables=tuple(tables))


def _seeds(count: int, of: Sequence[Any]) -> str:
    """2 of 5 seeds; no seed."""
    return f"{count} of {len(of)} seeds" if count else "no seed"


def _beside_chance(one: Mapping[str, Any]) -> tuple[str, str, str]:
    """1.234%, 1.2%, +0.03 points (-0.1 to +0.2)."""
    difference = (cells.points(one["difference"][key]) for key in ("mean", "low", "high"))
    return (
        cells.exact_percent(one["heldout"], 3),
        cells.exact_percent(one["chance"], 3),
        "{} ({} to {})".format(*difference),
    )


def settings(entry: Mapping[str, Any]) -> parts.Section | None:
    """All that was tried."""
    arms = {name: entry["tuning"].get(name, ()) for name in parts.ordered(entry)}
    known = {**entry["synthesizer_tuning"]}
    synthesizers = {SYNTHESIZERS.get(kind, kind): tried for kind, tried in known.items()}
    tables = (
        _tried(entry, "arm", "Every arm was", "Settings", arms),
        _tried(entry, "tuned on", "Synthesizers were", "Settings of synthesizers", synthesizers),
    )
    shown = tuple(table for table in tables if table is not None)
    return parts.Section("How settings were chosen", tables=shown) if shown else None


def _tried(
    entry: Mapping[str, Any],
    column: str,
    who: str,
    what: str,
    of: Mapping[str, Sequence[Mapping[str, float]]],
) -> parts.Table | None:
    """Development losses of all settings of each; None where nothing was tried."""
    rows = []
    everything = [one for tried in of.values() for one in tried]
    keys = cells.in_order(key for one in everything for key in one if key != "dev_loss")
    for name, tried in of.items():
        least = min((one["dev_loss"] for one in tried), default=math.inf)
        for one in sorted(tried, key=lambda one: [one.get(key, 0.0) for key in keys]):
            mark = "chosen" if one["dev_loss"] == least else ""
            values = (cells.plain(one.get(key)) for key in keys)
            rows.append((name, *values, decimal(one["dev_loss"]), mark))
    if not rows:
        return None
    seeds = entry["tuning_seeds"]
    where = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return parts.Table(
        f"{what} tried on {where} ({len(rows) * len(seeds)} trainings)",
        (column, *(key.replace("_", " ") for key in keys), "development loss", "chosen"),
        tuple(rows),
        note=f"{who} tried with the same settings, on {where}, none of which is reported; "
        "development losses are means over them.",
        folded=True,
    )


def _curve(name: str, curves: Sequence[Sequence[Sequence[float]]]) -> figures.Line:
    """Means over seeds, as far as all have points, with the lowest and highest seed."""
    steps = list(zip(*curves, strict=False))
    means = [(seeds[0][0], cells.average([loss for _, loss in seeds])) for seeds in steps]
    spans = [(min(s[1] for s in seeds), max(s[1] for s in seeds)) for seeds in steps]
    return figures.Line(name, parts.style(name), means, spans)


def _side_by_side(
    name: str, arms: Mapping[str, Any], levels: Sequence[figures.Level]
) -> parts.Figure:
    rows = []
    for arm, found in sorted(arms.items(), key=lambda item: -item[1]["heldout_loss"]["mean"]):
        loss = found["heldout_loss"]
        span = None if loss["low"] is None else (loss["low"], loss["high"])
        rows.append(figures.Interval(arm, parts.style(arm), loss["mean"], span, found["by_seed"]))
    baseline = figures.Level("", arms["repetition"]["heldout_loss"]["mean"])
    ends = ", ".join(f"{row.name} {row.mean:.4f}" for row in rows)
    return parts.Figure(
        f"{name}-arms",
        "Held-out loss of every arm and control",
        "Nats per token, lower is better. Circles are means, lines their 95% intervals over seeds "
        "(Student’s t), dots the seeds; dashed are the mean of repetition"
        f"{' and the Bayes-optimal loss' if levels else ''}. What differs between seeds alone is "
        "in these intervals too: arms are compared seed by seed, in the table.",
        figures.intervals(
            rows,
            [baseline, *levels],
            horizontal="held-out loss, nats per token",
            name=f"{name}-arms",
            description=f"Held-out losses in nats per token: {ends}.",
        ),
    )


def _charged(entry: Mapping[str, Any], times: float) -> str:
    text = f"With all that it hangs on, SBP costs {decimal(times, 2)} times an arm’s training."
    arm = {**entry["arms"], **entry["controls"]}.get("repetition_charged")
    if arm is None:
        return f"{text} No arm of repetition was trained for as long."
    found = arm.get("sbp_lead")
    loss = f"Repetition trained for as long has a held-out loss of {cells.of(arm['heldout_loss'])}"
    if found is None:
        return f"{text} {loss}."
    side = "below" if found["mean"] > 0 else "above"
    apart = cells.errors({**found, "mean": abs(found["mean"])}, sign=False)
    return f"{text} {loss}; SBP lies {side} it by {apart}."


def _bayes(entry: Mapping[str, Any]) -> float | None:
    known = [one for one in entry["bayes_loss"] if one is not None]
    return cells.average(known) if known else None
