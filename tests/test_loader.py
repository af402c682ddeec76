"""The row order: exact shares, exact passes, and nothing but (seed, step) decides it."""

from __future__ import annotations

import collections

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rows import sentences, write_rows_artefact

from sbp_jax.data import loader, rows
from sbp_jax.errors import UserError
from sbp_jax.parallel.mesh import MeshConfig, make_layout


def source(count: int, rate: float = 1.0, synthetic: bool = False, name: str = "s"):
    return rows.RowSource(name, None, rate, count, count, count, count, count, 8, 64, synthetic)


def artefact(*sources):
    named = {f"s{i}": s for i, s in enumerate(sources)}
    return rows.RowsArtefact(None, 8, 64, named)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 1)), min_size=1, max_size=4),
    st.integers(1, 300),
)
def test_each_source_gets_its_share_and_each_row_its_passes(sizes, slots):
    shares = loader.plan_shares(artefact(*(source(n, r) for n, r in sizes)), slots)
    assert sum(share.slots for share in shares) == slots
    total = sum(rate for _, rate in sizes)
    order = loader.RowOrder(shares, seed=3)
    found = [order[slot] for slot in range(len(order))]
    for index, (share, (count, rate)) in enumerate(zip(shares, sizes, strict=True)):
        assert abs(share.slots - slots * rate / total) <= 1
        taken = [row for one, row in found if one == index]
        assert len(taken) == share.slots
        # Every pass is whole before the next begins.
        for start in range(0, len(taken), count):
            part = taken[start : start + count]
            assert len(set(part)) == len(part)
    for slot in (0, slots // 2, slots):
        seen = collections.Counter(index for index, _ in found[:slot])
        assert order.slots_before(slot) == [seen[i] for i in range(len(shares))]


def test_sources_are_spread_evenly():
    shares = loader.plan_shares(artefact(source(70, 0.7), source(30, 0.3)), 1000)
    order = loader.RowOrder(shares, seed=0)
    for start in range(0, 1000, 50):
        real = sum(order[slot][0] == 0 for slot in range(start, start + 50))
        assert abs(real - 35) <= 1


def test_passes_and_seeds_have_orders_of_their_own():
    shares = loader.plan_shares(artefact(source(50)), 150)
    first = loader.RowOrder(shares, seed=0)
    passes = [[first[i][1] for i in range(p * 50, p * 50 + 50)] for p in range(3)]
    assert all(sorted(one) == list(range(50)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    other = loader.RowOrder(shares, seed=1)
    assert [other[i][1] for i in range(50)] != passes[0]


def test_a_synthetic_source_is_never_read_twice():
    real, written = source(10, 0.5), source(40, 0.5, synthetic=True, name="synthetic")
    shares = loader.plan_shares(artefact(real, written), 80)
    order = loader.RowOrder(shares, seed=0)
    taken = [row for index, row in (order[i] for i in range(80)) if index == 1]
    assert sorted(taken) == list(range(40))
    with pytest.raises(UserError, match=r"synthetic would be read 1.02 times.*share to 0.4878"):
        loader.plan_shares(artefact(real, written), 82)


def test_processes_together_read_what_one_reads(tmp_path):
    write_rows_artefact(
        tmp_path,
        "rows",
        {"a": list(sentences(60, 64, 0)), "b": list(sentences(60, 64, 1))},
        rates={"a": 0.7, "b": 0.3},
    )
    data = rows.open_rows(tmp_path / "rows")
    order = loader.RowOrder(loader.plan_shares(data, 10 * 8), seed=0)
    whole = list(loader.batches(order, 8, np.arange(8), 0, 10))
    assert len(whole) == 10
    first = list(loader.batches(order, 8, np.arange(3), 0, 10))
    second = list(loader.batches(order, 8, np.arange(3, 8), 0, 10))
    for one, two, both in zip(first, second, whole, strict=True):
        np.testing.assert_array_equal(np.concatenate([one.targets, two.targets]), both.targets)
    resumed = list(loader.batches(order, 8, np.arange(8), 6, 10))
    for after, before in zip(resumed, whole[6:], strict=True):
        for field, wanted in zip(after, before, strict=True):
            np.testing.assert_array_equal(field, wanted)


def test_local_slots_are_those_of_the_sharding():
    layout = make_layout(MeshConfig(), jax.devices())
    np.testing.assert_array_equal(loader.local_slots(layout.sharding("batch"), 16), np.arange(16))


def test_in_order_reads_every_row_once_and_pads_the_last_batch(tmp_path):
    write_rows_artefact(tmp_path, "rows", {"a": list(sentences(50, 64, 0))})
    one = rows.open_rows(tmp_path / "rows").sources["a"]
    batches = list(loader.in_order(one, 4))
    assert all(batch.targets.shape == (4, one.length) for batch in batches)
    found = np.concatenate([batch.targets for batch in batches])[: one.rows]
    records = one.open()
    wanted = np.stack([rows.decode(records[i], one.length).targets for i in range(one.rows)])
    np.testing.assert_array_equal(found, wanted)
    assert sum(batch.loss_weights.sum() for batch in batches) == one.loss_tokens


def test_batches_that_do_not_divide_are_refused():
    loader.check_batch(16, 8, 2)
    for batch, shards, accumulation in ((12, 8, 1), (8, 8, 2), (0, 1, 1)):
        with pytest.raises(UserError, match=f"batch_size = {batch} is no multiple"):
            loader.check_batch(batch, shards, accumulation)
