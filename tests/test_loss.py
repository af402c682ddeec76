"""The loss in blocks of tokens: what autodiff gives of the plain formula, on every mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbp_jax.parallel.mesh import MeshConfig, make_layout
from sbp_jax.train.loss import loss_sums

B, L, D, V = 8, 12, 16, 40


def inputs(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x_BLD = jnp.asarray(rng.normal(size=(B, L, D)), dtype)
    output_DV = jnp.asarray(rng.normal(size=(D, V)), dtype)
    targets_BL = jnp.asarray(rng.integers(0, V, (B, L)))
    weights_BL = jnp.asarray(rng.random((B, L)) * (rng.random((B, L)) < 0.7), jnp.float32)
    return x_BLD, output_DV, targets_BL, weights_BL


def plain(x_BLD, output_DV, targets_BL, weights_BL, z_loss):
    logits_BLV = x_BLD @ output_DV
    normalizer_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
    target_BL = jnp.take_along_axis(logits_BLV, targets_BL[..., None], axis=-1)[..., 0]
    losses_BL = normalizer_BL - target_BL + z_loss * jnp.square(normalizer_BL)
    return jnp.sum(losses_BL * weights_BL)


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=8),
        MeshConfig(data=1, fsdp=8),
        MeshConfig(slices=2, data=1, fsdp=2, tensor=2),
    ],
    ids=["data", "fsdp", "slices, fsdp and tensor"],
)
@pytest.mark.parametrize("block", [5, 4096])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_value_and_gradients_are_those_of_the_plain_formula(mesh, block, z_loss):
    x, output, targets, weights = inputs()
    layout = make_layout(mesh)
    expected, gradients = jax.value_and_grad(plain, (0, 1))(x, output, targets, weights, z_loss)

    @jax.jit
    def blocked(x, output):
        def objective(x, output):
            return loss_sums(x, output, targets, weights, layout, block, z_loss)

        return jax.value_and_grad(objective, (0, 1), has_aux=True)(x, output)

    (found, sums), (by_x, by_output) = blocked(x, output)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(sums.loss, plain(x, output, targets, weights, 0.0), rtol=1e-5)
    np.testing.assert_allclose(sums.weight, weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(by_x, gradients[0], atol=1e-5)
    np.testing.assert_allclose(by_output, gradients[1], atol=1e-5)
    alone = jax.jit(lambda: loss_sums(x, output, targets, weights, layout, block, z_loss))()
    np.testing.assert_allclose(alone[0], expected, rtol=1e-5)


def test_no_logits_of_the_whole_batch_are_made():
    x, output, targets, weights = inputs()
    layout = make_layout(MeshConfig(data=1), jax.devices()[:1])

    def objective(x, output):
        return loss_sums(x, output, targets, weights, layout, 6)[0]

    program = jax.make_jaxpr(jax.grad(objective, (0, 1)))(x, output)
    sizes = {size_of(v.aval) for e in equations(program.jaxpr) for v in e.outvars}
    assert 6 * V in sizes
    assert max(sizes) <= max(B * L * D, D * V)


def size_of(aval) -> int:
    return int(np.prod(getattr(aval, "shape", ())))


def equations(jaxpr):
    """All equations of a program, those of the programs inside it too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)
