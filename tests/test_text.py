"""Shingles, near-duplicates and repetition against plain Python that does the same by hand."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbp_jax.text import near_duplicates, repetition, shingles
from sbp_jax.text.ngram_index import NgramIndex

# Few different words, so that runs of words recur within and between texts.
TEXTS = st.lists(st.sampled_from(["a", "b", "Ab", "c1", "é"]), max_size=40).map(" ".join)
SETS = st.lists(
    st.sets(st.integers(0, 25), max_size=12).map(lambda s: np.array(sorted(s), np.uint64)),
    max_size=20,
)


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    tokens = text.lower().split()
    if not tokens:
        return []
    n = min(n, len(tokens))
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def test_words_are_lower_cased_and_free_of_punctuation():
    assert shingles.words("Sum, of `x_1`\nÜBER-all (2.5)!") == [
        *("sum", "of", "x_1", "über", "all", "2", "5")
    ]
    assert shingles.words(" … -- ") == []


@given(TEXTS, TEXTS, st.integers(1, 14))
def test_sets_of_shingles_are_sets_of_runs_of_words(a, b, n):
    sets = [shingles.shingles(text, n) for text in (a, b)]
    runs = [set(ngrams(text, n)) for text in (a, b)]
    for made, expected in zip(sets, runs, strict=True):
        assert made.dtype == np.uint64
        assert np.all(made[1:] > made[:-1])
        assert len(made) == len(expected)
    shared = len(runs[0] & runs[1])
    smaller = min(map(len, runs))
    assert shingles.overlap(*sets) == shared
    assert shingles.containment(*sets) == (shared / smaller if smaller else 0.0)
    union = len(runs[0] | runs[1])
    assert shingles.jaccard(*sets) == (shared / union if union else 0.0)


def test_a_short_text_is_one_shingle_of_all_its_words():
    assert len(shingles.shingles("one two three")) == 1
    assert len(shingles.shingles("")) == 0
    assert shingles.shingles("one two")[0] != shingles.shingles("one")[0]
    twelve, thirteen = "w " * 12, "w " * 13
    assert shingles.containment(shingles.shingles(twelve), shingles.shingles(thirteen)) == 0


def test_order_and_multiplicity_of_words_count():
    one, other = shingles.shingles("a b c d", 3), shingles.shingles("b a c d", 3)
    assert shingles.overlap(one, other) == 0


def test_hashes_are_the_same_in_every_process():
    text = "The quick brown fox jumps over the lazy dog and then sleeps for a while — naïvely"
    program = (
        "from sbp_jax.text import shingles\n"
        f"print([int(x) for x in shingles.shingles({text!r}, 5)])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    expected = [int(x) for x in shingles.shingles(text, 5)]
    assert printed.strip() == str(expected)
    # What an earlier version wrote to disk is still comparable.
    assert [int(x) for x in shingles.shingles("one two three", 2)] == GOLDEN


GOLDEN = [711813036797566393, 10690082035893042353]


@given(SETS, st.sampled_from([0.1, 0.3, 0.5, 0.8, 1.0]), st.sampled_from([1, 7, 10**6]))
@settings(max_examples=300)
def test_pairs_are_those_that_comparing_all_with_all_finds(sets, threshold, meetings_at_once):
    expected = []
    for i in range(len(sets)):
        for j in range(i + 1, len(sets)):
            containment = shingles.containment(sets[i], sets[j])
            if containment >= threshold:
                expected.append((i, j, containment))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_MEETINGS_AT_ONCE", meetings_at_once)
        assert near_duplicates.near_duplicate_pairs(sets, threshold) == expected


def test_an_overlap_of_exactly_the_threshold_is_found_though_its_product_rounds_up():
    assert 0.07 * 100 > 7
    one, other = np.arange(100, dtype=np.uint64), np.arange(93, 193, dtype=np.uint64)
    assert near_duplicates.near_duplicate_pairs([one, other], 0.07) == [(0, 1, 0.07)]


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01])
def test_a_threshold_that_means_nothing_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold"):
        near_duplicates.near_duplicate_pairs([], threshold)


def test_boilerplate_in_every_document_is_looked_up_in_none():
    rng = np.random.default_rng(0)
    boilerplate = rng.integers(0, 2**63, 100, np.uint64)
    own = rng.integers(0, 2**63, (5000, 120), np.uint64)
    sets = [np.concatenate([boilerplate, row]) for row in own]
    sets[4000][100:] = sets[7][100:]
    sets[4000][-1] += np.uint64(1)
    index = near_duplicates._Index(sets)
    looked_up = np.concatenate(list(index.batches(0.5)))
    # 111 of the 220 shingles, the rarest first: each but those two documents' meets itself alone
    assert len(looked_up) == 5000 * 111
    assert index.frequency[index.shingles[looked_up]].max() == 2
    assert near_duplicates.near_duplicate_pairs(sets, 0.5) == [(7, 4000, 219 / 220)]


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=12),
        )
    )
)
def test_clusters_are_connected_components(case):
    n, pairs = case
    labels = list(range(n))
    for _ in range(n):  # the lowest label spreads one step a round
        for i, j in pairs:
            labels[i] = labels[j] = min(labels[i], labels[j])
    assert near_duplicates.clusters(n, pairs).tolist() == labels


def test_clusters_take_the_pairs_as_they_are_found_and_refuse_others():
    assert near_duplicates.clusters(4, [(1, 3, 0.7)]).tolist() == [0, 1, 2, 1]
    assert near_duplicates.clusters(0, []).tolist() == []
    for pair in ((0, 4), (-1, 0)):
        with pytest.raises(IndexError, match="outside"):
            near_duplicates.clusters(4, [pair])


@given(TEXTS, st.integers(1, 6))
def test_repetition_is_the_share_of_runs_that_stood_before(text, n):
    runs = ngrams(text, n)
    repeats = sum(run in runs[:i] for i, run in enumerate(runs))
    expected = repeats / len(runs) if runs else 0.0
    assert repetition.repetition(text, n) == pytest.approx(expected)


def test_repetition_of_short_and_of_looping_text():
    assert repetition.repetition("") == 0
    assert repetition.repetition("the the the the") == 0
    assert repetition.repetition("a b c d e f g") == 0
    assert repetition.repetition("go on and on " * 50) > 0.97


@pytest.mark.parametrize("n", [0, -3])
def test_runs_of_no_words_are_refused(n):
    with pytest.raises(ValueError, match="at least 1 word"):
        shingles.shingles("a b", n)
    with pytest.raises(ValueError, match="at least 1 word"):
        repetition.repetition("a b", n)


def test_an_index_finds_the_text_that_is_contained_most():
    words = [[f"w{text}x{place}" for place in range(40)] for text in range(3)]
    index = NgramIndex((f"t{i}", " ".join(one)) for i, one in enumerate(words))
    whole = " ".join(["before", *words[1], "after"])
    assert index.most_contained(whole) == ("t1", 1.0)
    # The smaller of the two counts, whichever it is.
    assert index.most_contained(" ".join(words[2][5:25])) == ("t2", 1.0)
    mixed = " ".join([*words[0][:20], *words[1][:30], *(f"other{i}" for i in range(50))])
    assert index.most_contained(mixed) == ("t1", pytest.approx(18 / 28))
    assert index.most_contained("nothing of it at all") is None
    assert index.most_contained("") is None
    assert NgramIndex([]).most_contained(whole) is None
