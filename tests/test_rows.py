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


def as_row(pieces, length: int) -> rows.Row:
    return rows.decode(rows.encode(pieces, 100), length, 100)


def segments(row: rows.Row):
    """The segments of a row, in order."""
    for segment in range(1, row.segment_ids.max(initial=0) + 1):
        at = np.flatnonzero(row.segment_ids == segment)
        assert (np.diff(at) == 1).all()
        assert row.positions[at].tolist() == list(range(len(at)))
        yield row.inputs[at].tolist(), row.targets[at].tolist(), row.loss_weights[at].tolist()


def inputs(piece: rows.Piece) -> list[int]:
    return [piece.first, *piece.targets[:-1].tolist()]


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS, st.integers(2, 24), st.integers(1, 5))
def test_packing_keeps_every_token_once(documents, length, open_rows):
    pieces = [
        part
        for tokens in documents
        for part in rows.split(rows.document_piece(tokens, BOS, EOS), length)
    ]
    found = []
    for packed in rows.pack(pieces, length, open_rows):
        row = as_row(packed, length)
        assert all(len(field) == length for field in row)
        padding = row.segment_ids == 0
        assert not row.loss_weights[padding].any()
        assert not row.targets[padding].any()
        assert not row.inputs[padding].any()
        found += [(tuple(i), tuple(t)) for i, t, _ in segments(row)]
    wanted = [(tuple(inputs(p)), tuple(p.targets.tolist())) for p in pieces]
    assert sorted(found) == sorted(wanted)
    assert sum(len(t) for _, t in found) == sum(len(d) + 1 for d in documents)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(4, 99), max_size=60), st.integers(2, 16))
def test_a_long_document_goes_on_where_it_was_cut(tokens, length):
    parts = list(rows.split(rows.document_piece(tokens, BOS, EOS), length))
    targets = [t for part in parts for t in part.targets.tolist()]
    assert targets == [*tokens, EOS]
    assert [i for part in parts for i in inputs(part)] == [BOS, *tokens]
    assert [part.part for part in parts] == list(range(len(parts)))
    assert {part.parts for part in parts} == {len(parts)}


def test_a_document_that_brings_its_end_gets_no_second():
    assert rows.document_piece([5, 6, EOS], BOS, EOS).targets.tolist() == [5, 6, EOS]
    assert rows.document_piece([], BOS, EOS).targets.tolist() == [EOS]


def test_a_pair_has_loss_on_its_second_document_alone():
    piece = rows.pair_piece([10, 11, 12], [20, 21], BOS, EOS, seed_length=2, target_length=5)
    row = as_row([piece], 8)
    assert row.inputs.tolist() == [BOS, 10, 11, EOS, 20, 21, 0, 0]
    assert row.targets.tolist() == [10, 11, EOS, 20, 21, EOS, 0, 0]
    assert row.loss_weights.tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert piece.loss_tokens == 3
    # What the synthesizer reads before its first token is what the sampler gives it.
    prompt = rows.prompt([10, 11, 12], 2, BOS, EOS)
    assert row.inputs[: len(prompt)].tolist() == prompt
    cut = rows.pair_piece([10], [20, 21, 22], BOS, EOS, seed_length=2, target_length=2)
    assert cut.targets[cut.loss_from :].tolist() == [20, 21]


def test_packing_leaves_little_padding():
    pieces = [rows.document_piece(d, BOS, EOS) for d in sentences(2000, 64, 0)]
    packed = list(rows.pack(pieces, 64))
    used = sum(len(piece.targets) for row in packed for piece in row)
    assert used / (64 * len(packed)) > 0.98


def test_a_piece_too_long_for_a_row_is_refused():
    with pytest.raises(ValueError, match="9 tokens does not fit a row of 8"):
        list(rows.pack([rows.document_piece([4] * 8, BOS, EOS)], 8))


