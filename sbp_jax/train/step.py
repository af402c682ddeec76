"""The compiled step: loss, gradients and update, pure over pytrees of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from sbp_jax.data.rows import Row
from sbp_jax.model.compute import ComputeConfig
from sbp_jax.model.decoder import Decoder, DecoderConfig, Dropout, initialise, structure
from sbp_jax.parallel.mesh import Layout
from sbp_jax.train.loss import LossSums, loss_sums


class TrainState(NamedTuple):
    """What a step changes.

    Attributes:
      parameters: nested dict of float32 arrays, as `nnx.to_pure_dict` gives it.
      optimizer: the optimizer's state.
    """

    parameters: Any
    optimizer: Any


class StepMetrics(NamedTuple):
    """What a step reports, float32.

    Attributes:
      loss: nats per weighted token, over the whole batch.
      weight: sum of the batch's loss weights.
      gradient_norm: before clipping.
      skipped: 1 if the update was left out, for a loss or gradients that are no numbers, or for a
        norm beyond `OptimizerConfig.skip_norm`.
      rms: root mean squares of gradients and of updates by group of parameters (`groups_rms`),
        zeros but for every `rms_every`th step.
    """

    loss: jax.Array
    weight: jax.Array
    gradient_norm: jax.Array
    skipped: jax.Array
    rms: dict[str, dict[str, jax.Array]]


def parameter_shardings(config: DecoderConfig, layout: Layout) -> Any:
    """How each parameter lies on the mesh, as a nested dict."""
    _, state = structure(config)
    return nnx.to_pure_dict(layout.parameter_shardings(state))


def init_state(
    config: DecoderConfig, optimizer: optax.GradientTransformation, layout: Layout, seed: int
) -> TrainState:
    """Fresh state, made where it will lie: no host ever holds all of it."""
    shardings = parameter_shardings(config, layout)
    parameters = jax.jit(
        lambda key: nnx.to_pure_dict(nnx.state(initialise(config, key))), out_shardings=shardings
    )(jax.random.key(seed))
    return TrainState(parameters, init_optimizer(optimizer, parameters, layout))


def init_optimizer(optimizer: optax.GradientTransformation, parameters: Any, layout: Layout) -> Any:
    """Fresh optimizer state: moments lie as their parameters do, counters everywhere."""
    abstract = _abstract_optimizer(optimizer, parameters, layout)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(optimizer.init, out_shardings=shardings)(parameters)


def abstract_state(
    config: DecoderConfig, optimizer: optax.GradientTransformation, layout: Layout
) -> TrainState:
    """Shapes, dtypes and shardings of what `init_state` makes; no device is needed."""
    parameters = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nnx.to_pure_dict(structure(config)[1]),
        parameter_shardings(config, layout),
    )
    return TrainState(parameters, _abstract_optimizer(optimizer, parameters, layout))


def _abstract_optimizer(optimizer, parameters: Any, layout: Layout) -> Any:
    by_path = {
        tuple(key.key for key in path): leaf.sharding
        for path, leaf in jax.tree_util.tree_leaves_with_path(parameters)
    }

    def placed(path, leaf):
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        sharding = by_path.get(names, layout.sharding())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(placed, jax.eval_shape(optimizer.init, parameters))


def make_loss(config: DecoderConfig, layout: Layout, compute: ComputeConfig) -> Callable:
    """The loss of a batch: (parameters, batch, dropout, z_loss) → what `loss_sums` returns."""
    graph, _ = structure(config)

    def loss(parameters: Any, batch: Row, dropout: Dropout | None = None, z_loss: float = 0.0):
        decoder: Decoder = nnx.merge(graph, parameters)
        x_BLD = decoder.hidden_states(
            batch.inputs,
            batch.segment_ids,
            batch.positions,
            dropout=dropout,
            layout=layout,
            compute=compute,
        )
        normed_BLD, weights_DV = decoder.output(x_BLD, layout)
        return loss_sums(
            normed_BLD,
            weights_DV,
            batch.targets,
            batch.loss_weights,
            layout,
            compute.loss_block,
            z_loss,
        )

    return loss


def make_train_step(
    config: DecoderConfig,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    *,
    skip_norm: float = float("inf"),
    rms_every: int = 1000,
    compute: ComputeConfig | None = None,
    dropout: float = 0.0,
    z_loss: float = 0.0,
    accumulation_steps: int = 1,
) -> jax.stages.Wrapped:
    """The step: (state, batch, key, step) → (state, metrics); the old state is given up.

    Gradients of the summed loss are added over the parts of the batch and divided by the whole
    batch's weight once, so neither the number of parts nor uneven weights change the result.
    """
    loss = make_loss(config, layout, compute or ComputeConfig())

    def part(parameters: Any, batch: Row, keys: jax.Array):
        batch = Row(*(layout.constrain(x, "batch", None) for x in batch))
        mask = Dropout(dropout, keys) if dropout else None
        return jax.grad(loss, has_aux=True)(parameters, batch, mask, z_loss)

    def step_fn(state: TrainState, batch: Row, key: jax.Array, step: jax.Array):
        size = batch.inputs.shape[0]
        step_key = jax.random.fold_in(key, step)
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(size))
        if accumulation_steps == 1:
            gradients, sums = part(state.parameters, batch, keys_B)
        else:
            # Every part takes rows from all over the batch, so each stays evenly on the mesh.
            parts = jax.tree.map(
                lambda x: x.reshape(-1, accumulation_steps, *x.shape[1:]).swapaxes(0, 1),
                (batch, keys_B),
            )

            def add(total, one):
                return jax.tree.map(jnp.add, total, part(state.parameters, *one)), None

            zeros = jax.tree.map(jnp.zeros_like, state.parameters)
            start = (zeros, LossSums(jnp.zeros(()), jnp.zeros(())))
            (gradients, sums), _ = jax.lax.scan(add, start, parts)
        scale = 1 / jnp.maximum(sums.weight, 1e-9)
        gradients = jax.tree.map(lambda g: g * scale, gradients)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
        updated = TrainState(optax.apply_updates(state.parameters, updates), optimizer_state)
        mean, norm = sums.loss * scale, optax.global_norm(gradients)
        skipped = ~(jnp.isfinite(mean) & (norm <= skip_norm))
        state = jax.tree.map(lambda new, old: jnp.where(skipped, old, new), updated, state)
        rms = jax.lax.cond(
            step % rms_every == 0,
            lambda: {"gradient": groups_rms(gradients), "update": groups_rms(updates)},
            lambda: dict.fromkeys(("gradient", "update"), _zeros_of(groups_rms, gradients)),
        )
        return state, StepMetrics(mean, sums.weight, norm, skipped.astype(jnp.float32), rms)

    return jax.jit(step_fn, donate_argnums=0)


def groups_rms(parameters: Any) -> dict[str, jax.Array]:
    """Root mean squares by group: embedding, head, norms, and of each block attention and MLP.

    Args:
      parameters: nested dict like the model's, of parameters or something of their shapes.

    Returns:
      Float32 scalars; for blocks float32 [layers].
    """
    sums: dict[str, list[jax.Array]] = {}
    sizes: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        names = [key.key for key in path]
        stacked = names[0] == "blocks"
        group = ".".join(names[:2]) if stacked else names[0]
        axes = tuple(range(1 if stacked else 0, leaf.ndim))
        sums.setdefault(group, []).append(jnp.sum(jnp.square(leaf.astype(jnp.float32)), axes))
        sizes[group] = sizes.get(group, 0) + leaf.size // (leaf.shape[0] if stacked else 1)
    return {group: jnp.sqrt(sum(parts) / sizes[group]) for group, parts in sums.items()}


def _zeros_of(function: Callable, *arguments: Any) -> Any:
    shapes = jax.eval_shape(function, *arguments)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def make_evaluation_step(
    config: DecoderConfig, layout: Layout, compute: ComputeConfig | None = None
) -> Callable:
    """(parameters, batch) → `LossSums`, without dropout."""
    loss = make_loss(config, layout, compute or ComputeConfig())

    def evaluation_step(parameters: Any, batch: Row) -> LossSums:
        return loss(parameters, batch)[1]

    return jax.jit(evaluation_step)
