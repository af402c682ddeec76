"""The decoder: segments do not see each other, decoding agrees with training, dropout, shapes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sbp_jax.errors import UserError
from sbp_jax.model import attention as attention_module
from sbp_jax.model import decoder as decoder_module
from sbp_jax.model.compute import ComputeConfig
from sbp_jax.model.decoder import Decoder, DecoderConfig, Dropout, Unstacked, empty_cache

CONFIG = DecoderConfig(
    vocab_size=61,
    width=32,
    layers=3,
    heads=4,
    kv_heads=2,
    head_size=8,
    hidden=48,
    dtype="float32",
)
VARIANTS = {
    "tied, query-key norm": CONFIG,
    "untied": dataclasses.replace(CONFIG, tied=False),
    "one key head, no norm": dataclasses.replace(CONFIG, kv_heads=1, qk_norm=False),
}


def make(config: DecoderConfig = CONFIG) -> Decoder:
    return decoder_module.initialise(config, jax.random.key(0))


def logits(model: Decoder, tokens, segments, positions, **options):
    """The forward pass, compiled."""
    return jax.jit(lambda *batch: model(*batch, **options))(tokens, segments, positions)


def packed(seed: int = 0, length: int = 24):
    """Two rows of three segments and padding."""
    rng = np.random.default_rng(seed)
    tokens_BL = rng.integers(0, 61, (2, length))
    sizes = (7, 9, length - 19, 3)
    segment_ids_L = np.repeat([1, 2, 3, 0], sizes)
    positions_L = np.concatenate([np.arange(n) for n in sizes])
    return tokens_BL, np.tile(segment_ids_L, (2, 1)), np.tile(positions_L, (2, 1))


@pytest.mark.parametrize("backend", ["xla", "splash"])
def test_a_segment_changes_no_bit_of_another(backend):
    model = make()
    tokens, segments, positions = packed(length=128)
    compute = ComputeConfig(attention=backend)
    forward = jax.jit(lambda tokens: model(tokens, segments, positions, compute=compute))
    before = np.asarray(forward(tokens))
    for changed in (1, 2, 3, 0):
        other = np.where(segments == changed, (tokens + 17) % 61, tokens)
        after = np.asarray(forward(other))
        same = segments != changed
        np.testing.assert_array_equal(before[same], after[same])
        assert (before[~same] != after[~same]).any()


@pytest.mark.parametrize(
    "options",
    [
        {"remat": "minimal"},
        {"remat": "full"},
        {"remat": "full", "save": ("context", "gate")},
        {"remat": "minimal", "offload": ("gate", "up")},
        {"scan_layers": False},
        {"scan_layers": False, "remat": "full"},
        {"attention": "splash"},
    ],
    ids=str,
)
def test_how_a_pass_is_computed_does_not_change_its_gradient(options):
    model = make()
    graph, state = nnx.split(model)
    tokens, segments, positions = packed(length=128)

    def gradient(compute):
        def loss(state):
            model = nnx.merge(graph, state)
            logits_BLV = model(tokens, segments, positions, compute=compute)
            return jnp.sum(jnp.sin(logits_BLV) * (segments > 0)[..., None])

        return jax.jit(jax.grad(loss))(state)

    expected = gradient(ComputeConfig(attention="xla"))
    found = gradient(ComputeConfig(**{"attention": "xla", **options}))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize("length", [63, 64, 200])
def test_scores_that_are_left_out_are_those_of_later_keys(length):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (2, n, length, 8)) for key, n in zip(keys, (4, 2, 2), strict=True)
    )
    segments = jnp.repeat(jnp.array([[1, 2], [1, 1]]), jnp.array([50, length - 50]), axis=1)

    def plain(q, k, v):
        return attention_module.attention(q, k, v, attention_module.segment_mask(segments))

    blocked = attention_module.packed_attention("xla", segments)
    for attend in (plain, blocked):
        found = jax.value_and_grad(lambda *x, f=attend: jnp.sum(jnp.sin(f(*x))), (0, 1, 2))(q, k, v)
        # By a softmax that holds all, at once.
        k4, v4 = jnp.repeat(k, 2, axis=1), jnp.repeat(v, 2, axis=1)
        causal = attention_module.segment_mask(segments)[:, None]

        def reference(q, k, v, causal=causal):
            scores = jnp.einsum("bnlh,bnmh->bnlm", q, k) * 8**-0.5
            return jax.nn.softmax(jnp.where(causal, scores, -jnp.inf)) @ v

        wanted = jax.value_and_grad(lambda *x: jnp.sum(jnp.sin(reference(*x))), (0, 1, 2))(
            q, k4, v4
        )
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4)
        np.testing.assert_allclose(found[1][0], wanted[1][0], rtol=1e-4, atol=1e-5)
        for mine, repeated in zip(found[1][1:], wanted[1][1:], strict=True):
            summed = repeated.reshape(2, 2, 2, length, 8).sum(2)
            np.testing.assert_allclose(mine, summed, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_swiglu_is_that_of_its_formula():
    gate, up = jax.random.normal(jax.random.key(0), (2, 5, 7)) * 3

    def total(function):
        return lambda gate, up: jnp.sum(jnp.sin(function(gate, up)))

    mine = jax.grad(total(decoder_module.gated), (0, 1))(gate, up)
    wanted = jax.grad(total(lambda gate, up: jax.nn.silu(gate) * up), (0, 1))(gate, up)
    for a, b in zip(mine, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_full_remat_keeps_less_than_none():
    _, state = nnx.split(model := make(dataclasses.replace(CONFIG, layers=4)))
    graph, _ = nnx.split(model)
    tokens, segments, positions = packed(length=128)

    def temporaries(remat):
        def loss(state):
            compute = ComputeConfig(remat=remat)
            return nnx.merge(graph, state)(tokens, segments, positions, compute=compute).sum()

        compiled = jax.jit(jax.grad(loss)).lower(state).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    none, minimal, full = map(temporaries, ("none", "minimal", "full"))
    assert full < minimal < none


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"attention": "flash"}, "ComputeConfig.attention = 'flash'"),
        ({"remat": "some"}, "ComputeConfig.remat = 'some'"),
        ({"save": ("logits",)}, "know no"),
        ({"loss_block": 0}, "loss_block"),
    ],
)
def test_a_wrong_way_to_compute_is_named(options, named):
    with pytest.raises(UserError, match=named):
        ComputeConfig(**options)


@pytest.mark.parametrize(
    ("backend", "message"),
    [("splash", "rows of a multiple of 128 tokens, these have 24"), ("cudnn", "NVIDIA GPUs")],
)
def test_a_backend_that_cannot_says_so(backend, message):
    with pytest.raises(UserError, match=message):
        logits(make(), *packed(), compute=ComputeConfig(attention=backend))


def test_a_segment_in_a_row_is_what_it_is_alone():
    model = make()
    tokens, segments, positions = packed()
    together = logits(model, tokens, segments, positions)
    for segment in (1, 2, 3):
        here = segments[0] == segment
        part = tokens[:, here]
        alone = logits(model, part, np.ones_like(part), np.tile(np.arange(part.shape[1]), (2, 1)))
        np.testing.assert_allclose(together[:, here], alone, atol=2e-5)


def test_a_token_sees_nothing_after_it():
    model = make()
    tokens, segments, positions = packed()
    before = np.asarray(logits(model, tokens, segments, positions))
    later = tokens.copy()
    later[:, 12] = (later[:, 12] + 1) % 61
    after = np.asarray(logits(model, later, segments, positions))
    np.testing.assert_array_equal(before[:, :12], after[:, :12])
    assert (before[:, 12:16] != after[:, 12:16]).any()


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_prefill_and_decode_give_the_training_logits(config):
    model = make(config)
    rng = np.random.default_rng(1)
    lengths = np.array([5, 9, 1])
    tokens = rng.integers(0, 61, (3, 14))
    ones, positions = np.ones((3, 14), int), np.tile(np.arange(14), (3, 1))
    expected = np.asarray(logits(model, tokens, ones, positions))
    extend = jax.jit(Unstacked(model).extend)
    # Prompts are padded with noise to one length, which must not be seen later on.
    prompts = np.where(positions[:, :10] < lengths[:, None], tokens[:, :10], 7)
    cache = empty_cache(config, 3, 16)
    found, cache = extend(cache, jnp.asarray(prompts), jnp.zeros(3, int), jnp.asarray(lengths - 1))
    at = lengths - 1
    np.testing.assert_allclose(found, expected[np.arange(3), at], atol=2e-5)
    for _ in range(5):
        at = at + 1
        one = tokens[np.arange(3), at][:, None]
        found, cache = extend(cache, jnp.asarray(one), jnp.asarray(at), jnp.zeros(3, int))
        np.testing.assert_allclose(found, expected[np.arange(3), at], atol=2e-5)


def test_dropout_follows_the_row_and_not_its_place():
    keys = jax.random.split(jax.random.key(3), 4)
    x = jnp.ones((4, 5, 64))
    whole = Dropout(0.25, keys)(x)
    half = Dropout(0.25, keys[2:])(x[2:])
    np.testing.assert_array_equal(whole[2:], half)
    assert abs(float((whole == 0).mean()) - 0.25) < 0.05
    np.testing.assert_allclose(whole.mean(), 1.0, atol=0.05)
    assert (Dropout(0.25, keys).fold_in(1)(x) != whole).any()


def test_parameter_count_and_flops_are_those_of_the_arrays():
    config = dataclasses.replace(CONFIG, tied=False)
    arrays = jax.tree.leaves(nnx.state(make(config)))
    assert decoder_module.parameter_count(config) == sum(a.size for a in arrays)
    matrices = sum(a.size for a in arrays if a.ndim > 2) + config.width * config.vocab_size
    attention = 6 * config.layers * 128 * config.heads * config.head_size
    assert decoder_module.train_flops_per_token(config, 128) == 6 * matrices + attention


def test_hidden_states_of_a_layer_stop_there():
    model = make()
    tokens, segments, positions = packed()
    all_layers = model.hidden_states(tokens, segments, positions)
    np.testing.assert_array_equal(
        model.hidden_states(tokens, segments, positions, layer=3), all_layers
    )
    np.testing.assert_array_equal(
        model.hidden_states(tokens, segments, positions, layer=0), model.embed(tokens)
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"heads": 3}, "kv_heads"),
        ({"head_size": 7}, "head_size"),
        ({"dtype": "int8"}, "dtype"),
        ({"base_width": 0}, "base_width"),
    ],
)
def test_a_wrong_shape_is_named(change, named):
    with pytest.raises(UserError, match=named):
        dataclasses.replace(CONFIG, **change)
