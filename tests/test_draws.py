"""Which seeds are drawn, how often and in which order."""

from __future__ import annotations

import collections
import types

import numpy as np
import pytest
from etils import epath

from sbp_jax.data.documents import Document
from sbp_jax.errors import UserError
from sbp_jax.synthesize.draws import ProportionalDraws, UniformDraws, read_weights
from sbp_jax.synthesize.schedule import Plan
from sbp_jax.synthesize.work import Work

RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "exponential": RANDOM.exponential(size=300),
    "alike": np.ones(31),
    "nearly alike": RANDOM.uniform(0.9, 1.1, 31),
    "one heavy": np.array([*RANDOM.uniform(0.5, 1.5, 200), 300.0]),
    "halving": 0.5 ** np.arange(12),
    "few values": RANDOM.integers(0, 4, 100).astype(float),
    "three": np.array([0.3, 0.4, 0.3]),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_counts_follow_weights_after_every_draw(name):
    weights = WEIGHTS[name]
    shares = weights / weights.sum()
    draws = ProportionalDraws(weights, seed=3, times=10**9)
    seeds, before = draws.draw(np.arange(4000))
    counts = np.zeros(len(weights), int)
    worst = 0.0
    for number, (seed, had) in enumerate(zip(seeds, before, strict=True), start=1):
        assert had == counts[seed]  # so no document comes twice
        counts[seed] += 1
        worst = max(worst, np.abs(counts - number * shares).max())
    assert worst < (1 if name == "alike" else 1.25)
    assert not counts[weights == 0].any()
    assert counts[shares * 4000 >= 1].all()


def test_any_part_of_the_order_is_known_without_the_rest():
    for draws in (ProportionalDraws(WEIGHTS["exponential"], 1, 50), UniformDraws(300, 1, 9)):
        whole = np.stack(draws.draw(np.arange(draws.count)))
        some = RANDOM.integers(0, draws.count, 100)
        np.testing.assert_array_equal(np.stack(draws.draw(some)), whole[:, some])


def test_weights_of_any_size_are_told_apart():
    """Neither a seed beside another of 10¹⁵ times its weight is lost, nor are documents."""
    weights = np.array([1e-15, 1.0, 1e-15, 1e-300, 5e-324])
    seeds, before = ProportionalDraws(weights, 0, 10**9).draw(np.arange(2000))
    assert len(set(zip(seeds.tolist(), before.tolist(), strict=True))) == 2000
    late, _ = ProportionalDraws(weights, 0, 10**9).draw(np.arange(25 * 10**13 - 9, 25 * 10**13 + 9))
    assert set(seeds) == {1}
    assert {0, 2} & set(late)


@pytest.mark.parametrize("times", [2, 3, 50])
@pytest.mark.parametrize("name", WEIGHTS)
def test_no_seed_is_drawn_too_often(name, times):
    weights = WEIGHTS[name]
    draws = ProportionalDraws(weights, 0, times)
    seeds, before = draws.draw(np.arange(draws.count))
    assert before.max() < times
    heaviest = np.count_nonzero(seeds == weights.argmax())
    assert times - 3 <= heaviest <= times


def test_seeds_of_one_weight_are_shuffled():
    orders = [ProportionalDraws(np.ones(50), seed, 9).draw(np.arange(50))[0] for seed in (0, 0, 1)]
    assert orders[0].tolist() == orders[1].tolist() != orders[2].tolist()
    assert sorted(orders[0]) == list(range(50))
    assert orders[0].tolist() != sorted(orders[0])


def documents_of(plan: Plan) -> list[tuple[int, int]]:
    return [plan.document(i) for number in range(plan.shards) for i in plan.shard(number)]


def test_without_weights_each_round_is_a_permutation_of_the_seeds():
    """Corpora that were written before there were weights go on as they were begun."""
    plan = Plan([f"d{i}" for i in range(7)], seed=3, documents_per_shard=4, samples_per_seed=5)
    expected = [
        (int(seed), sample)
        for sample in range(5)
        for seed in np.random.default_rng([3, sample]).permutation(7)
    ]
    assert documents_of(plan) == expected


@pytest.mark.parametrize("weights", [None, np.array([1.0, 2.0, 0.0, 4.0, 1.5])])
def test_samples_of_a_seed_that_are_written_together_follow_one_another(weights):
    def plan(**changes):
        given = {"documents_per_shard": 12, "samples_per_seed": 14, "weights": weights, **changes}
        return Plan(list("abcde"), 3, **given)

    one, four = plan(), plan(samples_together=4)
    found = documents_of(four)
    assert len(set(found)) == len(found) == four.documents
    for place in range(0, len(found), 4):
        seed, first = found[place]
        assert found[place : place + 4] == [(seed, first + i) for i in range(4)]
        assert place // 12 == (place + 3) // 12
    # Draws are as they were, and no seed has more documents than it may.
    assert [seed for seed, _ in found[::4]] == [s for s, _ in documents_of(one)[: len(found) // 4]]
    most = max(collections.Counter(seed for seed, _ in found).values())
    assert most == (12 if weights is None else 8)


def test_requests_of_a_seed_have_one_prompt(tmp_path):
    seeds = types.SimpleNamespace(prompts=[[3, seed, 1] for seed in range(5)])
    plan = Plan(list("abcde"), 0, documents_per_shard=6, samples_per_seed=30, samples_together=3)
    work = Work(epath.Path(tmp_path), seeds, plan, None, None, None)
    asked = [one for number in (0, 1) for one in work.requests(number)]
    assert [one.index for one in asked] == list(range(12))
    seeds = [one.prompt[1] for one in asked]
    assert seeds[::3] == seeds[1::3] == seeds[2::3]
    assert len({one.key.tobytes() for one in asked}) == 12


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"source": "x"}, r"'quality'.*'id7' has no such feature \(it has \['source'\]\)"),
        ({"quality": "good"}, "'id7' has 'good' there: expected a finite number of at least 0"),
        ({"quality": ""}, "'id7' has '' there"),
        ({"quality": "-0.5"}, "'id7' has '-0.5' there"),
        ({"quality": "nan"}, "'id7' has 'nan' there"),
        ({"quality": "inf"}, "'id7' has 'inf' there"),
    ],
)
def test_a_bad_weight_is_told_with_its_document(features, message):
    good = Document("id6", "text", {"quality": "1e-3"})
    assert read_weights([good], "quality").tolist() == [1e-3]
    with pytest.raises(UserError, match=message) as raised:
        read_weights([good, Document("id7", "text", features)], "quality")
    assert "\n" not in raised.value.message


def test_seeds_without_any_weight_are_refused():
    nothing = [Document(f"id{i}", "text", {"quality": "0"}) for i in range(3)]
    with pytest.raises(UserError, match="all 3 seeds have weight 0"):
        read_weights(nothing, "quality")
