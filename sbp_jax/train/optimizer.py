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

    def __post_init__(self):
        if not 0 <= self.warmup <= 1:
            raise UserError(
                f"OptimizerConfig.warmup = {self.warmup}: expected a share from 0 to 1 of the steps"
            )


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


def make_optimizer(
    config: OptimizerConfig, steps: int, width_ratio: float = 1.0
) -> optax.GradientTransformation:
    """The chain of transformations for a run of `steps` steps.

    Args:
      config: how parameters are updated.
      steps: how many.
      width_ratio: the model's base width over its width (`DecoderConfig.base_width`): by it the
        steps of matrices in blocks are shorter, and those of the last norm, and no other's. Decay
        does not depend on it.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        _scale_by_width(width_ratio),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule(config, steps)),
    )


def _scale_by_width(ratio: float) -> optax.GradientTransformation:
    if ratio == 1:
        return optax.identity()

    def scale(path, update):
        names = [key.key for key in path]
        grows = names[-1] != "scale" if names[0] == "blocks" else names[0] == "final_norm"
        return ratio * update if grows else update

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def decayed(parameters):
    """Which parameters decay: all but the scales of norms (pytree of bool)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "scale", parameters)
