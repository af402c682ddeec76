"""The command `sbp results`: figures of experiments in one JSON file, and the pages made of it.

Results of experiments are taken into `docs/results.json`, an entry each. From that file alone come
`results.md`, `results.html` and `figures/*.svg` beside it, the same to the last byte each time, so
that what is committed can be checked against what it says.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import UserError
from sbp_jax.experiment import shape
from sbp_jax.experiment.provenance import FILE as PROVENANCE

INTO = "docs/results.json"
FIGURES = "figures"
RESULT = "result.json"
CURVE_POINTS = 60  # as many as a figure can show
MOST_BYTES = 1_000_000  # of the JSON; curves are thinned until it fits
FEWEST_POINTS = 5
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def results(
    artefacts: Sequence[str] = (),
    into: str | None = None,
    name: str | None = None,
    machine: str | None = None,
    *,
    replace: bool = False,
) -> None:
    """Takes in results of experiments, and writes the pages and figures anew.

    Args:
      artefacts: folders of finished experiments; with none, only the pages are written.
      into: the JSON file; None for `INTO`. The pages lie beside it.
      name: of the experiment; None for what its artefact says.
      machine: likewise, that it ran on.
      replace: whether an entry of another configuration gives way to one of the same name.

    Raises:
      UserError: an artefact or the file is missing or damaged, or would replace another.
    """
    # Imported here: the command loads this module for every stage, and jinja2 only this one needs.
    from sbp_jax.experiment import page

    path = epath.Path(INTO if into is None else into)
    if path.suffix != ".json":
        raise UserError(f"--into={path}: expected a file that ends in .json")
    if len(artefacts) != 1 and (name or machine):
        flag = "--name" if name else "--machine"
        raise UserError(f"{flag} is of one experiment: give one artefact")
    if artefacts:
        experiments = read(path) if path.exists() else {}
        for folder in artefacts:
            _take_in(experiments, *collect(folder, name, machine), path, replace=replace)
        path.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_atomic(path, to_json(experiments))
    experiments = read(path)
    pages = page.render(experiments, stem=path.stem)
    (path.parent / FIGURES).mkdir(parents=True, exist_ok=True)
    for place, text in pages.items():
        artifacts.write_atomic(path.parent / place, text)
    for figure in sorted((path.parent / FIGURES).glob("*.svg")):
        if f"{FIGURES}/{figure.name}" not in pages and page.MADE_BY in figure.read_text():
            logging.info("%s is of no experiment any more, and is removed", figure)
            figure.unlink()
    logging.info("%d experiment(s): %s", len(experiments), path.parent / f"{path.stem}.html")


def read(path: epath.PathLike) -> dict[str, dict[str, Any]]:
    """The experiments of a file, by name.

    Raises:
      UserError: it is missing or damaged.
    """
    path = epath.Path(path)
    remedy = "remove that entry, and take its artefact in again with `sbp results ARTEFACT`"
    content = _json(path, "take in an experiment with `sbp results ARTEFACT`")
    shape.check(content, {"experiments": shape.Each({})}, file=path, key="", remedy=remedy)
    for name, entry in content["experiments"].items():
        key = f"experiments.{name}"
        if not NAME.fullmatch(name):
            raise UserError(f"{path}: {key}: expected a name of letters, digits, _, . and -")
        shape.check(entry, shape.ENTRY, file=path, key=key, remedy=remedy)
        shape.check_seeds(entry, file=path, key=key, remedy=remedy)
        _check_summary(entry, file=path, key=key, remedy=remedy)
    return content["experiments"]


def collect(
    folder: epath.PathLike, name: str | None = None, machine: str | None = None
) -> tuple[str, dict[str, Any]]:
    """What a finished experiment left, as an entry of the file.

    Args:
      folder: the artefact.
      name: instead of the one that the artefact says.
      machine: likewise.

    Returns:
      the experiment's name and its entry.

    Raises:
      UserError: the folder holds no finished experiment, or what it holds is damaged.
    """
    folder = epath.Path(folder)
    manifest = artifacts.read_manifest(folder)
    if manifest.stage != "experiment":
        raise UserError(
            f"{folder} was made by `sbp {manifest.stage}`: expected an artefact of `sbp experiment`"
        )
    again = f"delete {folder} and run its experiment again"
    result = _json(folder / RESULT, again)
    shape.check(result, shape.RESULT, file=folder / RESULT, key="", remedy=again)
    shape.check_seeds(result, file=folder / RESULT, key="", remedy=again)
    _check_summary(result, file=folder / RESULT, key="", remedy=again)
    if result["config_hash"] != manifest.identity:
        raise UserError(
            f"{folder / RESULT}: config_hash is {result['config_hash']!r}, expected "
            f"{manifest.identity!r}, as the manifest has it: {again}"
        )
    told = {"name": name, "machine": machine, "command": None}
    if (folder / PROVENANCE).exists():
        known = _json(folder / PROVENANCE, again)
        fields = dict.fromkeys(told, str)
        shape.check(known, fields, file=folder / PROVENANCE, key="", remedy=again)
        told = {field: told[field] or known[field] for field in told}
    elif not (name and machine):
        raise UserError(
            f"{folder / PROVENANCE} is missing, which says where the experiment ran: say it with "
            "--name=EXPERIMENT --machine='CPU OR GPU, CORES, MEMORY'"
        )
    if not NAME.fullmatch(str(told["name"])):
        raise UserError(f"--name={told['name']}: expected letters, digits, _, . and -")
    for arm in (*result["arms"].values(), *result["controls"].values()):
        arm["curves"] = [thin(curve, CURVE_POINTS) for curve in arm["curves"]]
    entry = {
        **result,
        "seconds": manifest.seconds,
        "machine": told["machine"],
        "command": told["command"] or f"sbp experiment --gin_file=experiments/{told['name']}.gin",
        "config": dict(manifest.config),
    }
    return str(told["name"]), entry


def to_json(experiments: Mapping[str, Any]) -> str:
    """The file's text, with curves thinned until it is shorter than `MOST_BYTES`.

    Raises:
      UserError: it is longer without them.
    """
    points = CURVE_POINTS
    while True:
        content = {"experiments": experiments}
        text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
        if len(text) <= MOST_BYTES:
            return text
        points //= 2
        if points < FEWEST_POINTS:
            raise UserError(
                f"the results have {len(text):,} bytes, expected up to {MOST_BYTES:,}: take them "
                "into several files with --into"
            )
        logging.warning("the results have %d bytes: curves keep %d points", len(text), points)
        experiments = {name: _thinned(entry, points) for name, entry in experiments.items()}


def thin(curve: Sequence[Any], most: int) -> list[Any]:
    """At most so many points of a curve, evenly, with its first and last."""
    if len(curve) <= most:
        return list(curve)
    return [curve[round(n * (len(curve) - 1) / (most - 1))] for n in range(most)]


def _thinned(entry: Mapping[str, Any], points: int) -> dict[str, Any]:
    found = dict(entry)
    for group in ("arms", "controls"):
        found[group] = {
            name: {**arm, "curves": [thin(curve, points) for curve in arm["curves"]]}
            for name, arm in entry[group].items()
        }
    return found


def _check_summary(
    entry: Mapping[str, Any], *, file: epath.PathLike, key: str, remedy: str
) -> None:
    """Means, leads and shares must be those of the losses by seed, from which they are taken.

    Raises:
      UserError: one is not.
    """
    from sbp_jax.experiment import statistics  # SciPy, which no other stage needs

    arms = {**entry["arms"], **entry["controls"]}
    own = statistics.summary(arms, list(entry["controls"]))
    start = f"{key}." if key else ""
    for place, expected in _numbers(own):
        found: Any = entry
        for part in place:
            found = found.get(part) if isinstance(found, Mapping) else found[int(part)]
        same = found == expected
        if not same and found is not None and expected is not None:
            same = math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-9)
        if not same:
            raise UserError(
                f"{file}: {start}{'.'.join(place)} is {found}, expected {expected}, which the "
                f"losses by seed give: {remedy}"
            )


def _numbers(tree: Any, *place: str) -> Iterator[tuple[tuple[str, ...], float | None]]:
    """Each number of summaries and its place in them."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _numbers(value, *place, name)
    elif tree is None or isinstance(tree, float):
        yield place, tree


def _take_in(
    experiments: dict[str, Any],
    name: str,
    entry: dict[str, Any],
    path: epath.Path,
    *,
    replace: bool,
) -> None:
    old = experiments.get(name)
    if old is None:
        logging.info("%s: %s (%s) is added", path, name, entry["config_hash"])
    elif old["config_hash"] == entry["config_hash"]:
        logging.info("%s: %s (%s) is taken in again", path, name, entry["config_hash"])
    else:
        hashes = f"with config {old['config_hash']}", f"one made with {entry['config_hash']}"
        if not replace:
            raise UserError(
                f"{path}: {name} was made {hashes[0]}, and would be lost to {hashes[1]}: give "
                "--replace, or another --name or --into"
            )
        logging.warning("%s: %s, made %s, is replaced by %s", path, name, *hashes)
    experiments[name] = entry


def _json(path: epath.Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text(), parse_constant=_no_number)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: {remedy}") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as JSON ({reason}): {remedy}") from error


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")
