"""The stage `sbp train`: pretrain, tune, joint and oracle are gin scopes of this one trainer."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import gin
import jax
import numpy as np
from absl import logging

from sbp_jax import artifacts
from sbp_jax.checkpoints import CHECKPOINTS, Checkpointer, load_parameters
from sbp_jax.data import loader
from sbp_jax.data.rows import Row, RowsArtefact, open_rows
from sbp_jax.errors import UserError
from sbp_jax.model.compute import ComputeConfig
from sbp_jax.model.decoder import DecoderConfig, parameter_count, train_flops_per_token
from sbp_jax.parallel import processes
from sbp_jax.parallel.mesh import Layout, MeshConfig, make_layout
from sbp_jax.progress import progress
from sbp_jax.settings import configurable
from sbp_jax.train.metrics import MetricsWriter, peak_flops
from sbp_jax.train.optimizer import OptimizerConfig, make_optimizer, schedule
from sbp_jax.train.step import (
    StepMetrics,
    TrainState,
    init_optimizer,
    init_state,
    make_evaluation_step,
    make_train_step,
    parameter_shardings,
)


@configurable
def train(
    run: artifacts.Run,
    *,
    rows: str = gin.REQUIRED,
    model: DecoderConfig = gin.REQUIRED,
    optimizer: OptimizerConfig = gin.REQUIRED,
    steps: int = gin.REQUIRED,
    batch_size: int = gin.REQUIRED,
    mesh: MeshConfig | None = None,
    compute: ComputeConfig | None = None,
    dropout: float = 0.0,
    z_loss: float = 0.0,
    accumulation_steps: int = 1,
    start_from: str | None = None,
    start_from_step: int | str = "last",
    dev_rows: str | None = None,
    checkpoint_every: int = 1000,
    log_every: int = 10,
    seed: int = 0,
) -> None:
    """Trains a decoder on packed rows.

    Args:
      run: names the artefact.
      rows: artefact of `sbp cache`; each of its sources gets its rate's share of all rows, and
        one that `sbp synthesize` wrote is never read twice.
      model: the decoder.
      optimizer: how it is updated.
      steps: how many.
      batch_size: B, rows a step, of all devices together.
      mesh: how state and batch are laid over the devices; by default the batch alone is.
      compute: how a step is computed, memory against time.
      dropout: share of activations dropped, of embeddings and of each residual branch.
      z_loss: weight of the squared log-normaliser in what is minimised; 1e-4 is usual.
      accumulation_steps: parts in which a batch is computed; its result does not depend on them.
      start_from: train artefact whose parameters to start from; None for random ones.
      start_from_step: which of its checkpoints: `last`, `best`, or a step.
      dev_rows: rows whose loss is taken at every checkpoint.
      checkpoint_every: steps from checkpoint to checkpoint.
      log_every: steps from metrics line to metrics line.
      seed: of initialisation, row order and dropout.
    """
    if steps < 1 or checkpoint_every < 1 or log_every < 1:
        raise UserError("train: steps, checkpoint_every and log_every must be at least 1")
    if not 0 <= dropout < 1:
        raise UserError(f"train.dropout = {dropout}: expected a share from 0 to below 1")
    inputs = {"rows": run.path(rows)}
    inputs |= {"dev_rows": run.path(dev_rows)} if dev_rows else {}
    inputs |= {"start_from": run.path(start_from)} if start_from else {}
    layout = make_layout(mesh or MeshConfig())
    loader.check_batch(batch_size, layout.batch_shards, accumulation_steps)
    data = open_rows(inputs["rows"])
    loader.check_model(data, model.vocab_size)
    dev = open_rows(inputs["dev_rows"]) if dev_rows else None
    shares = loader.plan_shares(data, steps * batch_size)
    stage = artifacts.begin(
        run,
        "train",
        # Mesh, accumulation and `compute` decide where and how a sum is taken, not what is summed.
        config={
            "model": model,
            "optimizer": optimizer,
            "steps": steps,
            "batch_size": batch_size,
            "dropout": dropout,
            "z_loss": z_loss,
            "start_from_step": start_from_step if start_from else None,
            "checkpoint_every": checkpoint_every,
            "seed": seed,
        },
        inputs=inputs,
        code=(
            "sbp_jax.train",
            "sbp_jax.model",
            "sbp_jax.parallel",
            "sbp_jax.checkpoints",
            "sbp_jax.data.loader",
            "sbp_jax.data.rows",
        ),
        resumable=True,
        writer=processes.is_writer(),
    )
    if stage.finished:
        return
    processes.wait_for_all(f"begin {run.scope}")
    for share in shares:
        logging.info(
            "%s: %s gives %d of %d rows, %.2f passes",
            run.scope,
            share.source.name,
            share.slots,
            steps * batch_size,
            share.passes,
        )
    trainer = Trainer(
        model=model,
        optimizer=optimizer,
        layout=layout,
        steps=steps,
        batch_size=batch_size,
        compute=compute or ComputeConfig(),
        dropout=dropout,
        z_loss=z_loss,
        accumulation_steps=accumulation_steps,
        dev=dev,
        order=loader.RowOrder(shares, seed),
        seed=seed,
    )
    state = trainer.start(inputs.get("start_from"), start_from_step)
    record = trainer.fit(state, stage, checkpoint_every, log_every)
    processes.wait_for_all(f"end {run.scope}")
    if processes.is_writer():
        stage.commit(
            {
                "steps": steps,
                "batch_size": batch_size,
                "length": data.length,
                "parameters": parameter_count(model),
                "train_tokens": steps * batch_size * data.length,
                "loss_tokens": record["loss_tokens"],
                "unique_tokens": _tokens(shares, synthetic=False),
                "synthetic_tokens": _tokens(shares, synthetic=True),
                "dev_loss": record.get("dev_loss"),
                "best_dev_loss": record.get("best_dev_loss"),
                "best_step": record.get("best_step"),
                "sources": loader.source_summary(shares),
            }
        )


def _tokens(shares: list[loader.Share], synthetic: bool) -> int:
    """Different tokens read from real or from synthetic sources."""
    return sum(share.unique_tokens for share in shares if share.source.synthetic == synthetic)


@dataclasses.dataclass
class Trainer:
    """A run's parts put together; the arguments are those of `train`."""

    model: DecoderConfig
    optimizer: OptimizerConfig
    layout: Layout
    steps: int
    batch_size: int
    compute: ComputeConfig
    dropout: float
    z_loss: float
    accumulation_steps: int
    dev: RowsArtefact | None
    order: loader.RowOrder
    seed: int

    def __post_init__(self):
        self.length = self.order.shares[0].source.length
        self.transformation = make_optimizer(self.optimizer, self.steps)
        self.learning_rate = schedule(self.optimizer, self.steps)
        self.train_step = make_train_step(
            self.model,
            self.transformation,
            self.layout,
            compute=self.compute,
            dropout=self.dropout,
            z_loss=self.z_loss,
            accumulation_steps=self.accumulation_steps,
        )
        self.evaluation_step = make_evaluation_step(self.model, self.layout, self.compute)
        self.batch_sharding = self.layout.sharding("batch")
        self.slots = loader.local_slots(self.batch_sharding, self.batch_size)

    def start(self, start_from: Any, start_from_step: int | str) -> TrainState:
        """Random parameters, or those of another run."""
        if start_from is None:
            return init_state(self.model, self.transformation, self.layout, self.seed)
        shardings = parameter_shardings(self.model, self.layout)
        parameters, info = load_parameters(start_from, self.model, start_from_step, shardings)
        logging.info("parameters of step %d of %s", info.step, start_from)
        optimizer = init_optimizer(self.transformation, parameters, self.layout)
        return TrainState(parameters, optimizer)

    def fit(
        self, state: TrainState, stage: artifacts.Stage, checkpoint_every: int, log_every: int
    ) -> dict[str, Any]:
        """The loop: dispatches step t, then reads the metrics of step t − 1.

        Returns:
          The record of the last step: tokens and held-out losses.
        """
        key = jax.random.key(self.seed)
        record: dict[str, Any] = {"step": 0, "loss_tokens": 0}
        with Checkpointer(stage.work / CHECKPOINTS) as checkpoints:
            latest = checkpoints.latest_step()
            if latest is not None:
                *restored, record = checkpoints.restore(latest, *state)
                state = TrainState(*restored)
                logging.info("goes on from step %d of %d", latest, self.steps)
            log = Log(self, stage, record, log_every)
            with log:
                for step, batch in enumerate(self.batches(record["step"]), record["step"]):
                    state, metrics = self.train_step(state, batch, key, step)
                    log.add(step + 1, metrics)
                    if (step + 1) % checkpoint_every == 0 or step + 1 == self.steps:
                        log.flush()
                        self.evaluate(state, log)
                        checkpoints.save(step + 1, *state, log.record)
                        if processes.is_writer():
                            stage.save_time()
            return log.record

    def batches(self, start_step: int):
        """Batches of the steps from `start_step`, laid over the mesh."""
        local = loader.batches(self.order, self.batch_size, self.slots, start_step, self.steps)
        for batch in local:
            yield self.place(batch)

    def place(self, batch: Row) -> Row:
        """This process's rows become its part of the global batch."""
        shape = (self.batch_size, self.length)
        return Row(
            *(jax.make_array_from_process_local_data(self.batch_sharding, x, shape) for x in batch)
        )

    def evaluate(self, state: TrainState, log: Log) -> None:
        """Takes the loss of the dev rows, if there are any, and notes the best so far."""
        if self.dev is None:
            return
        total = weight = 0.0
        for source in self.dev.sources.values():
            for batch in loader.in_order(source, self.batch_size):
                mine = Row(*(x[self.slots] for x in batch))
                sums = self.evaluation_step(state.parameters, self.place(mine))
                total, weight = total + float(sums.loss), weight + float(sums.weight)
        log.dev_loss(total / weight)


