"""The loop: dispatches step t, then reads the metrics of step t − 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging

from sbp_jax import artifacts
from sbp_jax.checkpoints import CHECKPOINTS, Checkpointer, load_parameters
from sbp_jax.data import loader
from sbp_jax.data.rows import Row, RowsArtefact
from sbp_jax.errors import Stopped
from sbp_jax.model.compute import ComputeConfig
from sbp_jax.model.decoder import DecoderConfig
from sbp_jax.parallel import processes
from sbp_jax.parallel.mesh import Layout
from sbp_jax.train.log import Log, new_record
from sbp_jax.train.optimizer import OptimizerConfig, make_optimizer
from sbp_jax.train.profile import Profiler
from sbp_jax.train.step import (
    TrainState,
    init_optimizer,
    init_state,
    make_evaluation_step,
    make_train_step,
    parameter_shardings,
)

TERMINATED = 143  # 128 and the number of SIGTERM, as shells have it


@dataclasses.dataclass
class Trainer:
    """A run's parts put together; the arguments are those of `sbp train`."""

    model: DecoderConfig
    optimizer: OptimizerConfig
    layout: Layout
    compute: ComputeConfig
    dropout: float
    z_loss: float
    accumulation_steps: int
    dev: RowsArtefact | None
    order: loader.RowOrder
    bad_rows: float
    seed: int
    checkpoint_every: int
    keep_every: int | None
    log_every: int
    rms_every: int
    stop_after_skipped: int

    def __post_init__(self):
        mixture = self.order.mixture
        self.steps, self.batch_size, self.length = mixture.steps, mixture.batch_size, mixture.length
        self.bad = loader.BadRows(self.bad_rows)
        self.transformation = make_optimizer(self.optimizer, self.steps, self.model.width_ratio)
        self.train_step = make_train_step(
            self.model,
            self.transformation,
            self.layout,
            skip_norm=self.optimizer.skip_norm,
            rms_every=self.rms_every,
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

    def fit(self, state: TrainState, stage: artifacts.Stage) -> dict[str, Any]:
        """Trains from where an earlier attempt was saved, or from `state`, to the last step.

        Returns:
          The record of the last step: tokens, held-out losses, updates left out.

        Raises:
          Stopped: too many updates in a row were left out, or the job was asked to end.
        """
        key = jax.random.key(self.seed)
        with (
            Checkpointer(stage.work / CHECKPOINTS, self.keep_every) as checkpoints,
            processes.Termination() as termination,
            Profiler(stage.work / "profile") as profiler,
        ):
            restored = checkpoints.restore(*state)
            state = TrainState(*restored[:2]) if restored else state
            record = restored[2] if restored else new_record()
            with Log(self, stage, record) as log:
                batches = self.batches(record["step"])
                for step in range(record["step"], self.steps):
                    with log.goodput("data"):
                        batch = next(batches)
                    with log.goodput("compile" if step == record["step"] else "steps"):
                        state, metrics = self.train_step(state, batch, key, step)
                        log.add(step + 1, metrics)
                    profiler.after(step + 1)
                    ended = step + 1 == self.steps
                    if asked := termination.at(step + 1):
                        logging.warning("asked to end: saving step %d", step + 1)
                    if asked or ended or (step + 1) % self.checkpoint_every == 0:
                        self.save(step + 1, state, log, checkpoints, stage, evaluate=not asked)
                    if asked and not ended:
                        raise Stopped(
                            f"ended by SIGTERM; step {step + 1} of {self.steps} is saved, the same "
                            "command goes on from there",
                            TERMINATED,
                        )
                return log.record

    def save(
        self,
        step: int,
        state: TrainState,
        log: Log,
        checkpoints: Checkpointer,
        stage: artifacts.Stage,
        evaluate: bool,
    ) -> None:
        """Takes the held-out loss, if it is wanted and there are rows for it, and a checkpoint."""
        log.flush()
        dev_loss = None
        if evaluate and self.dev is not None:
            with log.goodput("evaluation"):
                dev_loss = self.evaluate(state)
            log.dev_loss(dev_loss)
        with log.goodput("checkpoints"):
            checkpoints.save(step, *state, log.record, dev_loss)
        if processes.is_writer():
            stage.save_time()

    def batches(self, start_step: int) -> Iterator[Row]:
        """Batches of the steps from `start_step`, laid over the mesh."""
        local = loader.batches(self.order, self.slots, start_step, self.steps, self.bad)
        for batch in local:
            yield self.place(batch)

    def place(self, batch: Row) -> Row:
        """This process's rows become its part of the global batch."""
        shape = (self.batch_size, self.length)
        return Row(
            *(jax.make_array_from_process_local_data(self.batch_sharding, x, shape) for x in batch)
        )

    def evaluate(self, state: TrainState) -> float:
        """The loss of the dev rows, nats per token."""
        assert self.dev is not None
        total = weight = 0.0
        for source in self.dev.sources.values():
            for batch in loader.in_order(source, self.batch_size):
                mine = Row(*(x[self.slots] for x in batch))
                sums = self.evaluation_step(state.parameters, self.place(mine))
                total, weight = total + float(sums.loss), weight + float(sums.weight)
        return total / weight
