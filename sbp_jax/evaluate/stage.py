"""The stage `sbp evaluate`: held-out loss of a checkpoint, in nats per token and bits per byte."""

from __future__ import annotations

import json
import math
from typing import Any

import gin
import jax
from absl import logging

from sbp_jax import artifacts
from sbp_jax.checkpoints import load_parameters, model_config
from sbp_jax.data import loader
from sbp_jax.data.rows import Row, RowSource, open_rows
from sbp_jax.parallel import processes
from sbp_jax.parallel.mesh import MeshConfig, make_layout
from sbp_jax.progress import progress
from sbp_jax.settings import configurable
from sbp_jax.train.step import make_evaluation_step, parameter_shardings

SCORES = "scores.json"


@configurable
def evaluate(
    run: artifacts.Run,
    *,
    checkpoint: str = gin.REQUIRED,
    rows: str = gin.REQUIRED,
    step: int | str = "last",
    batch_size: int = 16,
    mesh: MeshConfig | None = None,
) -> None:
    """Takes the loss of every held-out token once and leaves `scores.json`.

    Args:
      run: names the artefact.
      checkpoint: train artefact.
      rows: held-out rows, artefact of `sbp cache`.
      step: which checkpoint: `last`, `best` by dev loss, or a step.
      batch_size: rows at a time; the scores do not depend on it.
      mesh: how parameters and batch are laid over the devices.
    """
    paths = {"checkpoint": run.path(checkpoint), "rows": run.path(rows)}
    layout = make_layout(mesh or MeshConfig())
    loader.check_batch(batch_size, layout.batch_shards)
    data = open_rows(paths["rows"])
    model = model_config(paths["checkpoint"])
    loader.check_model(next(iter(data.sources.values())), model.vocab_size)
    stage = artifacts.begin(
        run,
        "evaluate",
        config={"step": step},
        inputs=paths,
        code=("sbp_jax.evaluate", "sbp_jax.model", "sbp_jax.train.loss", "sbp_jax.data.rows"),
        writer=processes.is_writer(),
    )
    if stage.finished:
        return
    shardings = parameter_shardings(model, layout)
    parameters, info = load_parameters(paths["checkpoint"], None, step, shardings)
    evaluation_step = make_evaluation_step(model, layout)
    batch_sharding = layout.sharding("batch")
    slots = loader.local_slots(batch_sharding, batch_size)

    def sums(source: RowSource) -> tuple[float, float]:
        total = weight = 0.0
        batches = loader.in_order(source, batch_size)
        count = math.ceil(source.rows / batch_size)
        for batch in progress(batches, desc=source.name, unit=" batches", total=count):
            shape = batch.inputs.shape
            placed = Row(
                *(
                    jax.make_array_from_process_local_data(batch_sharding, x[slots], shape)
                    for x in batch
                )
            )
            one = evaluation_step(parameters, placed)
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
    scores |= {"checkpoint_step": info.step, "checkpoint": info.hash}
    if processes.is_writer():
        artifacts.write_atomic(stage.work / SCORES, json.dumps(scores, indent=2))
        stage.commit(scores)
    logging.info(
        "%s: %.4f nats per token, %.4f bits per byte",
        run.scope,
        scores["loss"],
        scores["bits_per_byte"],
    )


def _scores(total: float, weight: float, sources: list[RowSource]) -> dict[str, Any]:
    """Scores of some sources together: `total` nats over `weight` tokens."""
    size = sum(source.bytes for source in sources)
    return {
        "loss": total / weight,
        "bits_per_byte": total / (size * math.log(2)),
        "tokens": round(weight),
        "bytes": size,
        "documents": sum(source.documents for source in sources),
    }
