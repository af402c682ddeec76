"""What a run measured: arms, pairs and lineage, read from its artefacts into dataclasses.

The report's page and `summary.json` both take their figures from here, so they cannot differ.
Whatever is read is checked first; what does not fit raises `UserError` with the file's name.
"""

from __future__ import annotations

import dataclasses
import graphlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import UserError

# The arms that the headline compares; a run may have others beside them.
REPETITION = "repetition"
SBP = "sbp"
ORACLE = "oracle"

# Arms count as trained alike when their training tokens agree to this share.
EQUAL_TOKENS = 0.01


@dataclasses.dataclass(frozen=True)
class Point:
    """A loss (nats per token) after `tokens` positions of training."""

    tokens: int
    loss: float


@dataclasses.dataclass(frozen=True)
class Source:
    """What an arm read of one task.

    Attributes:
      name: the task.
      rows: rows read, repeats counted.
      unique_rows: different rows among them.
      unique_tokens: tokens in those.
      passes: rows read over the rows that there are.
      synthetic: whether `sbp synthesize` wrote it.
    """

    name: str
    rows: int
    unique_rows: int
    unique_tokens: int
    passes: float
    synthetic: bool

    @property
    def tokens(self) -> int:
        """Tokens read, repeats counted; by the rows' mean where the last pass is not whole."""
        return round(self.unique_tokens * self.rows / max(self.unique_rows, 1))


@dataclasses.dataclass(frozen=True)
class Arm:
    """One trained model and its held-out scores.

    Attributes:
      name: the arm, e.g. `sbp`.
      heldout_loss: nats per token.
      heldout_bits_per_byte: bits per byte of text.
      heldout_tokens: tokens that the score is the mean of.
      heldout_documents: documents that the score is the mean of.
      steps: training steps.
      batch_size: rows a step.
      length: positions a row.
      parameters: number of trained values.
      train_tokens: positions trained on, padding counted.
      loss_tokens: those of them that carry loss.
      unique_tokens: different real tokens among them.
      synthetic_tokens: synthetic tokens among them.
      scored_step: the step whose parameters were scored; None where the scores do not say.
      sources: one entry per task.
      train_curve: training loss as logged, by tokens.
      dev_curve: development loss, by tokens.
      config: configuration of training and scoring, flat: `train.model.layers`, ….
    """

    name: str
    heldout_loss: float
    heldout_bits_per_byte: float
    heldout_tokens: int
    heldout_documents: int
    steps: int
    batch_size: int
    length: int
    parameters: int
    train_tokens: int
    loss_tokens: int
    unique_tokens: int
    synthetic_tokens: int
    scored_step: int | None
    sources: tuple[Source, ...]
    train_curve: tuple[Point, ...]
    dev_curve: tuple[Point, ...]
    config: Mapping[str, Any]

    @property
    def best_dev(self) -> Point | None:
        """Where the development loss was lowest."""
        return min(self.dev_curve, key=lambda point: point.loss, default=None)

    def step(self, point: Point) -> int:
        """The step of a point of the curves."""
        return point.tokens // (self.batch_size * self.length)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Statistics of the pairs: which neighbours were found and which of them were kept.

    Attributes:
      alpha: the similarity that a pair must exceed.
      figures: documents, pairs, pairs per document, … by name.
      removed: candidates that each filter took, in the order in which they were applied.
      edges: similarities between which the histograms count, one more than those have counts.
      neighbours: neighbours by similarity, before any filter but without each document itself.
      pairs: pairs by similarity, both directions counted.
    """

    alpha: float
    figures: Mapping[str, float]
    removed: Mapping[str, int]
    edges: tuple[float, ...]
    neighbours: tuple[int, ...]
    pairs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What d1 is worth to the synthesizer, on pairs of one band of similarity.

    Attributes:
      low: the least similarity among them; None for all pairs together.
      high: the largest; likewise.
      pairs: how many.
      tokens: of their d2.
      related: loss of d2 after its d1, nats per token, as the next two.
      random: after another document.
      alone: without one.
      gain: `random` less `related`.
      gain_error: its standard error, None where there is only one d2.
    """

    low: float | None
    high: float | None
    pairs: int
    tokens: int
    related: float
    random: float
    alone: float
    gain: float
    gain_error: float | None


