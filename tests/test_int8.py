"""Weights and cache as int8: near what they stand for, and as indifferent to slot and neighbour."""

from __future__ import annotations

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_synthesize import MODEL, SAMPLER, parameters, requests, training_forward

from sbp_jax.errors import UserError
from sbp_jax.model import int8
from sbp_jax.model.decoder import (
    Unstacked,
    empty_cache,
    from_heads,
    initialise,
    project,
    rotate,
    rotations,
    to_heads,
)
from sbp_jax.synthesize import decode, int8_cache
from sbp_jax.synthesize.sampler import Sampler, SamplerConfig

INT8 = [("int8", None), (None, "int8"), ("int8", "int8")]


def sampled(weights, cache, devices=1, order=None, **changes):
    names = {"weight_dtype": weights, "cache_dtype": cache, **changes}
    config = SamplerConfig(**{**vars(SAMPLER), **names})
    wanted = requests(40)
    prompts = [one.prompt for one in wanted]
    sampler = Sampler(MODEL, parameters(), config, jax.devices()[:devices], calibration=prompts)
    asked = wanted if order is None else [wanted[i] for i in order]
    found = {s.request.index: (s.tokens.tolist(), s.log_probability) for s in sampler.sample(asked)}
    assert sorted(found) == list(range(40))
    return found


def test_matrices_are_near_what_they_stand_for_and_multiply_so():
    tree = nnx.state(Unstacked(initialise(MODEL, jax.random.key(0))))
    before = nnx.to_flat_state(tree)
    after = dict(nnx.to_flat_state(int8.narrow(tree)))
    narrowed = 0
    for path, weight in before:
        found = after[path].get_value()
        if not isinstance(found, int8.Int8):
            assert path[-1] in ("scale", "embedding")
            continue
        narrowed += 1
        assert found.values.dtype == jnp.int8
        wide = (found.values * found.scales.reshape(-1)).reshape(weight.shape)
        assert np.all(np.abs(wide - weight[...]) <= found.scales * 0.5001)
        name, inputs = path[-1], jax.random.normal(jax.random.key(1), (2, 3, 5, 64))
        if name in ("query", "key", "value"):
            x, product = inputs[0, :, :, : MODEL.width], to_heads
        elif name == "out":
            x, product = inputs[:, :, :4, : MODEL.head_size].swapaxes(1, 2), from_heads
        else:
            x, product = inputs[0, :, :, : wide.shape[0]], project
        # A scale for each output: those of the sums over inputs would not come out so.
        np.testing.assert_allclose(product(x, found), product(x, wide), rtol=2e-5, atol=2e-5)
        assert np.max(np.abs(found.values)) == 127
        assert found.scales.shape == weight.shape[1 if product is to_heads else -1 :]
    assert narrowed == 7 * MODEL.layers


@pytest.mark.parametrize(("weights", "cache"), INT8)
def test_log_probabilities_are_nearly_those_of_the_training_forward(weights, cache):
    reference, differences = training_forward(), []
    for index, (tokens, log_probability) in sampled(weights, cache).items():
        expected, _ = reference.score(requests(40)[index].prompt, tokens)
        differences.append((log_probability - expected) / len(tokens))
    assert 1e-5 < np.mean(np.abs(differences)) < 0.02
    assert abs(np.mean(differences)) < 0.01


def test_documents_do_not_depend_on_devices_blocks_or_order():
    first = sampled("int8", "int8")
    assert sampled("int8", "int8", devices=8, block=1) == first
    order = random.Random(0).sample(range(40), 40)
    assert sampled("int8", "int8", devices=3, order=order) == first
    copied = {i: d[0] for i, d in sampled("int8", "int8", slots=5, prefill_rows=2).items()}
    assert copied == {i: d[0] for i, d in first.items()}


def test_one_position_is_written_and_no_other():
    rng = np.random.default_rng(0)
    old = jnp.asarray(rng.integers(-127, 128, (2, 3, 128, 8)), jnp.int8)
    new = jnp.asarray(rng.integers(-127, 128, (2, 3, 8)), jnp.int8)
    positions = jnp.asarray([0, 37, 127])
    found = np.array(decode.put_each(old, new, positions))
    expected = np.array(old)
    for slot, position in enumerate(positions.tolist()):
        expected[:, slot, position] = new[:, slot]
    np.testing.assert_array_equal(found, expected)


def test_scales_reach_as_far_as_the_prompts_at_any_position():
    cache = empty_cache(MODEL, 2, 8)
    key = jax.random.normal(jax.random.key(0), cache[0][0].shape)
    lengths = jnp.asarray([8, 3])
    found = [
        int8_cache.ranges(
            [(rotate(key, rotations(MODEL, start + jnp.zeros((1, 8), jnp.int32))), 2 * key)],
            lengths,
        )
        for start in (0, 5)
    ]
    np.testing.assert_allclose(found[0][0][0], found[1][0][0], rtol=1e-5)
    scales = int8_cache.scales(found)[0]
    seen = np.abs(key)[:, [0] * 8 + [1] * 3, [*range(8), *range(3)]].max(axis=1)
    assert np.all(127 * scales[1] >= 2 * seen * 0.999)
    assert np.all(127 * scales[1] <= 2 * seen * 2 ** (1 / 8) * 1.001)
    assert np.all(127 * scales[0] >= seen * 0.999)
    # Of what is in reach half a step is lost, and the rest is cut.
    x = jnp.asarray([0.0, 0.26, -1.0, 1e9, -jnp.inf, jnp.nan])
    assert int8_cache.quantise(x, jnp.float32(0.1)).tolist() == [0, 3, -10, 127, -127, 0]


def test_a_cache_without_scales_or_of_another_dtype_is_refused():
    with pytest.raises(ValueError, match="calibration"):
        Sampler(MODEL, parameters(), SamplerConfig(**{**vars(SAMPLER), "cache_dtype": "int8"}))
    for name in ("weight_dtype", "cache_dtype"):
        with pytest.raises(UserError, match=rf"{name} = 'int4': expected 'int8' or None"):
            SamplerConfig(**{**vars(SAMPLER), name: "int4"})
