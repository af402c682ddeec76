"""The stages in order: one gin file becomes base model, synthesizer, corpus, arms and report.

Each stage runs in a child process with the same gin files and its own scope, so that what
`sbp bootstrap` does and what a stage run by hand does are one thing, memory is given back, and
TensorFlow stays out of training. A stage that comes several times in a row shares one process:
importing SeqIO takes longer than most of them. Finished stages are found finished by their
manifests.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

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
    """

    command: str
    scope: str
    arms: tuple[str, ...] = ARMS


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
def bootstrap(run: artifacts.Run, *, arms: Sequence[str] = ARMS) -> None:
    """Runs all stages that the arms need, in order; those finished are passed over.

    Args:
      run: its directory gets every artefact, and `summary.json`.
      arms: some of `repetition` (the base model, trained on its data over and over), `sbp`
        (trained on real and synthetic text together) and `oracle` (on all the real text there
        is), at equal training tokens; `repetition` is always among them.
    """
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or "repetition" not in arms:
        raise UserError(
            f"bootstrap.arms = {list(arms)}: expected `repetition` and any of {list(ARMS[1:])}"
        )
    calls = [call for call in STAGES if set(call.arms) & set(arms)]
    started = time.monotonic()
    done = 0
    for group in [list(group) for _, group in itertools.groupby(calls, key=_process)]:
        command = " ".join([f"sbp {group[0].command}", *(f"--scope={c.scope}" for c in group)])
        done += len(group)
        logging.info("[%d/%d] %s", done, len(calls), command)
        _run(command, run.arguments)
    logging.info("all stages finished in %.0f s", time.monotonic() - started)
    report = run.path("report")
    summary = (report / "summary.json").read_text()
    artifacts.write_atomic(run.directory / "summary.json", summary)
    _print_summary(json.loads(summary), str(report / "report.html"))


def _process(call: StageCall) -> str:
    """Neighbours of one stage share a process; a training has its devices to itself."""
    return call.scope if call.command == "train" else call.command


def _run(command: str, arguments: Sequence[str]) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "sbp_jax.cli", *command.split()[1:], *arguments]
    )
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
        raise StageFailed(command, exit_code)


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
