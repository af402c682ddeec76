"""The row order: exact shares, exact passes, and nothing but (seed, step) decides it."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import jax
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rows import sentences, write_rows_artefact
from test_mixture import artefact

from sbp_jax.data import loader, mixture, rows
from sbp_jax.errors import Stopped, UserError
from sbp_jax.parallel.mesh import MeshConfig, make_layout


def mix(sizes: Sequence[tuple[int, float]], steps: int, batch_size: int = 1, **changes):
    """A mixture of sources that have so many rows and such shares."""
    artefacts = {
        f"s{i}": artefact(count, name=f"s{i}", **changes) for i, (count, _) in enumerate(sizes)
    }
    shares = {f"s{i}": share for i, (_, share) in enumerate(sizes)}
    return mixture.plan(artefacts, shares, steps, batch_size)


SIZES = st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 1)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 120), st.data())
def test_each_source_gets_its_slots_and_each_row_its_passes(sizes, slots, data):
    artefacts = {f"s{i}": artefact(count, name=f"s{i}") for i, (count, _) in enumerate(sizes)}
    shares = {f"s{i}": share for i, (_, share) in enumerate(sizes)}
    changed = data.draw(st.dictionaries(st.integers(1, max(1, slots - 1)), st.just({"s0": 1})))
    later = {step: change for step, change in changed.items() if step < slots}
    mixed = mixture.plan(artefacts, shares, slots, 1, later)
    order = loader.RowOrder(mixed, seed=3)
    found = [order[slot] for slot in range(len(order))]
    assert len(found) == slots
    for index, share in enumerate(mixed.shares):
        taken = [row for one, row in found if one == index]
        assert len(taken) == share.slots
        # Every pass is whole before the next begins.
        for start in range(0, len(taken), share.source.rows):
            part = taken[start : start + share.source.rows]
            assert len(set(part)) == len(part)
    for slot in (0, slots // 2, slots, *later):
        seen = collections.Counter(index for index, _ in found[:slot])
        assert order.slots_before(slot) == [seen[i] for i in range(len(sizes))]
    for step in later:
        assert all(index == 0 for index, _ in found[step:])


def test_sources_are_spread_evenly():
    order = loader.RowOrder(mix([(70, 0.7), (30, 0.3)], 1000), seed=0)
    for start in range(0, 1000, 50):
        real = sum(order[slot][0] == 0 for slot in range(start, start + 50))
        assert abs(real - 35) <= 1


def test_passes_and_seeds_have_orders_of_their_own():
    first = loader.RowOrder(mix([(50, 1)], 150), seed=0)
    passes = [[first[i][1] for i in range(p * 50, p * 50 + 50)] for p in range(3)]
    assert all(sorted(one) == list(range(50)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    other = loader.RowOrder(mix([(50, 1)], 150), seed=1)
    assert [other[i][1] for i in range(50)] != passes[0]


@pytest.fixture(scope="module")
def rows_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("loader")
    return write_rows_artefact(
        directory,
        "rows",
        {"a": list(sentences(60, 64, 0)), "b": list(sentences(60, 64, 1))},
        rates={"a": 0.7, "b": 0.3},
    )


def hosts(count: int, batch_size: int) -> list[np.ndarray]:
    """The rows of a batch that each of some hosts reads."""
    return np.array_split(np.arange(batch_size), count)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3, 8]), min_size=1, max_size=4), st.data())
def test_one_pass_reads_every_row_once_however_hosts_come_and_go(rows_directory, counts, data):
    one = rows.open_rows(rows_directory)
    source = one.sources["a"]
    alone = rows.RowsArtefact(one.directory, one.length, one.vocab_size, {"a": source})
    steps = source.rows // 8
    order = loader.RowOrder(mixture.plan({"r": alone}, {"r": 1}, steps, 8), seed=5)
    stops = sorted(data.draw(st.integers(0, steps)) for _ in counts[1:])
    read = []
    for count, start, stop in zip(counts, [0, *stops], [*stops, steps], strict=True):
        parts = [
            list(loader.batches(order, slots, start, stop, loader.BadRows(0)))
            for slots in hosts(count, 8)
        ]
        for batch in zip(*parts, strict=True):
            read.append(np.concatenate([part.targets for part in batch]))
    records = source.open()
    everything = [source.read(records, i).targets.tobytes() for i in range(source.rows)]
    found = [row.tobytes() for row in np.concatenate(read)] if read else []
    assert len(found) == 8 * steps
    assert not collections.Counter(found) - collections.Counter(everything)
    assert found == [everything[order[slot][1]] for slot in range(8 * steps)]


def damage(directory, broken: Sequence[int]) -> rows.RowSource:
    """The rows of a source, of which some end too early."""
    one = rows.open_rows(directory.parent).sources[directory.name]
    records = [one.open()[index] for index in range(one.rows)]
    (path,) = directory.glob("rows-*")
    writer = ArrayRecordWriter(str(path), rows.WRITER_OPTIONS)
    for index, record in enumerate(records):
        writer.write(record[:-2] if index in broken else record)
    writer.close()
    return one


def of_one(source: rows.RowSource, steps: int, batch_size: int) -> loader.RowOrder:
    artefact = rows.RowsArtefact(source.directory, source.length, source.vocab_size, {"a": source})
    return loader.RowOrder(mixture.plan({"r": artefact}, {"r": 1}, steps, batch_size), 0)


def test_a_row_that_cannot_be_read_is_left_out_and_counted(tmp_path, caplog):
    write_rows_artefact(tmp_path, "rows", {"a": list(sentences(200, 64, 0))})
    source = damage(tmp_path / "rows" / "a", [3, 7])
    steps = source.rows // 8
    order, bad = of_one(source, steps, 8), loader.BadRows(0)
    batches = list(loader.batches(order, np.arange(8), 0, steps, bad))
    places = [slot for slot in range(8 * steps) if order[slot][1] in (3, 7)]
    empty = [
        8 * step + place
        for step, batch in enumerate(batches)
        for place in np.flatnonzero(batch.loss_weights.sum(axis=1) == 0).tolist()
    ]
    assert empty == places == sorted(bad.slots)
    assert bad.before(places[0]) == 0
    assert bad.before(places[0] + 1) == 1
    assert f"row 3 of {source.directory} is damaged" in caplog.text
    # What is scored must be whole.
    with pytest.raises(UserError, match=r"row 3 of .* is damaged"):
        list(loader.in_order(source, 8))


def test_too_many_bad_rows_end_the_run(tmp_path):
    write_rows_artefact(tmp_path, "rows", {"a": list(sentences(200, 64, 0))})
    source = damage(tmp_path / "rows" / "a", range(0, 40, 2))
    order = of_one(source, 10, 8)
    with pytest.raises(Stopped, match=r"\d of \d+ rows could not be read, the last: row \d+ of"):
        list(loader.batches(order, np.arange(8), 0, 10, loader.BadRows(0.01)))
    assert len(list(loader.batches(order, np.arange(8), 0, 10, loader.BadRows(0.9)))) == 10


def test_bytes_that_changed_on_disk_are_noticed(tmp_path):
    write_rows_artefact(tmp_path, "rows", {"a": list(sentences(200, 64, 0))})
    source = rows.open_rows(tmp_path / "rows").sources["a"]
    (path,) = source.directory.glob("rows-*")
    content = bytearray(path.read_bytes())
    content[content.find(b"\x28\xb5\x2f\xfd") + 20] ^= 0xFF  # within the first compressed record
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"row 0 of .* is damaged"):
        source.read(source.open(), 0)
    path.write_bytes(bytes(content[: len(content) // 2]))
    with pytest.raises(UserError, match="cannot be read"):
        source.open()


def test_processes_together_read_what_one_reads(rows_directory):
    mixed = mixture.plan({"r": rows.open_rows(rows_directory)}, {"r": 1}, 10, 8)
    order, bad = loader.RowOrder(mixed, seed=0), loader.BadRows(0)
    whole = list(loader.batches(order, np.arange(8), 0, 10, bad))
    assert len(whole) == 10
    first = list(loader.batches(order, np.arange(3), 0, 10, bad))
    second = list(loader.batches(order, np.arange(3, 8), 0, 10, bad))
    for one, two, both in zip(first, second, whole, strict=True):
        np.testing.assert_array_equal(np.concatenate([one.targets, two.targets]), both.targets)
    resumed = list(loader.batches(order, np.arange(8), 6, 10, bad))
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
    wanted = np.stack([one.read(records, i).targets for i in range(one.rows)])
    np.testing.assert_array_equal(found, wanted)
    assert sum(batch.loss_weights.sum() for batch in batches) == one.loss_tokens


def test_batches_that_do_not_divide_are_refused():
    loader.check_batch(16, 8, 2)
    for batch, shards, accumulation in ((12, 8, 1), (8, 8, 2), (0, 1, 1)):
        with pytest.raises(UserError, match=f"batch_size = {batch} is no multiple"):
            loader.check_batch(batch, shards, accumulation)
