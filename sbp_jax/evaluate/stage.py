"""The stage `sbp evaluate`: held-out loss of a checkpoint, and its scores in the harness' tasks.

The loss is in nats per token and bits per byte, over all held-out rows and by source. Tasks are
those of lm-evaluation-harness, and run where they are asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import gin
from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.checkpoints import load_parameters, model_config
from sbp_jax.data import loader, vocabularies
from sbp_jax.data.rows import RowsArtefact, RowSource, open_rows
from sbp_jax.errors import UserError
from sbp_jax.evaluate import harness
from sbp_jax.evaluate.piece_losses import make_place
from sbp_jax.model.decoder import DecoderConfig
from sbp_jax.parallel import processes
from sbp_jax.parallel.mesh import Layout, MeshConfig, make_layout
from sbp_jax.progress import progress
from sbp_jax.settings import configurable
from sbp_jax.train.step import make_evaluation_step, parameter_shardings

SCORES = "scores.json"


@configurable
def evaluate(
    run: artifacts.Run,
    *,
    checkpoint: str = gin.REQUIRED,
    rows: str | None = gin.REQUIRED,
    step: int | str = "last",
    batch_size: int = 16,
    mesh: MeshConfig | None = None,
    tasks: str | Sequence[str] = (),
    include_path: str | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    task_length: int | None = None,
    vocab: str = "vocab",
) -> None:
    """Takes the loss of every held-out token once, asks tasks, and leaves `scores.json`.

    Args:
      run: names the artefact.
      checkpoint: train artefact.
      rows: held-out rows, artefact of `sbp cache`; None where tasks alone are asked.
      step: which checkpoint: `last`, `best` by dev loss, or a step.
      batch_size: rows at a time; the scores do not depend on it.
      mesh: how parameters and batch are laid over the devices.
      tasks: of lm-evaluation-harness (the extra `eval`), such as `arc_easy` or `arc_*`, with commas
        between them or as a list.
      include_path: folder of YAML files of further tasks, which the harness reads as its own.
      num_fewshot: examples before each question; None for as many as each task has.
      limit: so many questions of each task, its first; None for all.
      task_length: the most tokens of a question with its answer; None for the length of the rows.
      vocab: the model's vocabulary, for tasks.

    Raises:
      UserError: an argument is out of range, a task is unknown or cannot be loaded, the harness is
        not installed, or rows or vocabulary are not the model's.
    """
    names = [name.strip() for name in (tasks.split(",") if isinstance(tasks, str) else tasks)]
    if "" in names:
        raise UserError(f"evaluate.tasks = {tasks!r}: expected names, with commas between them")
    names = list(dict.fromkeys(names))
    _check(names, rows, num_fewshot=num_fewshot, limit=limit, task_length=task_length)
    paths = {"checkpoint": run.path(checkpoint)}
    layout = make_layout(mesh or MeshConfig())
    loader.check_batch(batch_size, layout.batch_shards)
    model = model_config(paths["checkpoint"])
    data = None
    if rows is not None:
        paths["rows"] = run.path(rows)
        data = open_rows(paths["rows"])
        loader.check_model(next(iter(data.sources.values())), model.vocab_size)
    config: dict[str, Any] = {"step": step}
    code = ["sbp_jax.evaluate", "sbp_jax.model", "sbp_jax.train.loss", "sbp_jax.data.rows"]
    if names:
        paths["vocab"] = run.path(vocab)
        vocabulary = _vocabulary(paths["vocab"], model, paths["checkpoint"], data)
        config |= {"tasks": names, "task_files": harness.file_hashes(include_path)}
        config |= {"num_fewshot": num_fewshot, "limit": limit, "harness": harness.version()}
        length = config["task_length"] = task_length or (data.length if data else 0)
        manager, found_names = harness.find(names, include_path)
        code += ["sbp_jax.synthesize", "sbp_jax.data.vocabularies"]
    stage = artifacts.begin(
        run,
        "evaluate",
        config=config,
        inputs=paths,
        code=code,
        writer=processes.is_writer(),
    )
    if stage.finished:
        return
    asked = harness.load(manager, found_names) if names else []  # what fails early costs little
    shardings = parameter_shardings(model, layout)
    parameters, info = load_parameters(paths["checkpoint"], None, step, shardings)
    scores: dict[str, Any] = {}
    if data is not None:
        scores |= _heldout(data, parameters, model, layout, batch_size)
    scores |= {"checkpoint_step": info.step, "checkpoint": info.hash}
    if names:
        from sbp_jax.evaluate.harness_model import HarnessModel

        harness_model = HarnessModel(
            model,
            parameters,
            vocabulary,
            layout,
            length=length,
            batch_size=batch_size,
            bos_first=artifacts.read_manifest(paths["checkpoint"]).stage == "train",
            replica=lambda: load_parameters(paths["checkpoint"], None, info.step)[0],
        )
        scores["tasks"] = harness.scores(
            manager, asked, harness_model, num_fewshot=num_fewshot, limit=limit
        )
    if processes.is_writer():
        artifacts.write_atomic(stage.work / SCORES, json.dumps(scores, indent=2))
        stage.commit(scores)
    _log(run.scope, scores)


def _check(names: Sequence[str], rows: str | None, **numbers: int | None) -> None:
    """Refuses numbers out of range, and what asks for nothing.

    Raises:
      UserError: it is so.
    """
    for name, number in numbers.items():
        least = 0 if name == "num_fewshot" else 1
        if number is not None and number < least:
            raise UserError(f"evaluate.{name} = {number}: expected at least {least}")
    if rows is None and not names:
        raise UserError(
            "evaluate.rows = None and evaluate.tasks = (): name held-out rows, tasks, or both"
        )
    if rows is None and numbers["task_length"] is None:
        raise UserError(
            "evaluate.rows = None: set evaluate.task_length, which else is the length of the rows"
        )


def _vocabulary(
    path: epath.Path, model: DecoderConfig, checkpoint: epath.Path, data: RowsArtefact | None
) -> vocabularies.Vocabulary:
    """The vocabulary for tasks.

    Raises:
      UserError: it is another than the model's, as far as can be told.
    """
    vocabulary = vocabularies.load(path)
    if data is not None and data.vocabulary not in ("", artifacts.input_hash(path)):
        raise UserError(
            f"{path} is not the vocabulary that {data.directory} was cached with: set "
            "evaluate.vocab to that"
        )
    if vocabulary.size > model.vocab_size:
        raise UserError(
            f"{path} has {vocabulary.size} tokens, the model of {checkpoint} {model.vocab_size}: "
            "set evaluate.vocab to the vocabulary that it was trained with"
        )
    return vocabulary


def _heldout(
    data: RowsArtefact, parameters: Any, model: DecoderConfig, layout: Layout, batch_size: int
) -> dict[str, Any]:
    """The scores of all rows, and under `sources` those of each source."""
    evaluation_step = make_evaluation_step(model, layout)
    place = make_place(layout, batch_size)

    def sums(source: RowSource) -> tuple[float, float]:
        total = weight = 0.0
        batches = loader.in_order(source, batch_size)
        count = math.ceil(source.rows / batch_size)
        for batch in progress(batches, desc=source.name, unit=" batches", total=count):
            one = evaluation_step(parameters, place(batch))
            total, weight = total + float(one.loss), weight + float(one.weight)
        return total, weight

    found = {name: (source, *sums(source)) for name, source in data.sources.items()}
    scores = _scores(
        sum(total for _, total, _ in found.values()),
        sum(weight for _, _, weight in found.values()),
        list(data.sources.values()),
    )
    scores["sources"] = {
        name: _scores(total, weight, [source]) for name, (source, total, weight) in found.items()
    }
    return scores


def _log(scope: str, scores: Mapping[str, Any]) -> None:
    """A line for all rows, one for each of several sources, and one for each task."""
    losses = {scope: scores} if "loss" in scores else {}
    if len(scores.get("sources", {})) > 1:
        losses |= {f"{scope}, {name}": found for name, found in scores["sources"].items()}
    for name, found in losses.items():
        logging.info(
            "%s: %.4f nats per token, %.4f bits per byte",
            name,
            found["loss"],
            found["bits_per_byte"],
        )
    for name, found in scores.get("tasks", {}).items():
        told = [
            f"{metric} {value:.6g}" + (f" ± {error:.2g}" if error is not None else "")
            for metric, value in found["metrics"].items()
            if value is not None and "_stderr" not in metric
            for error in [found["metrics"].get(harness.error_of(metric))]
        ]
        logging.info("%s, %s: %s", scope, name, ", ".join(told))


def _scores(total: float, weight: float, sources: list[RowSource]) -> dict[str, Any]:
    """Scores of some sources together: `total` nats over `weight` tokens."""
    size = sum(source.bytes for source in sources)
    return {
        "loss": total / weight,
        "bits_per_byte": total / (size * math.log(2)),
        "tokens": round(weight),
        "bytes": size,
        "documents": (documents := sum(source.documents for source in sources)),
        "nats_per_document": total / documents,
    }
