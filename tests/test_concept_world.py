"""The concept world: what is stated hangs on the concept, and its best loss is its entropy."""

from __future__ import annotations

import collections
import dataclasses
import math

import gin
import numpy as np
import pytest
import seqio

import tasks.concept_world
from sbp_jax.data import tasks as task_registry
from sbp_jax.data.concept_world import SPECIAL, ConceptDocuments, ConceptWorld, word
from sbp_jax.errors import UserError

WORLD = ConceptWorld(concepts=30, attributes=5, values=7, genres=4, phrasings=2, recap=2)


def test_documents_state_the_facts_of_the_concept_that_they_name():
    for document in WORLD.documents(0, 200):
        facts = dict(enumerate(WORLD.facts[document.concept].tolist()))
        stated = WORLD.stated(document.tokens)
        assert dict(stated) == facts
        assert len(stated) == WORLD.attributes + WORLD.recap
        assert all(facts[attribute] == value for attribute, value in stated)
        assert WORLD.named(document.tokens) == document.concept
        assert WORLD.genre(document.tokens) == document.genre
        assert len(document.tokens) == WORLD.length
        assert max(document.tokens) < WORLD.vocab_size


def test_a_concept_is_named_before_equal_shares_of_its_attributes_and_before_the_recap():
    name = SPECIAL + WORLD.genres + 3
    for mentions, places in ((1, [1, 12]), (2, [1, 6, 13]), (5, [1, 4, 7, 10, 13, 16])):
        world = dataclasses.replace(WORLD, mentions=mentions)
        tokens = world.write(3, np.random.default_rng(0)).tokens
        assert [place for place, token in enumerate(tokens) if token == name] == places
        assert len(tokens) == world.length
    world = dataclasses.replace(WORLD, mentions=2, recap=0)
    assert world.write(3, np.random.default_rng(0)).tokens.count(name) == 2
    assert len(world.write(3, np.random.default_rng(0)).tokens) == world.length


def test_genres_differ_in_order_and_words_and_agree_in_what_they_state():
    rng = np.random.default_rng(0)
    by_genre = {}
    for _ in range(200):
        document = WORLD.write(3, rng)
        by_genre.setdefault(document.genre, document.tokens)
    assert len(by_genre) == WORLD.genres
    orders = {tuple(WORLD.stated(tokens)[: WORLD.attributes]) for tokens in by_genre.values()}
    assert len(orders) > 1
    assert len({frozenset(order) for order in orders}) == 1
    cues = [{t for t in tokens if t >= WORLD._first_cue} for tokens in by_genre.values()]
    assert not set.intersection(*cues)


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_the_best_loss_is_the_entropy_of_a_document_over_its_length(skew):
    world = ConceptWorld(
        concepts=3, attributes=2, values=2, genres=2, phrasings=2, mentions=2, recap=1, skew=skew
    )
    count = 60_000
    frequencies = collections.Counter(tuple(d.tokens) for d in world.documents(0, count))
    entropy = -sum(n / count * math.log(n / count) for n in frequencies.values())
    assert entropy / (world.length + 1) == pytest.approx(world.bayes_loss(), abs=2e-3)


def test_streams_are_independent_and_their_first_documents_stay():
    assert list(WORLD.documents(1, 20)) == list(WORLD.documents(1, 50))[:20]
    assert list(WORLD.documents(1, 20)) != list(WORLD.documents(2, 20))
    other = dataclasses.replace(WORLD, seed=1)
    assert not np.array_equal(other.facts, WORLD.facts)


def test_a_perfect_synthesizer_writes_of_the_concepts_that_it_is_given():
    concepts = [4, 4, 9, 0]
    assert [d.concept for d in WORLD.restatements(concepts, 0)] == concepts
    assert list(WORLD.restatements(concepts, 0)) != list(WORLD.restatements(concepts, 1))


def test_d_pretrain_has_as_many_documents_of_each_concept_as_are_asked_for():
    documents = ConceptDocuments(WORLD, documents_per_concept=3).train()
    assert set(collections.Counter(d.concept for d in documents).values()) == {3}
    assert [d.concept for d in documents] != sorted(d.concept for d in documents)
    assert len(ConceptDocuments(WORLD, train_documents=17).train()) == 17


def test_no_two_tokens_have_one_word_and_every_word_is_one():
    words = [word(token) for token in range(5000)]
    assert len(set(words)) == len(words)
    assert all(one.isalpha() and one.islower() for one in words)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("concepts", 0),
        ("mentions", 0),
        ("mentions", 6),
        ("recap", 9),
        ("recap", -1),
        ("skew", -1.0),
    ],
)
def test_a_world_that_cannot_be_is_named(name, value):
    with pytest.raises(UserError, match=name):
        dataclasses.replace(WORLD, **{name: value})


def test_tasks_give_the_documents_of_the_world():
    documents = ConceptDocuments(
        WORLD, documents_per_concept=2, dev_documents=5, heldout_documents=7
    )
    gin.bind_parameter("concept_world.documents", documents)
    gin.bind_parameter("concept_world.oracle_documents", 9)
    gin.bind_parameter("concept_world.ideal_passes", 3)
    expected = {
        "train": documents.train(),
        "dev": documents.dev(),
        "heldout": documents.heldout(),
        "oracle": documents.oracle(9),
    }
    read = {}
    for name in (*expected, "ideal"):
        task = getattr(tasks.concept_world, name)(seqio.ByteVocabulary())
        found = list(task_registry.examples(task, "train"))
        assert [one["id"].decode() for one in found] == [f"{name}-{i}" for i in range(len(found))]
        read[name] = [one["targets_pretokenized"].decode() for one in found]
    for name, made in expected.items():
        assert read[name] == [WORLD.text(document.tokens) for document in made]
    assert len(read["ideal"]) == 3 * len(expected["train"])
    names = [WORLD.text([document.tokens[1]]) for document in expected["train"] * 3]
    assert all(name in text.split() for name, text in zip(names, read["ideal"], strict=True))
