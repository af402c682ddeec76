"""AdamW with warm-up and cosine decay, global-norm clipping, and no decay on norms."""

from __future__ import annotations

import dataclasses

import gin
import jax
import optax

from sbp_jax.errors import UserError
from sbp_jax.settings import configurable


@configurable
@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are updated.

    Attributes:
      learning_rate: peak, reached after warm-up.
      final_learning_rate: at the last step, the end of the cosine.
      warmup: share of all steps spent in linear warm-up from 0.
      weight_decay: decoupled (arXiv 1711.05101), times the learning rate; not on norm scales.
      clip_norm: gradients of a larger global norm are scaled down to it.
      skip_norm: a step whose gradients are of a larger global norm, or no numbers, changes nothing.
      beta1: decay of the mean of gradients.
      beta2: decay of the mean of squared gradients.
      epsilon: added to the root of the latter.
      base_width: the width at which the learning rate was chosen: at another one matrices whose
        inputs grow with the width learn at base_width / width of it (`width_multipliers`), so that
        the rate need not be searched for again. None for the same rate everywhere.
    """

    learning_rate: float = gin.REQUIRED
    final_learning_rate: float = 0.0
    warmup: float = 0.05
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    skip_norm: float = 1e4
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    base_width: int | None = None

    def __post_init__(self):
        if not 0 <= self.warmup <= 1:
            raise UserError(
                f"OptimizerConfig.warmup = {self.warmup}: expected a share from 0 to 1 of the steps"
            )
        if self.base_width is not None and self.base_width < 1:
            raise UserError(f"OptimizerConfig.base_width = {self.base_width} must be at least 1")


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then a cosine to the final rate."""
    warmup_steps = min(round(config.warmup * steps), steps - 1)
    return optax.schedules.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=steps,
        end_value=config.final_learning_rate,
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The chain of transformations for a run of `steps` steps."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        _scale_by_width(config.base_width),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule(config, steps)),
    )


def decayed(parameters):
    """Which parameters decay: all but the scales of norms (pytree of bool)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "scale", parameters)


def width_multipliers(parameters, base_width: int):
    """What each parameter's learning rate is multiplied with (arXiv 2203.03466, table 3, Adam).

    1 for what is read by token or by channel, the embedding and the norms' scales; base_width over
    width for matrices, whose outputs sum over more inputs in a wider model. A tied embedding makes
    logits, and counts as a matrix.

    Args:
      parameters: nested dict like the model's; its embedding is [V, D].
      base_width: width at which every multiplier is 1.
    """
    ratio = base_width / parameters["embedding"].shape[-1]
    by_token = {"embedding"} if "head" in parameters else set()

    def one(path, _) -> float:
        return 1.0 if path[-1].key == "scale" or path[0].key in by_token else ratio

    return jax.tree_util.tree_map_with_path(one, parameters)


def _scale_by_width(base_width: int | None) -> optax.GradientTransformation:
    if base_width is None:
        return optax.identity()
    return optax.stateless(
        lambda updates, _: jax.tree.map(
            lambda update, multiplier: update * multiplier,
            updates,
            width_multipliers(updates, base_width),
        )
    )
