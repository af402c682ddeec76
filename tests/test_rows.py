"""Packed rows: no token lost, none twice, every segment its own."""

from __future__ import annotations

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rows import BOS, EOS, sentences, write_rows_artefact

from sbp_jax.data import rows
from sbp_jax.errors import UserError

DOCUMENTS = st.lists(st.lists(st.integers(4, 99), max_size=40), max_size=30)


def segments(row: rows.Row):
    """The segments of a row, in order."""
    for segment in range(1, row.segment_ids.max(initial=0) + 1):
        at = np.flatnonzero(row.segment_ids == segment)
        assert (np.diff(at) == 1).all()
        assert row.positions[at].tolist() == list(range(len(at)))
        yield row.inputs[at].tolist(), row.targets[at].tolist(), row.loss_weights[at].tolist()


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS, st.integers(2, 24), st.integers(1, 5))
def test_packing_keeps_every_token_once(documents, length, open_rows):
    pieces = [
        part
        for tokens in documents
        for part in rows.split(rows.document_piece(tokens, BOS, EOS), length)
    ]
    found = []
    for row in rows.pack(pieces, length, open_rows):
        assert all(len(field) == length for field in row)
        padding = row.segment_ids == 0
        assert not row.loss_weights[padding].any()
        assert not row.targets[padding].any()
        found += [(tuple(i), tuple(t)) for i, t, _ in segments(row)]
    wanted = [(tuple(p.inputs.tolist()), tuple(p.targets.tolist())) for p in pieces]
    assert sorted(found) == sorted(wanted)
    assert sum(len(t) for _, t in found) == sum(len(d) + 1 for d in documents)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(4, 99), max_size=60), st.integers(2, 16))
def test_a_long_document_goes_on_where_it_was_cut(tokens, length):
    parts = list(rows.split(rows.document_piece(tokens, BOS, EOS), length))
    targets = [t for part in parts for t in part.targets.tolist()]
    inputs = [i for part in parts for i in part.inputs.tolist()]
    assert targets == [*tokens, EOS]
    assert inputs == [BOS, *tokens]


def test_a_document_that_brings_its_end_gets_no_second():
    assert rows.document_piece([5, 6, EOS], BOS, EOS).targets.tolist() == [5, 6, EOS]
    assert rows.document_piece([], BOS, EOS).targets.tolist() == [EOS]


def test_a_pair_has_loss_on_its_second_document_alone():
    piece = rows.pair_piece([10, 11, 12], [20, 21], BOS, EOS, seed_length=2, target_length=5)
    assert piece.inputs.tolist() == [BOS, 10, 11, EOS, 20, 21]
    assert piece.targets.tolist() == [10, 11, EOS, 20, 21, EOS]
    assert piece.loss_weights.tolist() == [0, 0, 0, 1, 1, 1]
    # What the synthesizer reads before its first token is what the sampler gives it.
    prompt = rows.prompt([10, 11, 12], 2, BOS, EOS)
    assert piece.inputs[: len(prompt)].tolist() == prompt
    cut = rows.pair_piece([10], [20, 21, 22], BOS, EOS, seed_length=2, target_length=2)
    assert cut.targets[cut.loss_weights > 0].tolist() == [20, 21]


def test_packing_leaves_little_padding():
    pieces = [rows.document_piece(d, BOS, EOS) for d in sentences(2000, 64, 0)]
    packed = list(rows.pack(pieces, 64))
    padding = sum(int((row.segment_ids == 0).sum()) for row in packed)
    assert padding / (64 * len(packed)) < 0.02


def test_a_piece_too_long_for_a_row_is_refused():
    with pytest.raises(ValueError, match="9 tokens does not fit a row of 8"):
        list(rows.pack([rows.document_piece([4] * 8, BOS, EOS)], 8))


def test_rows_come_back_from_disk_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "ROWS_PER_SHARD", 7)
    made = list(rows.pack((rows.document_piece(d, BOS, EOS) for d in sentences(60, 64, 0)), 48))
    count, padding = rows.write_rows(epath.Path(tmp_path), iter(made))
    assert count == len(made) > 14
    assert padding == sum(int((row.segment_ids == 0).sum()) for row in made)
    source = rows.RowSource("x", epath.Path(tmp_path), 1.0, count, 1, 1, 1, 1, 48, 64)
    records = source.open()
    for index, row in enumerate(made):
        for field, wanted in zip(rows.decode(records[index], 48), row, strict=True):
            assert field.dtype == wanted.dtype
            np.testing.assert_array_equal(field, wanted)
    with pytest.raises(ValueError, match="takes 940 bytes"):
        rows.decode(records[0], 47)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row._replace(inputs=row.inputs + 60), "token 1.. is none of a vocabulary"),
        (lambda row: row._replace(targets=row.targets - 60), "token -.. is none of a vocabulary"),
        (
            lambda row: rows.Row(*(x[:40] for x in row)),
            "a row of 48 tokens takes 960 bytes, not 800",
        ),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path, change, message):
    made = list(rows.pack((rows.document_piece(d, BOS, EOS) for d in sentences(20, 64, 0)), 48))
    made[1] = change(made[1])
    count, _ = rows.write_rows(epath.Path(tmp_path), iter(made))
    source = rows.RowSource("x", epath.Path(tmp_path), 1.0, count, 1, 1, 1, 1, 48, 64)
    records = source.open()
    source.read(records, 0)
    with pytest.raises(UserError, match=rf"row 1 of .* is damaged \({message}"):
        source.read(records, 1)


def test_missing_shards_are_noticed(tmp_path):
    write_rows_artefact(tmp_path, "rows", {"a": list(sentences(30, 64, 0))})
    source = rows.open_rows(tmp_path / "rows").sources["a"]
    assert len(source.open()) == source.rows
    (tmp_path / "rows/a/rows-00000.array_record").unlink()
    with pytest.raises(UserError, match="holds 0 rows, its manifest says"):
        source.open()
