"""What a run tells of itself: metrics a step behind the devices, and where the time went."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging

from sbp_jax import artifacts
from sbp_jax.errors import Stopped
from sbp_jax.model.decoder import train_flops_per_token
from sbp_jax.parallel import processes
from sbp_jax.progress import progress
from sbp_jax.train.metrics import MetricsWriter, peak_flops
from sbp_jax.train.optimizer import schedule
from sbp_jax.train.step import StepMetrics

if TYPE_CHECKING:
    from sbp_jax.train.loop import Trainer


def new_record() -> dict[str, Any]:
    """What a checkpoint keeps of a run that has not begun.

    The keys: `step`; `loss_tokens` seen; `losses` since the last line of metrics; updates `skipped`
    in all and `skipped_in_a_row`; `bad_rows` that this process could not read; and once there are
    any `dev_loss`, `best_dev_loss`, `best_step`.
    """
    counts = ("step", "loss_tokens", "skipped", "skipped_in_a_row", "bad_rows")
    return {**dict.fromkeys(counts, 0), "losses": []}


class Log:
    """Collects what steps report: one step behind the device, so that it never waits.

    Attributes:
      record: what a checkpoint keeps, see `new_record`.
      seconds: spent so far by this attempt, by what on: `start` (until the first step), `compile`
        (the first step), `data`, `steps`, `evaluation`, `checkpoints`.
    """

    def __init__(self, trainer: Trainer, stage: artifacts.Stage, record: dict[str, Any]):
        self.trainer, self.record = trainer, dict(record)
        self.learning_rate = schedule(trainer.optimizer, trainer.steps)
        self.flops = train_flops_per_token(trainer.model, trainer.length)
        peak = peak_flops()
        self.peak = peak * jax.device_count() if peak else None
        self.names = [source.name for source in trainer.order.sources]
        writer = processes.is_writer()
        self.writer = MetricsWriter(stage.work, record["step"]) if writer else None
        self.bar = progress(
            desc=stage.manifest.scope, unit=" steps", total=trainer.steps, initial=record["step"]
        )
        self.bad_before = self.record["bad_rows"]
        self.pending: tuple[int, StepMetrics] | None = None
        self.seconds = {"start": stage.elapsed()}
        self.rows_since = 0
        self.since = time.perf_counter()

    def __enter__(self) -> Log:
        if self.record["step"]:
            logging.info("goes on from step %d of %d", self.record["step"], self.trainer.steps)
        return self

    def __exit__(self, *exception) -> None:
        self.bar.close()
        if self.writer:
            self.writer.__exit__(*exception)
        whole = sum(self.seconds.values())
        spent = ", ".join(f"{cause} {100 * s / whole:.0f}%" for cause, s in self.seconds.items())
        logging.info("where the time went, %.0f s: %s", whole, spent)

    @contextlib.contextmanager
    def goodput(self, cause: str) -> Iterator[None]:
        """Counts the time within as spent on `cause`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[cause] = self.seconds.get(cause, 0.0) + spent

    def add(self, step: int, metrics: StepMetrics) -> None:
        """Notes a step just dispatched, and reads the one before."""
        self.flush()
        self.pending = step, metrics

    def flush(self) -> None:
        """Waits for the step noted last and writes its metrics.

        Raises:
          Stopped: too many updates in a row were left out.
        """
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        metrics = jax.device_get(metrics)
        self.record["step"] = step
        if np.isfinite(metrics.weight):
            self.record["loss_tokens"] += round(float(metrics.weight))
        self.record["losses"] = [*self.record["losses"], float(metrics.loss)]
        bad = self.trainer.bad.before(step * self.trainer.batch_size)
        self.record["bad_rows"] = self.bad_before + bad
        self.rows_since += self.trainer.batch_size
        self.bar.update(1)
        self.bar.set_postfix(loss=f"{float(metrics.loss):.3f}", refresh=False)
        if step % self.trainer.log_every == 0 or step in (1, self.trainer.steps):
            self._write(step, float(metrics.gradient_norm))
        if (step - 1) % self.trainer.rms_every == 0:
            rms = jax.tree.map(lambda x: x.tolist(), metrics.rms)
            self._line(step, {"rms": rms})
        self._skipped(step, metrics)

    def _skipped(self, step: int, metrics: StepMetrics) -> None:
        """Counts an update that was left out; ends the run after too many in a row."""
        if not metrics.skipped:
            self.record["skipped_in_a_row"] = 0
            return
        self.record["skipped"] += 1
        self.record["skipped_in_a_row"] += 1
        loss, norm = float(metrics.loss), float(metrics.gradient_norm)
        rows = self._rows(step)
        logging.warning(
            "step %d changed nothing: loss %g, gradient norm %g, rows %s", step, loss, norm, rows
        )
        self._line(step, {"skipped": {"loss": str(loss), "norm": str(norm), "rows": rows}})
        if self.record["skipped_in_a_row"] >= self.trainer.stop_after_skipped:
            raise Stopped(
                f"{self.record['skipped_in_a_row']} updates in a row were left out, the last at "
                f"step {step} (loss {loss:g}, gradient norm {norm:g}; rows {rows}): lower "
                "OptimizerConfig.learning_rate, or look at these rows; what was saved is kept"
            )

    def _rows(self, step: int) -> str:
        """The rows that a step read, by source."""
        size = self.trainer.batch_size
        found: dict[str, list[int]] = {}
        for slot in range((step - 1) * size, step * size):
            source, row = self.trainer.order[slot]
            found.setdefault(self.names[source], []).append(row)
        return "; ".join(f"{name} {' '.join(map(str, rows))}" for name, rows in found.items())

    def _write(self, step: int, gradient_norm: float) -> None:
        trainer = self.trainer
        tokens_per_step = trainer.batch_size * trainer.length
        now = time.perf_counter()
        rate = self.rows_since * trainer.length / (now - self.since)
        seen = trainer.order.slots_before(step * trainer.batch_size)
        losses = [loss for loss in self.record["losses"] if np.isfinite(loss)]
        whole = sum(self.seconds.values())
        values = {
            "loss": sum(losses) / len(losses) if losses else None,
            "tokens": step * tokens_per_step,
            "tokens_per_second": rate,
            "mfu": rate * self.flops / self.peak if self.peak else None,
            "goodput": {cause: spent / whole for cause, spent in self.seconds.items()},
            "gradient_norm": gradient_norm if np.isfinite(gradient_norm) else None,
            "learning_rate": float(self.learning_rate(step - 1)),
            "skipped_steps": self.record["skipped"],
            "bad_rows": self.record["bad_rows"],
            "source_tokens": {
                name: rows * trainer.length for name, rows in zip(self.names, seen, strict=True)
            },
        }
        self.record["losses"], self.rows_since, self.since = [], 0, now
        self._line(step, values)
        logging.log_every_n_seconds(
            logging.INFO,
            "step %d of %d: loss %.4f, %.0f tokens/s",
            30,
            step,
            trainer.steps,
            values["loss"] or np.nan,
            rate,
        )

    def _line(self, step: int, values: dict[str, Any]) -> None:
        if self.writer:
            self.writer.write(step, values)

    def dev_loss(self, loss: float) -> None:
        """Writes a held-out loss and keeps the best."""
        step = self.record["step"]
        self.record["dev_loss"] = loss
        if loss < self.record.get("best_dev_loss", float("inf")):
            self.record |= {"best_dev_loss": loss, "best_step": step}
        tokens = step * self.trainer.batch_size * self.trainer.length
        self._line(step, {"tokens": tokens, "dev_loss": loss})
        logging.info("step %d: dev loss %.4f", step, loss)
        self.since = time.perf_counter()
