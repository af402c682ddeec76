"""The stages in order: one gin file becomes base model, synthesizer, corpus, arms and report.

Each stage runs in a child process with the same gin files and its own scope, so that what
`sbp bootstrap` does and what a stage run by hand does are one thing, memory is given back, and
TensorFlow stays out of training. A stage that comes several times in a row shares one process:
importing SeqIO takes longer than most of them. Finished stages are found finished by their
manifests.

A later round is SBP again from the jointly trained model: that is tuned on the same pairs, writes
another corpus from the same documents, and a model is trained from scratch on it and the real
rows, with the steps and tokens of the first. Nobody has published more than one round; what is
iterated is our choice. Round 2 leaves `tune_2`, `synthetic_2`, … with the settings of `tune`,
`synthetic`, …, from their gin scopes; what is set in `tune/round_2/` is of that round alone. Its
report is `report_2`, beside that of a run that once had one round.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import gin
from absl import logging

from sbp_jax import artifacts
from sbp_jax.errors import UserError
from sbp_jax.settings import configurable

ARMS = ("repetition", "sbp", "oracle")


@dataclasses.dataclass(frozen=True)
class StageCall:
    """A stage with its scope.

    Attributes:
      command: of `sbp`.
      scope: gin scope, and the artefact's place in the run.
      arms: which arms need it.
      like: gin scope that it takes its settings from, where that is not `scope`.
      bindings: what it sets over the files, as in `--gin.BINDING`.
    """

    command: str
    scope: str
    arms: tuple[str, ...] = ARMS
    like: str | None = None
    bindings: tuple[str, ...] = ()

    @property
    def flags(self) -> list[str]:
        """Of the command line, beside those that all stages of a run have."""
        like = [f"--like={self.like}"] if self.like else []
        return [f"--scope={self.scope}", *like, *(f"--gin.{binding}" for binding in self.bindings)]


STAGES = (
    StageCall("vocab", "vocab"),
    StageCall("cache", "rows/real"),
    StageCall("cache", "rows/dev"),
    StageCall("cache", "rows/heldout"),
    StageCall("cache", "rows/oracle", ("oracle",)),
    # The base model is the repetition arm: same rows, same steps.
    StageCall("train", "pretrain"),
    StageCall("embed", "embed", ("sbp",)),
    StageCall("pair", "pairs", ("sbp",)),
    StageCall("pair", "pairs_dev", ("sbp",)),
    StageCall("cache", "rows/pairs", ("sbp",)),
    StageCall("cache", "rows/pairs_dev", ("sbp",)),
    StageCall("train", "tune", ("sbp",)),
    StageCall("conditioning", "conditioning", ("sbp",)),
    StageCall("synthesize", "synthetic", ("sbp",)),
    StageCall("cache", "rows/synthetic", ("sbp",)),
    StageCall("train", "joint", ("sbp",)),
    StageCall("train", "oracle", ("oracle",)),
    StageCall("evaluate", "evaluate/repetition"),
    StageCall("evaluate", "evaluate/sbp", ("sbp",)),
    StageCall("evaluate", "evaluate/oracle", ("oracle",)),
    StageCall("report", "report"),
)


class StageFailed(Exception):
    """A child process ended without success.

    Attributes:
      exit_code: the bootstrap ends as the child did; 1 if a signal ended that.
      told: whether the child has said why, so that nothing is left to say.
    """

    def __init__(self, command: str, exit_code: int):
        super().__init__(
            f"{command} was ended by signal {-exit_code}: the same command goes on from there"
        )
        self.told = exit_code > 0
        self.exit_code = exit_code if self.told else 1


@configurable
def bootstrap(run: artifacts.Run, *, arms: Sequence[str] = ARMS, rounds: int = 1) -> None:
    """Runs all stages that the arms need, in order; those finished are passed over.

    With more than one round the run has arms `sbp_2`, … beside `sbp`: see the module.

    Args:
      run: its directory gets every artefact, and `summary.json`.
      arms: some of `repetition` (the base model, trained on its data over and over), `sbp`
        (trained on real and synthetic text together) and `oracle` (on all the real text there
        is), at equal training tokens; `repetition` is always among them.
      rounds: how often SBP is done, each time from the jointly trained model of the round before.

    Raises:
      UserError: an arm is unknown, or there is nothing that so many rounds could go on from.
      StageFailed: a stage ended without success.
    """
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or "repetition" not in arms:
        raise UserError(
            f"bootstrap.arms = {list(arms)}: expected `repetition` and any of {list(ARMS[1:])}"
        )
    if rounds < 1 or (rounds > 1 and "sbp" not in arms):
        raise UserError(
            f"bootstrap.rounds = {rounds}: expected 1, or more with `sbp` in bootstrap.arms"
        )
    calls = stages(arms, rounds)
    started = time.monotonic()
    done = 0
    for group in [list(group) for _, group in itertools.groupby(calls, key=_process)]:
        command = [group[0].command, *(flag for call in group for flag in call.flags)]
        done += len(group)
        logging.info("[%d/%d] sbp %s", done, len(calls), shlex.join(command))
        _run(command, run.arguments)
    logging.info("all stages finished in %.0f s", time.monotonic() - started)
    report = run.path(calls[-1].scope)
    summary = (report / "summary.json").read_text()
    artifacts.write_atomic(run.directory / "summary.json", summary)
    _print_summary(json.loads(summary), str(report / "report.html"))


def stages(arms: Sequence[str], rounds: int) -> list[StageCall]:
    """All stages of a run in order.

    Raises:
      UserError: gin does not say where in the first round's settings its corpus and arm are named.
    """
    *calls, report = [call for call in STAGES if set(call.arms) & set(arms)]
    for number in range(2, rounds + 1):
        calls += later_round(number)
    return [*calls, report if rounds == 1 else report_of(rounds)]


def later_round(number: int) -> list[StageCall]:
    """The stages of SBP from the jointly trained model of the round before; `number` is 2 or more.

    Raises:
      UserError: as `stages`.
    """
    before = "joint" if number == 2 else f"joint_{number - 1}"
    task = _renamed("rows/synthetic/cache", ("task",), "synthetic", number)
    rows = _renamed("joint/train", ("rows", "later"), "rows/synthetic", number)
    return [
        _again("train", "tune", number, start_from=before),
        _again("synthesize", "synthetic", number, checkpoint=f"tune_{number}"),
        _again("cache", "rows/synthetic", number, **task),
        _again("train", "joint", number, **rows),
        _again("evaluate", "evaluate/sbp", number, checkpoint=f"joint_{number}"),
    ]


def report_of(rounds: int) -> StageCall:
    """The report with the arms of later rounds behind that of the first.

    Raises:
      UserError: as `stages`.
    """
    arms = dict(gin.get_bindings("report/report").get("arms", {}))
    if "sbp" not in arms:
        raise UserError(
            f"bootstrap.rounds = {rounds}: report.arms = {arms} has no `sbp`, behind which later "
            "rounds stand: name it there, or set bootstrap.rounds = 1"
        )
    names = list(arms)
    for number in range(2, rounds + 1):
        names.insert(names.index("sbp") + number - 1, f"sbp_{number}")
        arms[f"sbp_{number}"] = {"train": f"joint_{number}", "scores": f"evaluate/sbp_{number}"}
    return _again("report", "report", rounds, arms={name: arms[name] for name in names})


def _again(command: str, scope: str, number: int, **settings: Any) -> StageCall:
    """A stage of the first round once more, with the settings that are the round's own."""
    like = f"{scope}/round_{number}"
    bindings = tuple(f"{like}/{command}.{name}={value!r}" for name, value in settings.items())
    return StageCall(command, f"{scope}_{number}", ("sbp",), like, bindings)