@dataclasses.dataclass(frozen=True)
class Artefact:
    """One artefact of the lineage.

    Attributes:
      name: its place in the run (`rows/real`), or its whole path where it lies elsewhere.
      stage: the command that made it.
      identity: hash of stage, configuration, inputs and code.
      hash: hash of identity and counts.
      inputs: names of the artefacts that it was made from, by role.
      seconds: wall time, all attempts together.
      config: the operative gin configuration it was made with.
    """

    name: str
    stage: str
    identity: str
    hash: str
    inputs: Mapping[str, str]
    seconds: float
    config: str


@dataclasses.dataclass(frozen=True)
class Results:
    """All that the report says of a run, but for the documents it shows."""

    arms: tuple[Arm, ...]
    lineage: tuple[Artefact, ...] = ()
    pairs: Pairs | None = None
    conditioning: tuple[Conditioning, ...] = ()

    def arm(self, name: str) -> Arm | None:
        """The arm of that name, where the run has it."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def gain(self, name: str) -> float | None:
        """By how much an arm's held-out loss is below repetition's, in nats per token."""
        arm, baseline = self.arm(name), self.arm(REPETITION)
        if arm is None or baseline is None:
            return None
        return baseline.heldout_loss - arm.heldout_loss

    @property
    def oracle_gain_recovered(self) -> float | None:
        """SBP's gain over the oracle's; None without all three arms or a gain of the oracle."""
        gain, possible = self.gain(SBP), self.gain(ORACLE)
        if gain is None or possible is None or possible <= 0:
            return None
        return gain / possible

    @property
    def equal_tokens(self) -> bool:
        """Whether all arms were trained on as many tokens, to `EQUAL_TOKENS`."""
        tokens = [arm.train_tokens for arm in self.arms]
        return max(tokens) - min(tokens) <= EQUAL_TOKENS * max(tokens)

    @property
    def same_heldout(self) -> bool:
        """Whether all arms were scored on as many documents and tokens."""
        return len({(arm.heldout_documents, arm.heldout_tokens) for arm in self.arms}) == 1

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time by artefact, in the order in which they were made."""
        return {artefact.name: artefact.seconds for artefact in self.lineage}

    @property
    def differing_settings(self) -> dict[str, dict[str, Any]]:
        """Settings of training and scoring that are not the same in all arms: to arm to value."""
        settings = sorted({key for arm in self.arms for key in arm.config})
        by_arm = {key: {arm.name: arm.config.get(key) for arm in self.arms} for key in settings}
        return {
            key: values
            for key, values in by_arm.items()
            if len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1
        }

    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`: the page's figures for other programs."""
        return {
            "arms": {
                arm.name: {
                    "heldout_loss": arm.heldout_loss,
                    "heldout_bits_per_byte": arm.heldout_bits_per_byte,
                    "train_tokens": arm.train_tokens,
                    "unique_tokens": arm.unique_tokens,
                    "synthetic_tokens": arm.synthetic_tokens,
                }
                for arm in self.arms
            },
            "oracle_gain_recovered": self.oracle_gain_recovered,
            "seconds": self.seconds,
        }


def read_arm(name: str, train: epath.Path, scores: epath.Path) -> Arm:
    """Reads one arm from the artefacts of `sbp train` and `sbp evaluate`.

    Raises:
      UserError: one of them is missing, or does not hold what those stages write.
    """
    manifest = artifacts.read_manifest(train)
    where = train / artifacts.MANIFEST
    counts = manifest.counts
    scores_file = scores / "scores.json"
    score = _read_object(scores_file)
    train_curve, dev_curve = _read_curves(train / "metrics.jsonl")
    settings = {"train": manifest.config, "evaluate": artifacts.read_manifest(scores).config}
    return Arm(
        name=name,
        heldout_loss=_number(score, "loss", scores_file),
        heldout_bits_per_byte=_number(score, "bits_per_byte", scores_file),
        heldout_tokens=_count(score, "tokens", scores_file),
        heldout_documents=_count(score, "documents", scores_file),
        steps=_count(counts, "steps", where),
        batch_size=_count(counts, "batch_size", where),
        length=_count(counts, "length", where),
        parameters=_count(counts, "parameters", where),
        train_tokens=_count(counts, "train_tokens", where),
        loss_tokens=_count(counts, "loss_tokens", where),
        unique_tokens=_count(counts, "unique_tokens", where),
        synthetic_tokens=_count(counts, "synthetic_tokens", where),
        scored_step=(
            _count(score, "checkpoint_step", scores_file) if "checkpoint_step" in score else None
        ),
        sources=_read_sources(counts, where),
        train_curve=train_curve,
        dev_curve=dev_curve,
        config=_flatten(settings),
    )


def read_pairs(pairs: epath.Path) -> Pairs:
    """Reads the statistics that `sbp pair` leaves.

    Raises:
      UserError: the file is missing, or is not one that the stage writes.
    """
    where = pairs / "statistics.json"
    statistics = _read_object(where)
    histogram, removed = (_object(statistics, key, where) for key in ("histogram", "filters"))
    edges = _numbers(histogram, "edges", where)
    neighbours, kept = (_numbers(histogram, key, where) for key in ("counts", "pairs"))
    if not len(neighbours) == len(kept) == len(edges) - 1 > 0:
        raise _misfit(where, "histogram.edges", edges, "one edge more than counts and pairs")
    taken = {name: _count(removed, name, where) for name in removed}
    # Every document is its own nearest neighbour, at a similarity of 1: that is no news.
    itself = taken.pop("self_pairs", 0)
    neighbours = (*neighbours[:-1], max(neighbours[-1] - itself, 0))
    documents, seeds = _count(statistics, "documents", where), _count(statistics, "seeds", where)
    return Pairs(
        alpha=_number(statistics, "alpha", where),
        figures={
            "documents": documents,
            "documents without a pair": documents - seeds,
            "pairs": _count(statistics, "pairs", where),
            "pairs a document, mean": _number(statistics, "pairs_per_document", where),
            "pairs a document, median": _number(statistics, "median_pairs_per_document", where),
            "pairs a document, most": _count(statistics, "most_pairs_of_a_document", where),
        },
        removed={name.replace("_", " "): number for name, number in taken.items()},
        edges=edges,
        neighbours=tuple(round(count) for count in neighbours),
        pairs=tuple(round(count) for count in kept),
    )


def read_conditioning(directory: epath.Path) -> tuple[Conditioning, ...]:
    """Reads the scores that `sbp conditioning` leaves: bands, and all pairs together last.

    Raises:
      UserError: the file is missing, or is not one that the stage writes.
    """
    where = directory / "scores.json"
    scores = _read_object(where)
    bands = scores.get("bands")
    if not isinstance(bands, list) or not all(isinstance(band, dict) for band in bands):
        raise _misfit(where, "bands", bands, "a list of objects")

    def read(one: Mapping[str, Any], whole: bool) -> Conditioning:
        losses = {name: _number(one, name, where) for name in ("related", "random", "alone")}
        known = one.get("gain_error") is not None
        return Conditioning(
            low=None if whole else _number(one, "low", where),
            high=None if whole else _number(one, "high", where),
            pairs=_count(one, "pairs", where),
            tokens=_count(one, "tokens", where),
            **losses,
            gain=_number(one, "gain", where),
            gain_error=_number(one, "gain_error", where) if known else None,
        )

    return (*(read(band, False) for band in bands), read(scores, True))


def read_lineage(directory: epath.Path, inputs: Iterable[epath.Path]) -> tuple[Artefact, ...]:
    """All artefacts that the inputs go back to, each after those that it was made from.

    Args:
      directory: the run's directory; artefacts inside it are named relative to it.
      inputs: artefacts whose manifests are followed back.

    Raises:
      UserError: an ancestor is missing, damaged, or was made anew since it was used.
    """
    manifests: dict[str, artifacts.Manifest] = {}
    for path in inputs:
        manifests.update(artifacts.ancestry(path))
    parents = {
        path: {role: _resolve(path, entry["path"]) for role, entry in manifest.inputs.items()}
        for path, manifest in manifests.items()
    }
    order = graphlib.TopologicalSorter({p: sorted(roles.values()) for p, roles in parents.items()})
    lineage = []
    for path in order.static_order():
        manifest = manifests[path]
        config = epath.Path(path) / artifacts.OPERATIVE_CONFIG
        lineage.append(
            Artefact(
                name=_place(directory, path),
                stage=manifest.stage,
                identity=manifest.identity,
                hash=manifest.hash,
                inputs={role: _place(directory, p) for role, p in parents[path].items()},
                seconds=manifest.seconds,
                config=config.read_text().strip() if config.exists() else "",
            )
        )
    return tuple(lineage)


def _read_sources(counts: Mapping[str, Any], where: epath.Path) -> tuple[Source, ...]:
    sources = _object(counts, "sources", where)
    found = []
    for name in sources:
        entry = _object(sources, name, where)
        found.append(
            Source(
                name=name,
                rows=_count(entry, "rows", where),
                unique_rows=_count(entry, "unique_rows", where),
                unique_tokens=_count(entry, "tokens", where),
                passes=_number(entry, "passes", where),
                synthetic=bool(entry.get("synthetic", False)),
            )
        )
    return tuple(found)


def _read_curves(path: epath.Path) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    """Training and development loss by tokens; a step logged twice counts as last logged."""
    train: dict[int, Point] = {}
    dev: dict[int, Point] = {}
    if not path.exists():
        raise UserError(f"{path} is missing: {path.parent} is no finished artefact of sbp train")
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UserError(f"{place} is not JSON ({error}): delete it and report again") from error
        if not isinstance(entry, dict):
            raise _misfit(place, "the line", entry, "an object")
        for key, curve in (("loss", train), ("dev_loss", dev)):
            if isinstance(entry.get(key), int | float) and math.isfinite(entry[key]):
                tokens = _count(entry, "tokens", place)
                curve[_count(entry, "step", place)] = Point(tokens, float(entry[key]))
    return _by_tokens(train.values()), _by_tokens(dev.values())


def _by_tokens(points: Iterable[Point]) -> tuple[Point, ...]:
    return tuple(sorted(points, key=lambda point: point.tokens))


def _read_object(path: epath.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: delete {path.parent}, run its stage again") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}): delete {path.parent} and run its stage again"
        ) from error
    if not isinstance(value, dict):
        raise _misfit(path, "its content", value, "an object")
    return value


def _object(mapping: Mapping[str, Any], key: str, where: os.PathLike | str) -> dict[str, Any]:
    value = mapping.get(key)
    if not isinstance(value, dict):
        raise _misfit(where, key, value, "an object")
    return value


def _numbers(mapping: Mapping[str, Any], key: str, where: os.PathLike | str) -> tuple[float, ...]:
    value = mapping.get(key)
    if not isinstance(value, list) or not all(isinstance(item, int | float) for item in value):
        raise _misfit(where, key, value, "a list of numbers")
    return tuple(value)


def _number(mapping: Mapping[str, Any], key: str, where: os.PathLike | str) -> float:
    value = mapping.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _misfit(where, key, value, "a finite number")
    return float(value)


def _count(mapping: Mapping[str, Any], key: str, where: os.PathLike | str) -> int:
    value = _number(mapping, key, where)
    if value < 0 or value != int(value):
        raise _misfit(where, key, value, "a whole number, not negative")
    return int(value)


def _misfit(where: os.PathLike | str, key: str, value: Any, expected: str) -> UserError:
    return UserError(
        f"{os.fspath(where)}: {key} is {value!r}, expected {expected}: "
        "run the stage that writes it again"
    )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model": {"layers": 2}}` to `{"model.layers": 2}`, so that settings can be compared."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}." if key else prefix))
        else:
            flat[f"{prefix}{key}".rstrip(".") or "type"] = value
    return flat


def _resolve(start: str, path: str) -> str:
    """An input's path as `artifacts.ancestry` names it."""
    if "://" in path:
        return path
    if "://" in start:
        return str(epath.Path(start) / path)
    return os.path.normpath(os.path.join(start, path))


def _place(directory: epath.Path, path: str) -> str:
    root = os.fspath(directory)
    if "://" in path or "://" in root:
        return path.removeprefix(f"{root.rstrip('/')}/")
    relative = os.path.relpath(os.path.abspath(path), os.path.abspath(root))
    return path if relative.startswith(os.pardir) else relative
