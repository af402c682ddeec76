"""What a token is drawn from, against the distribution as it is defined; and where loops end."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sbp_jax.synthesize import loops, sampling

DRAWS = 100_000
# Settled before any draw: a right sampler fails one case in ten thousand, with other seeds.
SIGNIFICANCE = 1e-4
EOS, NEVER = 7, (0, 5)
SMOOTH = np.random.default_rng(1).normal(0, 1.5, 131).astype(np.float32)
# Six values in 37 tokens: each border falls among equals.
TIED = np.random.default_rng(2).integers(-3, 3, 37).astype(np.float32)
EOS_LIKELY = np.where(np.arange(50) == EOS, 4, SMOOTH[:50])


def defined(logits, allowed, temperature, top_k, top_p):
    """The distribution by its definition: sort, cut at k, normalise, cut at p, normalise."""
    scaled = np.where(allowed, logits.astype(np.float64) / temperature, -np.inf)
    p = np.exp(scaled - scaled.max())
    order = np.argsort(-p, kind="stable")
    p[order[len(p) if top_k is None else top_k :]] = 0
    p /= p.sum()
    size = int(np.searchsorted(np.cumsum(p[order]), top_p - 1e-9)) + 1
    p[order[size:]] = 0
    return p / p.sum()


@functools.partial(jax.jit, static_argnames=("temperature", "top_k", "top_p", "min_length"))
def drawn(logits_SV, numbers_S, indices_S, *, temperature, top_k, top_p, min_length):
    """One draw a row, each with the key of its number."""
    allowed_V = ~np.isin(np.arange(logits_SV.shape[1]), NEVER)
    return sampling.sample(
        logits_SV,
        jax.vmap(jax.random.key)(numbers_S),
        indices_S,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        allowed_V=allowed_V,
        eos=EOS,
        min_length=min_length,
    )


@pytest.mark.parametrize(
    ("logits", "temperature", "top_k", "top_p", "min_length"),
    [
        (SMOOTH, 1.0, None, 1.0, 0),
        (SMOOTH, 0.5, None, 0.7, 0),
        (SMOOTH, 1.0, 1, 1.0, 0),
        (SMOOTH, 1.0, None, 1e-6, 0),
        (SMOOTH, 2.0, 40, 0.95, 0),
        (SMOOTH, 1.0, 1000, 0.9, 0),
        (TIED, 1.0, 9, 1.0, 0),
        (TIED, 1.0, None, 0.5, 0),
        (TIED, 0.7, 12, 0.93, 0),
        (TIED, 3.0, 36, 1.0, 0),
        (EOS_LIKELY, 1.0, 6, 0.8, 3),
        (EOS_LIKELY, 1.0, None, 1.0, 2),
    ],
)
def test_tokens_are_drawn_from_what_is_defined(logits, temperature, top_k, top_p, min_length):
    """At index 2, where a `min_length` of 3 forbids EOS and one of 2 does not."""
    found = drawn(
        jnp.broadcast_to(logits, (DRAWS, len(logits))),
        jnp.arange(DRAWS),
        jnp.full(DRAWS, 2, jnp.int32),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_length=min_length,
    )
    forbidden = (*NEVER, EOS) if min_length > 2 else NEVER
    allowed = ~np.isin(np.arange(len(logits)), forbidden)
    expected = DRAWS * defined(logits, allowed, temperature, top_k, top_p)
    counts = np.bincount(np.asarray(found.tokens_S), minlength=len(logits))
    assert not counts[expected == 0].any()
    # The rarest together, since the statistic means little for them.
    common = expected >= 5
    cells, wanted = (np.append(x[common], x[~common].sum()) for x in (counts, expected))
    cells, wanted = cells[wanted > 0], wanted[wanted > 0]
    assert len(cells) == 1 or scipy.stats.chisquare(cells, wanted).pvalue > SIGNIFICANCE
    # What is told of it is the model's own probability, whatever it was drawn from.
    log_p = jax.nn.log_softmax(logits)[found.tokens_S]
    np.testing.assert_allclose(found.log_probabilities_S, log_p, atol=1e-5)


def test_what_a_slot_draws_does_not_depend_on_the_others():
    """Though they search and draw together until the last of them has what it needs."""
    rng = np.random.default_rng(3)
    size = 300
    spread = rng.uniform(0.01, 6, (64, 1))
    logits_SV = (rng.normal(0, 1, (64, size)) * spread).astype(np.float32)
    logits_SV[::3] = np.round(logits_SV[::3])
    indices = np.arange(64, dtype=np.int32) % 5

    def tokens(rows):
        limits = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_length": 3}
        return np.asarray(drawn(logits_SV[rows], rows, indices[rows], **limits).tokens_S)

    together = tokens(np.arange(64))
    assert (tokens(np.arange(64)[::-1])[::-1] == together).all()
    alone = [tokens(np.array([row]))[0] for row in range(6)]
    assert alone == together[:6].tolist()


@pytest.mark.parametrize("count", [1, 7, 37])
def test_the_heaviest_are_exactly_so_many(count):
    """Among equals the lower ids; those that weigh nothing stay so."""
    rng = np.random.default_rng(4)
    weights = rng.choice([0, 1, 2, 3, 1 << 20, (1 << 20) + 1, 1 << 24], (50, 37)).astype(np.int32)
    weights[0], weights[1], weights[2] = 1, 0, np.arange(37)
    weights[1, 30] = 1 << 30
    order = np.argsort(-weights, axis=1, kind="stable")
    kept = np.zeros_like(weights)
    np.put_along_axis(kept, order[:, :count], 1, axis=1)
    found = jax.jit(sampling.heaviest, static_argnums=1)(weights, count)
    np.testing.assert_array_equal(found, kept * weights)


def repeated(tokens, period):
    """By looking: the most tokens at the end that equal the one 1 … `period` before."""
    most = 0
    for p in range(1, period + 1):
        run = 0
        while run + p < len(tokens) and tokens[-1 - run] == tokens[-1 - run - p]:
            run += 1
        most = max(most, run)
    return most


def test_loops_are_told_at_each_token():
    """Of several slots, in which documents of other lengths follow each other."""
    rng = np.random.default_rng(5)
    follow = jax.jit(loops.follow)
    state = loops.none(3, 4)
    documents: list[list[int]] = [[], [], []]
    lengths = [40, 23, 7]
    seen = set()
    for _ in range(120):
        first = [
            len(one) == length or not one for one, length in zip(documents, lengths, strict=True)
        ]
        token = rng.choice(2, 3, p=[0.7, 0.3])
        documents = [
            [*([] if new else one), int(t)]
            for one, new, t in zip(documents, first, token, strict=True)
        ]
        state = follow(state, jnp.asarray(token, jnp.int32), jnp.asarray(first))
        found = loops.repeated(state).tolist()
        assert found == [repeated(one, 4) for one in documents]
        seen |= set(found)
    assert {0, 1, 5, 8} <= seen
