"""Next-token loss, weighted; sums rather than means, so that parts of a batch add up exactly."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def token_losses(logits_BLV: jax.Array, targets_BL: jax.Array) -> jax.Array:
    """Negative log-likelihood of each target in nats, float32 [B, L]."""
    normalizer_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
    target_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], axis=-1)[..., 0]
    return normalizer_BL - target_BL


def loss_sums(
    logits_BLV: jax.Array, targets_BL: jax.Array, weights_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of the token losses, and the sum of the weights; both float32 scalars."""
    losses_BL = token_losses(logits_BLV, targets_BL)
    return jnp.sum(losses_BL * weights_BL), jnp.sum(weights_BL)