def _renamed(selector: str, names: Sequence[str], artefact: str, number: int) -> dict[str, Any]:
    """Those of the first round's settings that may name an artefact, with the round's own in place.

    Raises:
      UserError: none of them names it.
    """
    bound = gin.get_bindings(selector)
    given = {name: bound[name] for name in names if name in bound}
    own = {
        name: _replaced(value, artefact, f"{artefact}_{number}") for name, value in given.items()
    }
    if own == given:
        raise UserError(
            f"bootstrap.rounds: {selector}.{names[0]} = {given.get(names[0])!r} does not name "
            f"{artefact}, of which each round has its own: name it there, or set rounds = 1"
        )
    return own


def _replaced(value: Any, old: str, new: str) -> Any:
    """A value that names the artefact `new` where it named `old`: as `old`, `TASK@old` or a key."""
    if isinstance(value, Mapping):
        return {_replaced(key, old, new): _replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, str):
        task, at, artefact = value.rpartition("@")
        return f"{task}{at}{new}" if artefact == old else value
    return value


def _process(call: StageCall) -> str:
    """Neighbours of one stage share a process; a training has its devices to itself."""
    return call.scope if call.command == "train" else call.command


def _run(command: Sequence[str], arguments: Sequence[str]) -> None:
    # What a stage sets itself stands behind what is set for all.
    child = subprocess.Popen([sys.executable, "-m", "sbp_jax.cli", *arguments, *command])
    # Whoever ends the bootstrap means the stage at work; training then saves before it ends.
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        exit_code = child.wait()
    except KeyboardInterrupt:
        child.wait()  # the child was interrupted with us and ends by itself
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if exit_code:
        raise StageFailed(f"sbp {shlex.join(command)}", exit_code)


def _print_summary(summary: dict, report: str) -> None:
    """The last lines of a bootstrap: held-out losses, the share recovered, the report."""
    for name, arm in summary["arms"].items():
        print(
            f"{name:<12} held-out loss {arm['heldout_loss']:.4f} nats/token, "
            f"{arm['heldout_bits_per_byte']:.4f} bits/byte"
        )
    if {"sbp", "oracle"} <= set(summary["arms"]):
        share = summary["oracle_gain_recovered"]
        found = "undefined, the oracle gained nothing" if share is None else f"{100 * share:.1f}%"
        print(f"share of the oracle's gain recovered: {found}")
    print(f"report: {report}")
