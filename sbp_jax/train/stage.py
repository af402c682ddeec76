"""The stage `sbp train`: pretrain, tune, joint and oracle are gin scopes of this one trainer."""

from __future__ import annotations

from collections.abc import Mapping

import gin
import jax
from absl import logging

from sbp_jax import artifacts
from sbp_jax.data import loader, mixture
from sbp_jax.data.rows import open_rows
from sbp_jax.errors import UserError
from sbp_jax.model.compute import ComputeConfig
from sbp_jax.model.decoder import DecoderConfig, parameter_count
from sbp_jax.parallel import processes
from sbp_jax.parallel.mesh import MeshConfig, make_layout
from sbp_jax.settings import configurable
from sbp_jax.train.loop import Trainer
from sbp_jax.train.optimizer import OptimizerConfig


@configurable
def train(
    run: artifacts.Run,
    *,
    rows: str | Mapping[str, float] = gin.REQUIRED,
    model: DecoderConfig = gin.REQUIRED,
    optimizer: OptimizerConfig = gin.REQUIRED,
    steps: int | None = gin.REQUIRED,
    batch_size: int = gin.REQUIRED,
    later: Mapping[int, Mapping[str, float]] | None = None,
    mesh: MeshConfig | None = None,
    compute: ComputeConfig | None = None,
    dropout: float = 0.0,
    z_loss: float = 0.0,
    accumulation_steps: int = 1,
    start_from: str | None = None,
    start_from_step: int | str = "last",
    dev_rows: str | None = None,
    checkpoint_every: int = 1000,
    keep_every: int | None = None,
    log_every: int = 10,
    rms_every: int = 1000,
    stop_after_skipped: int = 10,
    bad_rows: float = 1e-4,
    seed: int = 0,
) -> None:
    """Trains a decoder on packed rows.

    Args:
      run: names the artefact.
      rows: artefact of `sbp cache`, or several with their shares of the run's rows. Within one each
        task gets its rate's share, and one that `sbp synthesize` wrote is never read twice.
      model: the decoder.
      optimizer: how it is updated.
      steps: how many. None where `rows` says how many tokens are read of each artefact, padding not
        counted, as in {'rows/real': 125e9, 'rows/synthetic': 75e9}.
      batch_size: B, rows a step, of all devices together.
      later: other shares from given steps on: {9000: {'rows/real': 1, 'rows/synthetic': 1}}.
      mesh: how state and batch are laid over the devices; by default the batch alone is.
      compute: how a step is computed, memory against time.
      dropout: share of activations dropped, of embeddings and of each residual branch.
      z_loss: weight of the squared log-normaliser in what is minimised; 1e-4 is usual.
      accumulation_steps: parts in which a batch is computed; its result does not depend on them.
      start_from: train artefact whose parameters to start from; None for random ones.
      start_from_step: which of its checkpoints: `last`, `best`, or a step.
      dev_rows: rows whose loss is taken at every checkpoint.
      checkpoint_every: steps from checkpoint to checkpoint; the latest two and the best by dev loss
        are kept.
      keep_every: steps from one checkpoint that is kept for good to the next, a multiple of
        `checkpoint_every`; None for none.
      log_every: steps from metrics line to metrics line.
      rms_every: steps from which to which the size of gradients and updates is taken by group of
        parameters.
      stop_after_skipped: so many updates left out in a row end the run
        (`OptimizerConfig.skip_norm`).
      bad_rows: rows that cannot be read are left out and named; a larger share of all rows read
        than this ends the run.
      seed: of initialisation, row order and dropout.
    """
    known = 1 if steps is None else steps
    counts = (known, checkpoint_every, log_every, rms_every, stop_after_skipped)
    if min(counts) < 1:
        raise UserError(
            "train: steps, checkpoint_every, log_every, rms_every and stop_after_skipped "
            f"must be at least 1, and are {counts}"
        )
    if keep_every is not None and (keep_every < 1 or keep_every % checkpoint_every):
        raise UserError(
            f"train.keep_every = {keep_every} is no multiple of checkpoint_every = "
            f"{checkpoint_every}"
        )
    if not 0 <= dropout < 1:
        raise UserError(f"train.dropout = {dropout}: expected a share from 0 to below 1")
    shares = {rows: 1.0} if isinstance(rows, str) else dict(rows)
    several = len(shares) > 1
    roles = {name: f"rows[{i}]" if several else "rows" for i, name in enumerate(shares)}
    inputs = {role: run.path(name) for name, role in roles.items()}
    inputs |= {"dev_rows": run.path(dev_rows)} if dev_rows else {}
    inputs |= {"start_from": run.path(start_from)} if start_from else {}
    layout = make_layout(mesh or MeshConfig())
    if jax.default_backend() == "cpu":
        processes.reuse_freed_memory()
    loader.check_batch(batch_size, layout.batch_shards, accumulation_steps)
    artefacts = {name: open_rows(run.path(name)) for name in shares}
    mixed = mixture.plan(artefacts, shares, steps, batch_size, later)
    loader.check_model(mixed.sources[0], model.vocab_size)
    dev = open_rows(inputs["dev_rows"]) if dev_rows else None
    stage = artifacts.begin(
        run,
        "train",
        # Mesh, accumulation and `compute` decide where and how a sum is taken, not what is summed.
        config={
            "model": model,
            "optimizer": optimizer,
            "steps": mixed.steps,
            "batch_size": batch_size,
            "phases": mixed.phases,
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
            "sbp_jax.data.mixture",
            "sbp_jax.data.rows",
        ),
        resumable=True,
        writer=processes.is_writer(),
    )
    if stage.finished:
        return
    processes.wait_for_all(f"begin {run.scope}")
    for share in mixed.shares:
        logging.info(
            "%s: %s gives %d of %d rows, %.2f passes",
            run.scope,
            share.source.name,
            share.slots,
            mixed.steps * batch_size,
            share.passes,
        )
    trainer = Trainer(
        model=model,
        optimizer=optimizer,
        layout=layout,
        compute=compute or ComputeConfig(),
        dropout=dropout,
        z_loss=z_loss,
        accumulation_steps=accumulation_steps,
        dev=dev,
        order=loader.RowOrder(mixed, seed),
        bad_rows=bad_rows,
        seed=seed,
        checkpoint_every=checkpoint_every,
        keep_every=keep_every,
        log_every=log_every,
        rms_every=rms_every,
        stop_after_skipped=stop_after_skipped,
    )
    state = trainer.start(inputs.get("start_from"), start_from_step)
    record = trainer.fit(state, stage)
    processes.wait_for_all(f"end {run.scope}")
    if processes.is_writer():
        stage.commit(
            {
                "steps": mixed.steps,
                "batch_size": batch_size,
                "length": mixed.length,
                "parameters": parameter_count(model),
                "train_tokens": mixed.steps * batch_size * mixed.length,
                "loss_tokens": record["loss_tokens"],
                "unique_tokens": _tokens(mixed, synthetic=False),
                "synthetic_tokens": _tokens(mixed, synthetic=True),
                "dev_loss": record.get("dev_loss"),
                "best_dev_loss": record.get("best_dev_loss"),
                "best_step": record.get("best_step"),
                "skipped_steps": record["skipped"],
                "bad_rows": record["bad_rows"],
                "sources": mixed.summary(),
            }
        )


def _tokens(mixed: mixture.Mixture, synthetic: bool) -> int:
    """Different tokens read from real or from synthetic sources."""
    return sum(share.unique_tokens for share in mixed.shares if share.source.synthetic == synthetic)