@pytest.mark.parametrize("vocab_size", [64, 1 << 16, 1 << 17])
def test_rows_come_back_from_disk_as_they_were(tmp_path, vocab_size):
    top = vocab_size - 1
    documents = [[*tokens, top, 4] for tokens in sentences(60, 64, 0)]
    pieces = [
        piece._replace(document=number)
        for number, tokens in enumerate(documents)
        for piece in rows.split(rows.document_piece(tokens, BOS, EOS), 20)
    ]
    made = list(rows.pack(pieces, 20))
    count = rows.write_rows(tmp_path / "rows-00000.array_record", iter(made), vocab_size)
    assert count == len(made)
    records = source(tmp_path, count, 20, vocab_size).open()
    for index, wanted in enumerate(made):
        for piece, other in zip(
            rows.decode_pieces(records[index], vocab_size), wanted, strict=True
        ):
            np.testing.assert_array_equal(piece.targets, other.targets)
            assert piece[1:] == other[1:]
        row = source(tmp_path, count, 20, vocab_size).read(records, index)
        assert [field.dtype for field in row] == [np.int32] * 4 + [np.float32]
        assert top in row.targets or top not in np.concatenate([p.targets for p in wanted])


def source(directory, count: int, length: int, vocab_size: int) -> rows.RowSource:
    return rows.RowSource("x", epath.Path(directory), 1.0, count, 1, 1, 1, 1, length, vocab_size)


def test_tokens_that_are_none_are_not_written():
    for piece in (rows.document_piece([99], BOS, EOS), rows.Piece(np.array([-1]), BOS)):
        with pytest.raises(ValueError, match="is none of a vocabulary of 64"):
            rows.encode([piece], 64)


GOOD = rows.encode([rows.document_piece([5, 6], BOS, EOS), rows.document_piece([7], 3, EOS)], 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:-2], "do not add up to its 4 tokens"),
        (GOOD[:-1], "are no row of 2 segments"),
        (GOOD[:20], "20 bytes are no row of 2 segments"),
        (GOOD[:-2] + b"\x40\x00", "token 64 is none of a vocabulary of 64"),
        (GOOD[:8] + b"\xff" + GOOD[9:], "token 255 is none of a vocabulary of 64"),
        (GOOD[:4] + bytes([0xFF] * 4) + GOOD[8:], "do not add up"),
        (rows.encode([rows.document_piece([5] * 20, BOS, EOS)], 64), "do not fit a row of 8"),
        (b"", "0 bytes are no row"),
    ],
)
def test_a_row_that_is_none_is_named(content, message):
    with pytest.raises(UserError, match=f"row 0 of .* is damaged .*{message}"):
        source("/nowhere", 1, 8, 64).read([content], 0)
    assert source("/nowhere", 1, 8, 64).read([GOOD], 0).targets.tolist()[:5] == [5, 6, EOS, 7, EOS]


def test_missing_shards_are_noticed(tmp_path):
    write_rows_artefact(tmp_path, "rows", {"a": list(sentences(30, 64, 0))})
    source = rows.open_rows(tmp_path / "rows").sources["a"]
    assert len(source.open()) == source.rows
    (tmp_path / "rows/a/rows-00000.array_record").unlink()
    with pytest.raises(UserError, match="holds 0 rows, its manifest says"):
        source.open()


def test_what_is_gone_on_with_is_cut_on_the_left():
    piece = rows.continued_piece([5, 6, 7], [8, 9], 0, 4)
    assert (piece.first, piece.targets.tolist(), piece.loss_from) == (5, [6, 7, 8, 9], 2)
    piece = rows.continued_piece([5, 6, 7], [8, 9], 0, 5)
    assert (piece.first, piece.targets.tolist(), piece.loss_from) == (0, [5, 6, 7, 8, 9], 3)
    with pytest.raises(ValueError, match="2 targets do not fit a row of 1"):
        rows.continued_piece([5], [8, 9], 0, 1)