class Log:
    """Collects what steps report: one step behind the device, so that it never waits.

    Attributes:
      record: what a checkpoint keeps: step, loss tokens, held-out losses.
    """

    def __init__(
        self, trainer: Trainer, stage: artifacts.Stage, record: dict[str, Any], log_every: int
    ):
        self.trainer, self.log_every, self.record = trainer, log_every, dict(record)
        self.flops = train_flops_per_token(trainer.model, trainer.length)
        peak = peak_flops()
        self.peak = peak * jax.device_count() if peak else None
        self.names = [share.source.name for share in trainer.order.shares]
        writer = processes.is_writer()
        self.writer = MetricsWriter(stage.work, record["step"]) if writer else None
        self.bar = progress(
            desc=stage.manifest.scope, unit=" steps", total=trainer.steps, initial=record["step"]
        )
        self.pending: tuple[int, StepMetrics] | None = None
        self.losses: list[float] = []
        self.since = time.perf_counter()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exception) -> None:
        self.bar.close()
        if self.writer:
            self.writer.__exit__(*exception)

    def add(self, step: int, metrics: StepMetrics) -> None:
        """Notes a step just dispatched, and reads the one before."""
        self.flush()
        self.pending = step, metrics

    def flush(self) -> None:
        """Waits for the step noted last and writes its metrics."""
        if self.pending is None:
            return
        step, metrics = self.pending
        self.pending = None
        loss, weight, gradient_norm = (float(value) for value in jax.device_get(metrics))
        if not np.isfinite(loss):
            raise UserError(
                f"the loss of step {step} is {loss}: lower OptimizerConfig.learning_rate; "
                "the checkpoints before it are kept"
            )
        self.record["step"] = step
        self.record["loss_tokens"] += round(weight)
        self.losses.append(loss)
        self.bar.update(1)
        self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if step % self.log_every == 0 or step == 1 or step == self.trainer.steps:
            self._write(step, gradient_norm)

    def _write(self, step: int, gradient_norm: float) -> None:
        trainer = self.trainer
        tokens_per_step = trainer.batch_size * trainer.length
        now = time.perf_counter()
        rate = len(self.losses) * tokens_per_step / (now - self.since)
        seen = trainer.order.slots_before(step * trainer.batch_size)
        values = {
            "loss": sum(self.losses) / len(self.losses),
            "tokens": step * tokens_per_step,
            "tokens_per_second": rate,
            "mfu": rate * self.flops / self.peak if self.peak else None,
            "gradient_norm": gradient_norm,
            "learning_rate": float(trainer.learning_rate(step - 1)),
            "source_tokens": {
                name: rows * trainer.length for name, rows in zip(self.names, seen, strict=True)
            },
        }
        self.losses, self.since = [], now
        if self.writer:
            self.writer.write(step, values)
        logging.log_every_n_seconds(
            logging.INFO,
            "step %d of %d: loss %.4f, %.0f tokens/s",
            30,
            step,
            trainer.steps,
            values["loss"],
            rate,
        )

    def dev_loss(self, loss: float) -> None:
        """Writes a held-out loss and keeps the best."""
        step = self.record["step"]
        self.record["dev_loss"] = loss
        if loss < self.record.get("best_dev_loss", float("inf")):
            self.record |= {"best_dev_loss": loss, "best_step": step}
        tokens = step * self.trainer.batch_size * self.trainer.length
        if self.writer:
            self.writer.write(step, {"tokens": tokens, "dev_loss": loss})
        logging.info("step %d: dev loss %.4f", step, loss)
        self.since = time.perf_counter()
