"""Stage `report`: one self-contained HTML page about a run, and its figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping

import gin
from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import UserError
from sbp_jax.settings import configurable

PAGE = "report.html"
SUMMARY = "summary.json"
EXAMPLES = 10
ARM_PARTS = ("train", "scores")
CODE = ("sbp_jax.report", "sbp_jax.synthesize.corpus", "sbp_jax.data.documents")


@configurable
def report(
    run: artifacts.Run,
    *,
    arms: Mapping[str, Mapping[str, str]] = gin.REQUIRED,
    pairs: str = "pairs",
    synthetic: str = "synthetic",
    documents: str = "rows/real",
    conditioning: str = "conditioning",
) -> None:
    """Writes `report.html` and `summary.json`.

    Args:
      run: where to write, and where the artefacts lie.
      arms: for each arm its artefacts: `{"sbp": {"train": "joint", "scores": "evaluate/sbp"}}`.
        The headline compares the arms `repetition`, `sbp` and `oracle`; others are shown beside.
        An arm of which the run has neither artefact is left out.
      pairs: artefact of `sbp pair`; its part of the page is left out where there is none.
      synthetic: artefact of `sbp synthesize`, likewise.
      documents: artefact of `sbp cache` with the seed documents, likewise.
      conditioning: artefact of `sbp conditioning`, likewise.

    Raises:
      UserError: there is no arm, one is incomplete, or an artefact is not what its stage writes.
    """
    # Imported here: the command loads this module for every stage, and jinja2 only this one needs.
    from sbp_jax.report import examples, page, results, verdict

    parts = _arm_paths(run, arms)
    optional = {
        "pairs": pairs,
        "synthetic": synthetic,
        "documents": documents,
        "conditioning": conditioning,
    }
    found = {role: run.path(name) for role, name in optional.items() if name}
    for role in [role for role, path in found.items() if not artifacts.is_finished(path)]:
        logging.info("no %s at %s: the report leaves them out", role, found.pop(role))
    template = artifacts.digest([path.read_text() for path in page.template_files()])
    inputs = {
        **{f"{arm}/{part}": path for arm, paths in parts.items() for part, path in paths.items()},
        **found,
    }
    stage = artifacts.begin(
        run,
        "report",
        config={"arms": list(parts), "examples": EXAMPLES, "template": template},
        inputs=inputs,
        code=CODE,
    )
    if not stage.finished:
        measured = results.Results(
            arms=tuple(results.read_arm(arm, **paths) for arm, paths in parts.items()),
            lineage=results.read_lineage(run.directory, inputs.values()),
            pairs=results.read_pairs(found["pairs"]) if "pairs" in found else None,
            conditioning=(
                results.read_conditioning(found["conditioning"]) if "conditioning" in found else ()
            ),
        )
        written = None
        if "synthetic" in found:
            written = examples.read_synthetic(found["synthetic"], found.get("documents"), EXAMPLES)
        text = page.render(measured, written, name=run.directory.name)
        artifacts.write_atomic(stage.work / PAGE, text)
        summary = json.dumps(measured.summary(), indent=2, allow_nan=False)
        artifacts.write_atomic(stage.work / SUMMARY, summary)
        logging.info("%s", verdict.verdict(measured).title)
        stage.commit(
            {"arms": len(measured.arms), "examples": len(written.examples if written else ())}
        )
    logging.info("report: %s", run.out / PAGE)


def _arm_paths(
    run: artifacts.Run, arms: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, epath.Path]]:
    example = '{"repetition": {"train": "pretrain", "scores": "evaluate/repetition"}}'
    if not arms:
        raise UserError(f"report.arms is {arms!r}, expected at least one arm, e.g. {example}")
    for arm, paths in arms.items():
        if sorted(paths) != sorted(ARM_PARTS):
            raise UserError(
                f"report.arms: {arm!r} has {paths!r}, expected its artefacts `train` and `scores`, "
                f"e.g. {example}"
            )
    found = {}
    for arm, names in arms.items():
        paths = {part: run.path(names[part]) for part in ARM_PARTS}
        if any(artifacts.is_finished(path) for path in paths.values()):
            found[arm] = paths  # if one of them is missing, the stage will say which
        else:
            logging.warning("this run has no arm %s: the report leaves it out", arm)
    if not found:
        raise UserError(
            f"{run.directory} holds none of the arms {', '.join(arms)} that report.arms names: "
            "train and evaluate one first"
        )
    return found
