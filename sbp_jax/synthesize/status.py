"""`sbp synthesize --status DIR`: how far a corpus is, over all hosts, read from its directory.

Needs neither gin nor devices nor TensorFlow, and writes nothing.
"""

from __future__ import annotations

import dataclasses
import json
import time

from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import UserError
from sbp_jax.synthesize import claims, shards


@dataclasses.dataclass(frozen=True)
class WorkerStatus:
    """One process that works on the corpus, or did.

    Attributes:
      worker: its name.
      state: `working`, `silent` (its lease has lapsed) or `left`.
      held: numbers of the shards it has claimed and not finished.
      silent_seconds: since its last sign of life, by the storage's clock and this machine's.
      tokens: accepted ones that it has written.
      tokens_per_second: over the last minutes; 0 unless it is working.
    """

    worker: str
    state: str
    held: tuple[str, ...]
    silent_seconds: float
    tokens: int
    tokens_per_second: float


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a corpus is.

    Attributes:
      directory: of the artefact.
      state: `finished`, `working`, or `interrupted` (no process is at work).
      wanted_tokens: of all documents together.
      tokens: accepted ones, in finished shards.
      shards: finished.
      goal: shards that will be needed, as estimated.
      tokens_per_second: of all processes at work, over the last minutes.
      seconds_left: at this rate; None where there is none.
      host_hours: of all processes, those that have left among them.
      dollars: what these have cost; None without a price.
      workers: that have taken part, the working ones first.
    """

    directory: str
    state: str
    wanted_tokens: int
    tokens: int
    shards: int
    goal: int | None
    tokens_per_second: float
    seconds_left: float | None
    host_hours: float | None
    dollars: float | None
    workers: tuple[WorkerStatus, ...]


def read(out: epath.Path, price: float | None = None) -> Status:
    """Reads the status of the artefact `out`, finished or not.

    Whether a process still lives is told here by when the storage last saw its file change. That
    is for the eye: what is taken over is decided without comparing clocks (`claims`).

    Args:
      out: directory of the artefact.
      price: dollars that a host costs in an hour.

    Raises:
      UserError: there is neither an artefact of `sbp synthesize` nor the beginning of one.
    """
    if artifacts.is_finished(out):
        manifest = artifacts.read_manifest(out)
        _check(out, manifest)
        documents = manifest.counts["sampled_documents"]
        return Status(
            directory=str(out),
            state="finished",
            wanted_tokens=manifest.config["tokens"],
            tokens=manifest.counts["tokens"],
            shards=-(-documents // manifest.config["documents_per_shard"]),
            goal=None,
            tokens_per_second=0.0,
            seconds_left=0.0,
            host_hours=None,
            dollars=None,
            workers=(),
        )
    work = artifacts.partial_directory(out)
    if not (work / artifacts.IDENTITY).exists():
        raise UserError(
            f"{out} holds no corpus, and none is being written: name the directory of one, or the "
            "run's with --scope"
        )
    identity = json.loads((work / artifacts.IDENTITY).read_text())
    manifest = artifacts.Manifest(**identity["manifest"])
    _check(out, manifest)
    found = _workers(work / claims.PROGRESS)
    beats = [beat for beat, _ in found]
    workers = tuple(status for _, status in found)
    rate = sum(worker.tokens_per_second for worker in workers)
    latest = max(beats, key=lambda beat: beat.shards, default=None)
    tokens = latest.accepted if latest else 0
    missing = max(0, manifest.config["tokens"] - tokens)
    folder = work / shards.FOLDER
    hours = sum(beat.seconds for beat in beats) / 3600
    return Status(
        directory=str(out),
        state="working" if any(w.state == "working" for w in workers) else "interrupted",
        wanted_tokens=manifest.config["tokens"],
        tokens=tokens,
        shards=len(shards.present(folder)) if folder.exists() else 0,
        goal=latest.goal if latest else None,
        tokens_per_second=rate,
        seconds_left=missing / rate if rate else None,
        host_hours=hours,
        dollars=hours * price if price is not None else None,
        workers=workers,
    )


def status(directory: str, scope: str | None, price: float | None, as_json: bool) -> int:
    """Prints how far a corpus is; returns the exit code.

    Args:
      directory: of the artefact, or of its run when the scope is given.
      scope: the artefact's place in the run.
      price: see `read`.
      as_json: print one JSON object instead of lines.
    """
    path = epath.Path(directory.removesuffix("/").removesuffix(artifacts.PARTIAL_SUFFIX))
    found = read(path / scope if scope else path, price)
    print(json.dumps(dataclasses.asdict(found), indent=2) if as_json else _text(found))
    return 0


def _check(out: epath.Path, manifest: artifacts.Manifest) -> None:
    if manifest.stage != "synthesize":
        raise UserError(
            f"{out} was made by `sbp {manifest.stage}`: expected a directory of `sbp synthesize`"
        )


def _workers(directory: epath.Path) -> list[tuple[claims.Beat, WorkerStatus]]:
    """Those that have left a file, the working ones first."""
    found = []
    paths = sorted(directory.glob("*.json")) if directory.exists() else []
    for path in paths:
        if (beat := claims.read_beat(path)) is None:
            continue
        silent = max(0.0, time.time() - path.stat().mtime)
        if beat.left:
            state = "left"
        elif silent > beat.lease_seconds:
            state = "silent"
        else:
            state = "working"
        rate = beat.recent_tokens / beat.recent_seconds if beat.recent_seconds else 0.0
        held = tuple(beat.held)
        one = WorkerStatus(
            beat.worker, state, held, silent, beat.tokens, rate if state == "working" else 0.0
        )
        found.append((beat, one))
    order = ("working", "silent", "left")
    return sorted(found, key=lambda pair: order.index(pair[1].state))


def _text(found: Status) -> str:
    share = min(1.0, found.tokens / found.wanted_tokens)
    of = f" of about {found.goal}" if found.goal is not None else ""
    lines = [
        f"{found.directory}: {found.state}",
        f"tokens     {found.tokens:,} of {found.wanted_tokens:,} ({share:.1%})",
        f"shards     {found.shards:,}{of} finished",
    ]
    if found.state != "finished":
        left = f", {_time(found.seconds_left)} left" if found.seconds_left is not None else ""
        lines.append(f"rate       {found.tokens_per_second:,.0f} tokens/s{left}")
        lines.append(f"hosts      {found.host_hours:.2f} hours together" + _dollars(found))
    for worker in found.workers:
        what = f"{worker.tokens:,} tokens"
        if worker.state == "working":
            what += f", {worker.tokens_per_second:,.0f} tokens/s, writes {_numbers(worker.held)}"
        elif worker.state == "silent":
            what += f", silent for {_time(worker.silent_seconds)}, held {_numbers(worker.held)}"
        lines.append(f"{worker.state:<10} {worker.worker}: {what}")
    return "\n".join(lines)


def _numbers(held: tuple[str, ...]) -> str:
    return " ".join(held) or "nothing"


def _dollars(found: Status) -> str:
    return f", {found.dollars:,.2f} dollars so far" if found.dollars is not None else ""


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
