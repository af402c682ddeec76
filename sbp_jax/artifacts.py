"""Artefacts: what a stage leaves behind, and how it may be believed.

A stage works in `OUT.partial/` and commits by renaming it to `OUT/`. Beside its files an artefact
holds `manifest.json`: who made it (stage, configuration, inputs, code), what is in it (counts) and
how long it took. The *identity* of an artefact is the hash of the first part, so it is known
before any work is done: a stage whose identity matches what lies at `OUT` is finished, one that
differs is refused and nothing is overwritten. Following inputs from manifest to manifest gives
the lineage of anything in a run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path as LocalPath
from typing import Any

import gin
from absl import logging
from etils import epath

from sbp_jax.errors import UserError

MANIFEST = "manifest.json"
IDENTITY = "identity.json"
OPERATIVE_CONFIG = "config.gin"
PARTIAL_SUFFIX = ".partial"


@dataclasses.dataclass(frozen=True)
class Run:
    """Where a stage stands: the run's directory, and the gin scope that names its artefact.

    Attributes:
      directory: the run's directory; inputs are named relative to it.
      scope: the place of the stage's artefact inside the run, e.g. `rows/real`; also the gin scope
        under which it runs, unless `--like` names another.
      arguments: the command line's flags that configured the run, for child processes.
    """

    directory: epath.Path
    scope: str
    arguments: tuple[str, ...] = ()

    @property
    def out(self) -> epath.Path:
        """The directory of this stage's artefact."""
        return self.directory / self.scope

    def path(self, name: str) -> epath.Path:
        """An input: an artefact of this run by name (`rows/real`), or any absolute path or URL."""
        path = epath.Path(name)
        return path if path.is_absolute() or "://" in name else self.directory / name


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
      stage: the command that made the artefact.
      scope: the artefact's place in its run.
      config: every argument of the stage that can change its output.
      inputs: for each input its `path` (relative to the artefact where both lie in one run) and
        its manifest's `hash`.
      code: hash of the source that the stage runs.
      counts: documents, tokens, rows, … as the stage reports them.
      seconds: wall time, all attempts together.
    """

    stage: str
    scope: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, str]]
    code: str
    counts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    @property
    def identity(self) -> str:
        """Hash of what decides the content: stage, configuration, inputs, code."""
        inputs = {name: entry["hash"] for name, entry in self.inputs.items()}
        return digest(
            {"stage": self.stage, "config": self.config, "inputs": inputs, "code": self.code}
        )

    @property
    def hash(self) -> str:
        """Hash of identity and counts: what another manifest records of this one as an input."""
        return digest({"identity": self.identity, "counts": self.counts})

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        return json.dumps({**fields, "identity": self.identity, "hash": self.hash}, indent=2)


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """Turns a configuration value into what JSON can hold: dataclasses to dicts, paths to text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot stand in a manifest")


def code_hash(modules: Iterable[str]) -> str:
    """Hash of the source files of modules and packages, named as for import.

    Nothing is imported, so a stage can name code that needs TensorFlow without loading it.

    Raises:
      UserError: a module cannot be found.
    """
    sources = []
    for name in modules:
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            spec = None
        if spec is None or spec.origin is None:
            raise UserError(f"module {name!r} was not found: is its folder on the Python path?")
        origin = LocalPath(spec.origin)
        files = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
        sources += [
            (name, str(f.relative_to(origin.parent)), hashlib.sha256(f.read_bytes()).hexdigest())
            for f in files
        ]
    return digest(sources)


def read_manifest(directory: epath.PathLike) -> Manifest:
    """Reads and checks the manifest of a finished artefact.

    Raises:
      UserError: there is none, it is not what a stage writes, or its hashes do not fit it.
    """
    directory = epath.Path(directory)
    path = directory / MANIFEST
    if not path.exists():
        partial = epath.Path(f"{os.fspath(directory)}{PARTIAL_SUFFIX}")
        hint = (
            "its stage was interrupted: run that again first"
            if partial.exists()
            else "run the stage that makes it first, or name another directory"
        )
        raise UserError(f"{directory} holds no finished artefact ({MANIFEST} is missing): {hint}")
    try:
        fields = json.loads(path.read_text())
        recorded = fields.pop("identity"), fields.pop("hash")
        manifest = Manifest(**fields)
        computed = manifest.identity, manifest.hash
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is not a manifest ({error}): delete {directory} and run its stage again"
        ) from error
    if recorded != computed:
        raise UserError(
            f"{path} was edited or damaged (it says {recorded}, its content gives {computed}): "
            f"delete {directory} and run its stage again"
        )
    return manifest


def input_hash(path: epath.PathLike) -> str:
    """What a manifest records of an input: an artefact's hash, or that of a file's content."""
    path = epath.Path(path)
    if path.exists() and not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return read_manifest(path).hash


def is_finished(directory: epath.PathLike) -> bool:
    """Whether a finished artefact lies at `directory`."""
    return (epath.Path(directory) / MANIFEST).exists()


