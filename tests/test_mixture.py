"""Mixtures: exact numbers of rows, settled before the run; no repeats where there must be none."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbp_jax.data import mixture, rows
from sbp_jax.errors import UserError


def artefact(*sizes: int, **changes) -> rows.RowsArtefact:
    """An artefact of sources with so many rows, of which each holds 7 tokens and is 8 long."""
    rates = changes.pop("rates", [1.0] * len(sizes))
    name = changes.pop("name", "s")
    sources = {
        f"{name}{i}": rows.RowSource(
            **{
                "name": f"{name}{i}",
                "directory": None,
                "rate": rate,
                "rows": count,
                "tokens": 7 * count,
                "loss_tokens": 7 * count,
                "documents": count,
                "bytes": count,
                "length": 8,
                "vocab_size": 64,
                **changes,
            }
        )
        for i, (count, rate) in enumerate(zip(sizes, rates, strict=True))
    }
    return rows.RowsArtefact(None, changes.get("length", 8), 64, sources)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 1)), min_size=1, max_size=4),
    st.integers(1, 60),
    st.integers(1, 5),
)
def test_each_source_gets_its_share_to_the_row(sizes, steps, batch_size):
    real = artefact(*(n for n, _ in sizes), rates=[rate for _, rate in sizes])
    found = mixture.plan({"real": real}, {"real": 0.3}, steps, batch_size)
    assert sum(share.slots for share in found.shares) == steps * batch_size
    total = sum(rate for _, rate in sizes)
    for share, (_, rate) in zip(found.shares, sizes, strict=True):
        assert abs(share.slots - steps * batch_size * rate / total) <= 1


def test_an_artefacts_share_is_split_by_its_own_rates():
    found = mixture.plan(
        {"a": artefact(50, 50, rates=[3, 1], name="a"), "b": artefact(50, name="b")},
        {"a": 0.8, "b": 0.2},
        steps=10,
        batch_size=10,
    )
    assert [share.slots for share in found.shares] == [60, 20, 20]
    assert found.shares[0].passes == 1.2
    assert found.summary()["a0"] == {
        "rows": 60,
        "unique_rows": 50,
        "passes": 1.2,
        "tokens": 350,
        "synthetic": False,
    }


def test_token_budgets_become_steps_and_rows():
    artefacts = {"real": artefact(40, name="r"), "synthetic": artefact(100, name="w", repeat=False)}
    found = mixture.plan(artefacts, {"real": 7 * 125, "synthetic": 7 * 75}, None, 8)
    assert found.steps == 25  # 200 rows of 7 tokens
    assert [share.slots for share in found.shares] == [125, 75]
    # All there is of a source may be asked for, to the token.
    found = mixture.plan(artefacts, {"real": 0, "synthetic": 7 * 100}, None, 10)
    assert [share.slots for share in found.shares] == [0, 100]
    with pytest.raises(UserError, match="fill no batch of 8 rows"):
        mixture.plan(artefacts, {"real": 0.7, "synthetic": 0.3}, None, 8)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 16))
def test_budgets_are_never_exceeded(real, written, batch_size):
    artefacts = {"a": artefact(50, name="a"), "b": artefact(300, name="b", repeat=False)}
    if real + written < batch_size:
        return
    found = mixture.plan(artefacts, {"a": 7 * real, "b": 7 * written}, None, batch_size)
    assert found.shares[0].slots <= real
    assert found.shares[1].slots <= written
    assert real + written - sum(share.slots for share in found.shares) < batch_size


def test_tokens_of_two_vocabularies_are_not_mixed():
    one = artefact(5, name="a")
    other = dataclasses.replace(artefact(5, name="b"), vocabulary="another")
    with pytest.raises(UserError, match="b and a were cached with different vocabularies"):
        mixture.plan({"a": one, "b": other}, {"a": 1, "b": 1}, 4, 1)


def test_shares_may_change_at_a_step():
    artefacts = {"a": artefact(50, name="a"), "b": artefact(50, name="b")}
    found = mixture.plan(artefacts, {"a": 1, "b": 0}, 10, 4, {6: {"a": 1, "b": 3}, 8: {"b": 1}})
    assert found.phases == ((24, 0), (2, 6), (0, 8))
    assert [share.slots for share in found.shares] == [26, 14]


def test_what_must_not_be_repeated_is_not_and_the_message_says_what_fits():
    artefacts = {"a": artefact(10, name="a"), "b": artefact(40, name="b", repeat=False)}
    assert mixture.plan(artefacts, {"a": 1, "b": 1}, 80, 1).shares[1].slots == 40
    with pytest.raises(
        UserError,
        match=r"b0 would be read 1.02 times, but it is marked repeat=False.* 41 rows and there are "
        r"40. Lower its share to 0.4878, take 80 steps",
    ):
        mixture.plan(artefacts, {"a": 1, "b": 1}, 82, 1)
    # Rows before a change of shares count too.
    with pytest.raises(UserError, match=r"would be read 1\.50 times"):
        mixture.plan(artefacts, {"a": 1, "b": 1}, 80, 1, {40: {"b": 1}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": {"a": 1, "b": -1}}, "expected numbers that are 0 or more"),
        ({"shares": {"a": 0}}, "expected numbers that are 0 or more"),
        ({"shares": {"a": float("nan")}}, "expected numbers that are 0 or more"),
        ({"later": {3: {"c": 1}}}, "from step 3 on, c is none of train.rows"),
        ({"later": {10: {"a": 1}}}, "step 10 is none of 10 steps"),
        ({"later": {-1: {"a": 1}}}, "step -1 is none of 10 steps"),
        ({"later": {3: {"a": 1}}, "steps": None}, "train.later needs train.steps"),
        ({"b": artefact(5, name="a")}, "two sources named a0"),
        ({"b": artefact(5, name="b", length=16)}, "b has a length of 16 and a one of 8"),
    ],
)
def test_a_users_mistake_is_one_line(changes, message):
    artefacts = {"a": artefact(5, name="a"), "b": changes.get("b", artefact(5, name="b"))}
    shares, steps = changes.get("shares", {"a": 1, "b": 1}), changes.get("steps", 10)
    with pytest.raises(UserError, match=message) as caught:
        mixture.plan(artefacts, shares, steps, 2, changes.get("later"))
    assert "\n" not in caught.value.message


def test_a_synthetic_source_says_so():
    written = dataclasses.replace(
        artefact(3).sources["s0"], synthetic=True, repeat=False, name="written"
    )
    artefacts = {"w": rows.RowsArtefact(None, 8, 64, {"written": written})}
    with pytest.raises(UserError, match="no synthetic document is read twice"):
        mixture.plan(artefacts, {"w": 1}, 4, 1)
