"""µP: what was chosen for one width serves another (a coordinate check, arXiv 2203.03466, D.1)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sbp_jax.data.rows import Row
from sbp_jax.model.decoder import DecoderConfig, structure
from sbp_jax.parallel.mesh import MeshConfig, make_layout
from sbp_jax.train.optimizer import OptimizerConfig, make_optimizer
from sbp_jax.train.step import init_state, make_train_step

BASE = 64


# Sizes are compared, not bits.
pytestmark = pytest.mark.usefixtures("compiled_quickly")


@functools.cache
def trained(width: int, base_width: int | None, tied: bool = True) -> dict[str, float]:
    """Root mean squares in a decoder of this width after a few steps at the paper's peak rate."""
    model = DecoderConfig(
        vocab_size=64,
        width=width,
        layers=2,
        heads=width // 32,
        kv_heads=width // 64,
        head_size=32,
        hidden=2 * width,
        tied=tied,
        base_width=base_width,
        dtype="float32",
    )
    layout = make_layout(MeshConfig(data=1), jax.devices()[:1])
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=1e-2, warmup=0.0), 100, model.width_ratio
    )
    state = init_state(model, optimizer, layout, seed=0)
    step = make_train_step(model, optimizer, layout)
    tokens = np.random.default_rng(0).integers(2, 64, (4, 17)).astype(np.int32)
    batch = Row(
        inputs=tokens[:, :-1],
        targets=tokens[:, 1:],
        segment_ids=np.ones((4, 16), np.int32),
        positions=np.tile(np.arange(16, dtype=np.int32), (4, 1)),
        loss_weights=np.ones((4, 16), np.float32),
    )
    for index in range(6):
        state, metrics = step(state, batch, jax.random.key(0), jnp.int32(index))

    @jax.jit
    def sizes(parameters):
        decoder = nnx.merge(structure(model)[0], parameters)
        rows = (batch.inputs, batch.segment_ids, batch.positions)
        found = {
            f"after {n} blocks": decoder.hidden_states(*rows, layer=n)
            for n in range(model.layers + 1)
        }
        found["logits"] = decoder.logits(found[f"after {model.layers} blocks"])
        return {name: jnp.sqrt(jnp.mean(jnp.square(x))) for name, x in found.items()}

    return {"loss": float(metrics.loss)} | {k: float(x) for k, x in sizes(state.parameters).items()}


def test_with_a_base_width_activations_keep_their_size_from_width_64_to_1024():
    for width, tied in ((1024, True), (1024, False)):
        base, wide = trained(BASE, BASE, tied), trained(width, BASE, tied)
        for name in ("after 0 blocks", "after 1 blocks", "after 2 blocks"):
            assert 0.85 < wide[name] / base[name] < 1.15, (name, width, tied)
        # Random logits at the start shrink with the width, learned ones do not.
        assert 0.65 < wide["logits"] / base["logits"] < 1.1, (width, tied)
        assert wide["loss"] < base["loss"], (width, tied)


def test_without_one_they_grow():
    assert trained(256, None)["after 2 blocks"] > 3 * trained(BASE, BASE)["after 2 blocks"]


def test_a_width_that_is_its_own_base_is_as_without_one():
    with_base, without = (
        DecoderConfig(64, BASE, 1, 2, 1, 32, 128, base_width=base) for base in (BASE, None)
    )
    layout = make_layout(MeshConfig(data=1), jax.devices()[:1])
    states = [
        init_state(m, make_optimizer(OptimizerConfig(1e-2), 10, m.width_ratio), layout, seed=0)
        for m in (with_base, without)
    ]
    assert all(map(np.array_equal, *map(jax.tree.leaves, states)))
