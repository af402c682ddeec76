"""Mixtures: how many rows of each source a run reads, in which steps, and whether there are enough.

Shares are of rows, which are of one length, so they are shares of tokens but for the padding. All
is settled before the first step: numbers of rows are exact, and so are the passes over each source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from sbp_jax.data.rows import RowsArtefact, RowSource
from sbp_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Share:
    """What a run takes from one source.

    Attributes:
      source: the rows.
      slots: how many rows of the run, repeats counted.
    """

    source: RowSource
    slots: int

    @property
    def passes(self) -> float:
        """How many times the source is read."""
        return self.slots / self.source.rows

    @property
    def unique_rows(self) -> int:
        """How many different rows are read."""
        return min(self.slots, self.source.rows)

    @property
    def unique_tokens(self) -> int:
        """How many different tokens are read; by the rows' mean where not all rows are."""
        return round(self.source.tokens * self.unique_rows / self.source.rows)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The rows of a run.

    Attributes:
      sources: what is read.
      steps: of the run.
      batch_size: B, rows a step.
      phases: rows of each source, in each stretch of steps in which the shares stay the same.
    """

    sources: tuple[RowSource, ...]
    steps: int
    batch_size: int
    phases: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """L, tokens in a row."""
        return self.sources[0].length

    @property
    def shares(self) -> list[Share]:
        """What the whole run takes from each source."""
        totals = np.sum(self.phases, axis=0).tolist()
        return [Share(source, n) for source, n in zip(self.sources, totals, strict=True)]

    def summary(self) -> dict[str, dict[str, float]]:
        """Per source: rows of the run, different rows and tokens, and passes."""
        return {
            share.source.name: {
                "rows": share.slots,
                "unique_rows": share.unique_rows,
                "passes": share.passes,
                "tokens": share.unique_tokens,
                "synthetic": share.source.synthetic,
            }
            for share in self.shares
        }


def plan(
    artefacts: Mapping[str, RowsArtefact],
    shares: Mapping[str, float],
    steps: int | None,
    batch_size: int,
    later: Mapping[int, Mapping[str, float]] | None = None,
) -> Mixture:
    """Settles how many rows of each source a run reads.

    Args:
      artefacts: of `sbp cache`, by name. Within one its tasks keep the rates of their SeqIO
        mixture.
      shares: of each artefact: any numbers, of which the ratios count; with `steps` None, how many
        tokens the run reads of each, padding not counted.
      steps: of the run; None for as many as the tokens in `shares` fill.
      batch_size: B, rows a step.
      later: other shares from given steps on.

    Raises:
      UserError: shares name what is not there or are no shares, artefacts do not fit each other, or
        a source that must not be repeated has too few rows.
    """
    sources = _sources(artefacts)
    phases = {0: shares, **(later or {})}
    for step, given in phases.items():
        _check(given, artefacts, step)
    if steps is None:
        if later:
            raise UserError("train.later needs train.steps: shares that change are no budgets")
        steps = _steps_of(artefacts, shares, batch_size)
    if late := [step for step in phases if not 0 <= step < steps]:
        raise UserError(f"train.later: step {late[0]} is none of {steps} steps, counted from 0")
    starts = sorted(phases)
    counts = []
    for start, end in zip(starts, [*starts[1:], steps], strict=True):
        rates = _rates(artefacts, phases[start])
        # Rounding the running sums keeps the numbers' sum exact.
        running = np.cumsum([0.0, *rates]) / sum(rates) * (end - start) * batch_size
        counts.append(tuple(np.diff(np.rint(running).astype(int)).tolist()))
    mixture = Mixture(sources, steps, batch_size, tuple(counts))
    for share in mixture.shares:
        _check_repeats(share, mixture)
    return mixture


def _sources(artefacts: Mapping[str, RowsArtefact]) -> tuple[RowSource, ...]:
    """All sources, which must be of one length and vocabulary and of different names."""
    sources = [source for rows in artefacts.values() for source in rows.sources.values()]
    names = [source.name for source in sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"train.rows holds two sources named {twice[0]}: rename one of the tasks")
    first, *rest = artefacts.items()
    for name, rows in rest:
        for what in ("length", "vocab_size"):
            mine, others = getattr(rows, what), getattr(first[1], what)
            if mine != others:
                raise UserError(
                    f"{name} has a {what} of {mine} and {first[0]} one of {others}: "
                    "cache them alike to mix them"
                )
        if rows.vocabulary != first[1].vocabulary:
            raise UserError(
                f"{name} and {first[0]} were cached with different vocabularies: cache them with "
                "one to mix them"
            )
    return tuple(sources)


def _check(shares: Mapping[str, float], artefacts: Mapping[str, RowsArtefact], step: int) -> None:
    if unknown := set(shares) - set(artefacts):
        raise UserError(
            f"train.later: from step {step} on, {min(unknown)} is none of train.rows: "
            f"expected some of {list(artefacts)}"
        )
    if not shares or min(shares.values()) < 0 or not 0 < sum(shares.values()) < float("inf"):
        raise UserError(
            f"shares {dict(shares)} from step {step} on: expected numbers that are 0 or more, "
            "and one that is more"
        )


def _rates(artefacts: Mapping[str, RowsArtefact], shares: Mapping[str, float]) -> Sequence[float]:
    """The share of each source, from its artefact's and its own rate there."""
    found = []
    for name, rows in artefacts.items():
        total = sum(source.rate for source in rows.sources.values())
        found += [shares.get(name, 0) * s.rate / total for s in rows.sources.values()]
    return found


def _steps_of(
    artefacts: Mapping[str, RowsArtefact], budgets: Mapping[str, float], batch_size: int
) -> int:
    """As many steps as the budgets' tokens fill, and no more."""
    rows = sum(
        budget * source.rows / source.tokens
        for source, budget in zip(_sources(artefacts), _rates(artefacts, budgets), strict=True)
    )
    steps = int(rows / batch_size + 1e-9)
    if steps < 1:
        raise UserError(
            f"train.steps = None and train.rows = {dict(budgets)}: so few tokens fill no batch of "
            f"{batch_size} rows; give token budgets, or set train.steps"
        )
    return steps


def _check_repeats(share: Share, mixture: Mixture) -> None:
    source = share.source
    if source.repeat or share.slots <= source.rows:
        return
    slots = mixture.steps * mixture.batch_size
    fits = mixture.steps * source.rows // share.slots
    why = "no synthetic document is read twice" if source.synthetic else "it is marked repeat=False"
    raise UserError(
        f"{source.name} would be read {share.passes:.2f} times, but {why}: its share asks for "
        f"{share.slots} rows and there are {source.rows}. Lower its share to "
        f"{source.rows / slots:.4f}, take {fits} steps, or give more of it"
    )
