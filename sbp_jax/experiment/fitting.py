"""One model trained on rows in memory, its held-out losses, and what a checkpoint is chosen by.

The rows, their order and mixture, the compiled step and its schedule are those of `sbp train`; what
is left out is what a run of minutes does not need: files of rows, checkpoints on disk, profiles.

B batch, L length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from sbp_jax.data import mixture
from sbp_jax.data import rows as row_format
from sbp_jax.data.loader import RowOrder
from sbp_jax.data.rows import Piece, Row, RowsArtefact, RowSource
from sbp_jax.errors import Stopped, UserError
from sbp_jax.model.compute import ComputeConfig
from sbp_jax.model.decoder import DecoderConfig
from sbp_jax.parallel.mesh import Layout
from sbp_jax.settings import configurable
from sbp_jax.train.optimizer import OptimizerConfig, make_optimizer
from sbp_jax.train.step import (
    TrainState,
    init_optimizer,
    init_state,
    make_evaluation_step,
    make_train_step,
)

EVALUATION_ROWS = 64  # of a batch, or some more where the mesh asks for it


@configurable
@dataclasses.dataclass(frozen=True)
class Settings:
    """What is chosen for each arm alike, by its development loss.

    Attributes:
      learning_rate: peak of the schedule.
      weight_decay: as `OptimizerConfig` has it.
      dropout: share of activations dropped.
    """

    learning_rate: float
    weight_decay: float = 0.1
    dropout: float = 0.0

    def __post_init__(self):
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and 0 <= self.dropout < 1):
            raise UserError(
                f"{self}: expected a learning rate above 0, a weight decay of 0 or more and a "
                "dropout of 0 to below 1"
            )

    def __str__(self) -> str:
        rate, decay = self.learning_rate, self.weight_decay
        return f"learning_rate={rate:g},weight_decay={decay:g},dropout={self.dropout:g}"


@dataclasses.dataclass(frozen=True)
class Rows:
    """Packed rows in memory, as a source of a mixture.

    Attributes:
      source: what is counted of them.
      rows: arrays [rows, L].
    """

    source: RowSource
    rows: Row

    def artefact(self) -> RowsArtefact:
        """The rows as `mixture.plan` takes them."""
        s = self.source
        return RowsArtefact(s.directory, s.length, s.vocab_size, {s.name: s})


def pack_rows(
    name: str, pieces: Iterable[Piece], length: int, vocab_size: int, *, synthetic: bool = False
) -> Rows:
    """Packs pieces into rows of `length` tokens; synthetic ones may be read once only."""
    packed = list(row_format.pack(pieces, length))
    batch = row_format.empty_rows(len(packed), length)
    for place, row in enumerate(packed):
        record = row_format.encode(row, vocab_size)
        row_format.decode(record, length, vocab_size, Row(*(x[place] for x in batch)))
    members = [piece for row in packed for piece in row]
    source = RowSource(
        name=name,
        directory=epath.Path(name),
        rate=1.0,
        rows=len(packed),
        tokens=sum(len(piece.targets) for piece in members),
        loss_tokens=sum(piece.loss_tokens for piece in members),
        documents=len(members),
        bytes=0,
        length=length,
        vocab_size=vocab_size,
        synthetic=synthetic,
        repeat=not synthetic,
    )
    return Rows(source, batch)


@dataclasses.dataclass
class Fit:
    """A trained model.

    Attributes:
      curve: development losses in nats per token, by the tokens trained on.
      step: at which the development loss was least.
      dev_loss: the least.
      losses: of the other sets at that step, by name.
      parameters: at that step, or at the last.
      kept: parameters at the steps that were asked for.
      passes: over each source.
    """

    curve: list[tuple[int, float]]
    step: int
    dev_loss: float
    losses: dict[str, float]
    parameters: Any
    kept: dict[int, Any]
    passes: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What all trainings of an experiment have in common.

    Attributes:
      model: the decoder.
      layout: over the devices.
      compute: how a step is computed.
      batch_size: B, rows a step.
      evaluations: how often in a training the development loss is taken, evenly.
      optimizer: all of it that is not in `Settings`.
      programs: what has been compiled, by what it depends on; trainings that share it compile once.
    """

    model: DecoderConfig
    layout: Layout
    compute: ComputeConfig
    batch_size: int
    evaluations: int
    optimizer: OptimizerConfig
    programs: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def fit(
        self,
        sources: Sequence[tuple[Rows, float]],
        steps: int,
        settings: Settings,
        seed: int,
        dev: Rows,
        others: Mapping[str, Rows],
        *,
        start: Any = None,
        keep: Sequence[int] = (),
    ) -> Fit:
        """Trains a model and takes it at the step of its least development loss.

        Args:
          sources: rows and their shares of the run.
          steps: how many.
          settings: of the arm.
          seed: of initialisation, order and dropout.
          dev: what the step is chosen by.
          others: what losses are reported of, which choose nothing.
          start: parameters to start from; None for random ones, the same for all arms of a seed.
          keep: steps whose parameters are wanted beside.

        Raises:
          Stopped: the loss is no number.
        """
        mixed = mixture.plan(
            {rows.source.name: rows.artefact() for rows, _ in sources},
            {rows.source.name: share for rows, share in sources},
            steps,
            self.batch_size,
        )
        order = RowOrder(mixed, seed)
        optimizer, step_fn = self._training(steps, settings)
        state = init_state(self.model, optimizer, self.layout, seed)
        if start is not None:
            like = state.parameters
            given = jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), start, like)
            state = TrainState(given, init_optimizer(optimizer, given, self.layout))
        key = jax.random.key(seed)
        batch_sharding = self.layout.sharding("batch")
        arrays = [rows.rows for rows, _ in sources]
        marks = {round(steps * (i + 1) / self.evaluations) for i in range(self.evaluations)}
        curve: list[tuple[int, float]] = []
        best: tuple[float, int, Any] = (float("inf"), 0, None)
        kept = {}
        for step in range(steps):
            slots = [order[step * self.batch_size + i] for i in range(self.batch_size)]
            batch = Row(
                *(
                    np.stack([getattr(arrays[source], field)[row] for source, row in slots])
                    for field in Row._fields
                )
            )
            batch = Row(*(jax.device_put(x, batch_sharding) for x in batch))
            state, _ = step_fn(state, batch, key, step)
            if step + 1 in keep:
                kept[step + 1] = to_host(state.parameters)
            if step + 1 in marks:
                loss = self.loss(state.parameters, dev)
                if not np.isfinite(loss):
                    raise Stopped(f"the development loss of step {step + 1} is {loss}: {settings}")
                curve.append(((step + 1) * self.batch_size * mixed.length, loss))
                if loss < best[0]:
                    best = (loss, step + 1, to_host(state.parameters))
        dev_loss, best_step, parameters = best
        placed = jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), parameters, state[0])
        losses = {name: self.loss(placed, rows) for name, rows in others.items()}
        passes = {share.source.name: share.passes for share in mixed.shares}
        return Fit(curve, best_step, dev_loss, losses, parameters, kept, passes)

    def _training(self, steps: int, settings: Settings) -> tuple[Any, Any]:
        """Optimizer and step of a training."""
        config = dataclasses.replace(
            self.optimizer,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        key = ("train", self.model, config, steps, settings.dropout)
        if key not in self.programs:
            optimizer = make_optimizer(config, steps, self.model.width_ratio)
            step_fn = make_train_step(
                self.model,
                optimizer,
                self.layout,
                compute=self.compute,
                dropout=settings.dropout,
            )
            self.programs[key] = optimizer, step_fn
        return self.programs[key]

    def loss(self, parameters: Any, rows: Rows) -> float:
        """Nats per token of a model on rows."""
        key = ("evaluate", self.model)
        if key not in self.programs:
            self.programs[key] = make_evaluation_step(self.model, self.layout, self.compute)
        evaluate = self.programs[key]
        total = weight = 0.0
        sharding = self.layout.sharding("batch")
        count = -(-EVALUATION_ROWS // self.layout.batch_shards) * self.layout.batch_shards
        for start in range(0, rows.source.rows, count):
            batch = Row(*(x[start : start + count] for x in rows.rows))
            padding = count - len(batch.inputs)
            batch = Row(*(np.pad(x, ((0, padding), (0, 0))) for x in batch))
            sums = evaluate(parameters, Row(*(jax.device_put(x, sharding) for x in batch)))
            total, weight = total + float(sums.loss), weight + float(sums.weight)
        return total / weight


def to_host(parameters: Any) -> Any:
    """A copy of parameters in the host's memory."""
    return jax.tree.map(lambda x: np.array(jnp.asarray(x)), parameters)