def write_atomic(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a file so that it is there whole or not at all."""
    path = epath.Path(path)
    # Processes of several hosts may write one file, and have one number.
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    data = content.encode() if isinstance(content, str) else content
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        if hasattr(file, "fileno"):
            os.fsync(file.fileno())
    temporary.replace(path)


@dataclasses.dataclass
class Stage:
    """A stage at work on one artefact, or finding it finished.

    Attributes:
      out: where the artefact will be.
      manifest: complete when `finished`, otherwise all but counts and seconds.
      finished: the artefact is there already, nothing is to be done.
      resumed: an earlier attempt with the same identity left files in `work`.
      work: the directory to write into, `OUT.partial`.
    """

    out: epath.Path
    manifest: Manifest
    finished: bool
    resumed: bool = False
    _started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def work(self) -> epath.Path:
        return partial_directory(self.out)

    def commit(self, counts: Mapping[str, Any]) -> Manifest:
        """Writes the manifest and renames `work` to `out`; the artefact is there from now on."""
        earlier = json.loads((self.work / IDENTITY).read_text())["seconds"]
        seconds = earlier + time.monotonic() - self._started
        self.manifest = dataclasses.replace(
            self.manifest, counts=plain(counts), seconds=round(seconds, 3)
        )
        write_atomic(self.work / OPERATIVE_CONFIG, gin.operative_config_str())
        write_atomic(self.work / MANIFEST, self.manifest.to_json())
        (self.work / IDENTITY).unlink()
        self.work.rename(self.out)
        self.finished = True
        logging.info("%s finished in %.1f s: %s", self.out, seconds, summary(counts))
        return self.manifest

    def elapsed(self) -> float:
        """Seconds since this attempt began, or last saved its time."""
        return time.monotonic() - self._started

    def save_time(self) -> None:
        """Adds the time so far to the record, so that it survives an interruption."""
        fields = json.loads((self.work / IDENTITY).read_text())
        now = time.monotonic()
        fields["seconds"] += now - self._started
        self._started = now
        write_atomic(self.work / IDENTITY, json.dumps(fields, indent=2))


def partial_directory(out: epath.PathLike) -> epath.Path:
    """Where the stage of the artefact `out` works until it commits."""
    return epath.Path(f"{os.fspath(out)}{PARTIAL_SUFFIX}")


def summary(counts: Mapping[str, Any]) -> str:
    """The plain numbers among counts, for a log line."""
    plain_numbers = {k: v for k, v in counts.items() if isinstance(v, int | float)}
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}"
        for name, value in plain_numbers.items()
    )


def begin(
    run: Run,
    stage: str,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, epath.PathLike],
    code: Sequence[str],
    resumable: bool = False,
    writer: bool = True,
) -> Stage:
    """Starts, resumes, or finds finished the stage that makes the artefact `run.out`.

    Args:
      run: names the artefact.
      stage: the command.
      config: every argument that can change the output; no paths.
      inputs: what the stage reads, by its role: directories of artefacts, or files from outside.
      code: modules and packages whose source decides the output.
      resumable: whether the stage goes on from what an interrupted attempt left; if not, that is
        removed, since nothing in it was finished. Several processes may begin one resumable stage.
      writer: whether this process may write; the others of a stage whose processes work in step
        pass False and wait for the writer themselves.

    Raises:
      UserError: an input is missing or damaged, or another artefact stands at `run.out`.
    """
    recorded = {}
    for role, directory in inputs.items():
        recorded[role] = {
            "path": _relative(epath.Path(directory), run.out),
            "hash": input_hash(directory),
        }
    wanted = Manifest(
        stage=stage,
        scope=run.scope,
        config=plain(config),
        inputs=recorded,
        code=code_hash(["sbp_jax.artifacts", *code]),
    )
    if is_finished(run.out):
        found = read_manifest(run.out)
        _refuse_if_different(run.out, found, wanted)
        logging.info("%s is finished already (%s)", run.out, found.identity)
        return Stage(run.out, found, finished=True)
    strange = run.out.exists() and any(p.name != OPERATIVE_CONFIG for p in _strays(run.out))
    if strange and not is_finished(run.out):
        raise UserError(
            f"{run.out} exists and is no artefact of this project: "
            "move it away or choose another run directory"
        )
    made = Stage(run.out, wanted, finished=False)
    try:
        _open(made, resumable=resumable, writer=writer)
    except FileNotFoundError:
        if not is_finished(run.out):
            raise
    if is_finished(run.out):  # another process has committed just now, and renamed the directory
        if writer and made.work.exists() and _has_only_begun(made.work):
            made.work.rmtree()
        return Stage(run.out, read_manifest(run.out), finished=True)
    return made


def _open(made: Stage, *, resumable: bool, writer: bool) -> None:
    """Makes ready the directory that a stage works in, or finds there what it goes on with."""
    wanted, identity = made.manifest, made.work / IDENTITY
    if writer and made.work.exists() and (not resumable or _is_of_a_mistake(made.work, wanted)):
        made.work.rmtree()
    if identity.exists():
        _refuse_if_different(made.work, _begun(identity), wanted)
        made.resumed = True
        logging.info("%s goes on where it was interrupted", made.out)
    elif writer:
        made.work.mkdir(parents=True, exist_ok=True)
        fields = {"seconds": 0.0, "manifest": dataclasses.asdict(wanted)}
        write_atomic(identity, json.dumps(fields, indent=2))
    if writer:
        write_atomic(made.work / OPERATIVE_CONFIG, gin.operative_config_str())


def ancestry(directory: epath.PathLike) -> dict[str, Manifest]:
    """The lineage of an artefact: its own manifest and those of all it was made from, by path.

    Raises:
      UserError: an ancestor is missing, or is no longer the one that was read. Files from
        outside are checked and not listed.
    """
    found: dict[str, Manifest] = {}

    def follow(path: epath.Path, expected: str | None) -> None:
        key = os.path.normpath(os.fspath(path)) if "://" not in os.fspath(path) else str(path)
        if key in found:
            return
        hash_now = input_hash(path)
        if expected is not None and hash_now != expected:
            raise UserError(
                f"{path} was made anew since it was used: its hash is {hash_now}, "
                f"and {expected} was read"
            )
        if not path.is_dir():
            return
        manifest = found[key] = read_manifest(path)
        for entry in manifest.inputs.values():
            follow(input_path(path, entry), entry["hash"])

    follow(epath.Path(directory), None)
    return found


def input_path(directory: epath.PathLike, entry: Mapping[str, str]) -> epath.Path:
    """Where an input of the artefact at `directory` lies, by its entry in `Manifest.inputs`."""
    target = epath.Path(entry["path"])
    inside = not (target.is_absolute() or "://" in entry["path"])
    return epath.Path(directory) / target if inside else target


def _relative(path: epath.Path, start: epath.Path) -> str:
    """`path` as seen from `start`, so that a run can be moved as a whole."""
    if "://" in os.fspath(path) or "://" in os.fspath(start):
        return os.fspath(path)
    return os.path.relpath(os.path.abspath(path), os.path.abspath(start))


def _strays(directory: epath.Path) -> list[epath.Path]:
    """Entries of a directory that are neither artefacts nor on the way to being one.

    A scope may stand inside another (`rows/real` inside `rows`), so folders are looked into.
    """
    strays = []
    for entry in directory.iterdir():
        if not entry.is_dir():
            strays.append(entry)
        elif not (is_finished(entry) or (entry / IDENTITY).exists()):
            strays += _strays(entry)
    return strays


def _has_only_begun(work: epath.Path) -> bool:
    """Whether an attempt ended before it wrote anything, as one with a mistake in it does."""
    return all(path.name in (IDENTITY, OPERATIVE_CONFIG) for path in work.iterdir())


def _is_of_a_mistake(work: epath.Path, wanted: Manifest) -> bool:
    """Whether an attempt with another configuration ended before it wrote anything.

    One with the same may be another process that has only begun.
    """
    if not _has_only_begun(work) or not (work / IDENTITY).exists():
        return False
    return _begun(work / IDENTITY).identity != wanted.identity


def _begun(identity: epath.Path) -> Manifest:
    """What an attempt that has not ended wrote down when it began.

    Raises:
      UserError: the file is damaged.
    """
    try:
        return Manifest(**json.loads(identity.read_text())["manifest"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{identity} is damaged ({type(error).__name__}): put it back, or delete "
            f"{identity.parent}, which then is made anew"
        ) from error


def _refuse_if_different(where: epath.Path, found: Manifest, wanted: Manifest) -> None:
    if found.identity == wanted.identity:
        return
    reasons = []
    for key in sorted({*found.config, *wanted.config}):
        old, new = found.config.get(key), wanted.config.get(key)
        if old != new:
            reasons.append(_difference(key, old, new))
    for role in sorted({*found.inputs, *wanted.inputs}):
        old_hash = found.inputs.get(role, {}).get("hash")
        new_hash = wanted.inputs.get(role, {}).get("hash")
        if old_hash != new_hash:
            reasons.append(f"input {role} was {old_hash}, now {new_hash}")
    if found.stage != wanted.stage:
        reasons.append(f"stage was {found.stage}, now {wanted.stage}")
    if found.code != wanted.code:
        reasons.append(f"the code has changed ({found.code}, now {wanted.code})")
    raise UserError(
        f"{where} was made by another configuration (it is {found.identity}, asked for is "
        f"{wanted.identity}): {'; '.join(reasons)}. Choose another --run_dir, or delete it"
    )


def _difference(key: str, old: Any, new: Any) -> str:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        inner = [
            _difference(f"{key}.{name}", old.get(name), new.get(name))
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        return "; ".join(inner)
    return f"{key} was {old!r}, now {new!r}"
