"""Looks before a result is believed: the synthesizer's gate, its corpus, and whether text leaked.

* The synthesizer: what its own d1 is worth to a dev document (nats per token less than after a
  random one), and, where the world is known, which of the seed's facts it states, also of facts
  that no document ever stated.
* The corpus: which concepts it covers, how often it copies, whole or in part, why documents ended.
* Leakage: every document goes back to a seed of D_pretrain; and n-grams of held-out documents that
  D_pretrain does not have are no more frequent in the corpus than those of documents of the same
  kind that no model ever met, which is what chance makes of the world's regularities. So for all
  held-out text, and for documents of which the corpus has most: a few that leaked are few n-grams.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sbp_jax.data.concept_world import ConceptWorld
from sbp_jax.data.rows import prompt
from sbp_jax.experiment.study import Choices, Study, Written
from sbp_jax.synthesize.schedule import document_keys

NGRAM = 8  # tokens
RUN = 13  # likewise, of which copies are told from what is commonly said
MOST = 0.5  # of a document's n-grams
RESAMPLES = 1000
PROBES = 500  # documents whose facts nothing ever stated


def synthesizer(study: Study, kind: str, choices: Choices) -> dict[str, Any]:
    """What a synthesizer has learned of d1."""
    fit = study.synthesizer(kind, choices)
    related, random = fit.losses["related"], fit.losses["random"]
    found: dict[str, Any] = {
        "start": choices.synthesizers[kind].start,
        "settings": vars(choices.synthesizers[kind].fit),
        "step": fit.step,
        "related": related,
        "random": random,
        "gain": random - related,
    }
    world = study.splits.world
    if world is not None:
        found["copies_new_facts"] = copies_new_facts(study, world, fit.parameters)
    return found


def copies_new_facts(study: Study, world: ConceptWorld, parameters: Any) -> float:
    """Share of facts of the seed that are stated as the seed has them, where all of them are new.

    In these seeds concepts of the same names have other facts: nothing but the seed tells them.
    """
    rng = np.random.default_rng([world.seed, 9])
    facts = rng.integers(world.values, size=world.facts.shape)
    seeds = []
    for _ in range(PROBES):
        concept = int(rng.integers(world.concepts))
        seeds.append((concept, world.write(concept, rng, facts[concept]).tokens))
    s = study.splits
    prompts = [prompt(tokens, study.design.seed_length, s.bos, s.eos) for _, tokens in seeds]
    ids = [f"probe-{number}" for number in range(len(prompts))]
    keys = document_keys(study.seed, ids, [0] * len(ids))
    right = stated = 0
    for (concept, _), (_, tokens) in zip(
        seeds, study.sample(parameters, prompts, keys), strict=True
    ):
        for attribute, value in world.stated(tokens):
            stated += 1
            right += value == facts[concept, attribute]
    return right / max(stated, 1)


def corpus(study: Study, name: str, choices: Choices) -> dict[str, Any]:
    """What is in an arm's synthetic text."""
    written = study.corpus(name, choices)
    seeds = {text.id: text.tokens for text in study.splits.train}
    ended = collections.Counter(one.finish_reason for one in written)
    found: dict[str, Any] = {
        "documents": len(written),
        "tokens": sum(len(one.tokens) for one in written),
        "ended_by_themselves": ended["stop"] / len(written),
        "copies_of_the_seed": _share(one.tokens == seeds[one.seed_id] for one in written),
        "copies_of_any_document": _copies(written, seeds.values()),
        "mostly_copied": _mostly_copied(written, seeds.values()),
        "different": len({tuple(one.tokens) for one in written}) / len(written),
    }
    world, about = study.splits.world, study.splits.about
    if world is not None and about is not None:
        found |= _facts(world, about, study, written)
    return found


def _facts(
    world: ConceptWorld, about: Sequence[int], study: Study, written: Sequence[Written]
) -> dict[str, Any]:
    concepts = {text.id: concept for text, concept in zip(study.splits.train, about, strict=True)}
    pairs = set(zip(about, (world.genre(t.tokens) for t in study.splits.train), strict=True))
    right = own = stated = named = new = 0
    counts = collections.Counter[int]()
    for one in written:
        seed, name = concepts[one.seed_id], world.named(one.tokens)
        named += name == seed
        if name is not None:
            counts[name] += 1
            new += (name, world.genre(one.tokens)) not in pairs
        for attribute, value in world.stated(one.tokens):
            stated += 1
            right += value == world.facts[seed, attribute]
            own += name is not None and value == world.facts[name, attribute]
    known = set(about)
    return {
        "facts_of_the_seed": right / max(stated, 1),
        "facts_true": own / max(stated, 1),
        "names_the_seeds_concept": named / len(written),
        "concepts_covered": len(known & set(counts)) / len(known),
        "new_concept_and_genre": new / len(written),
    }


def leakage(study: Study, name: str, choices: Choices) -> dict[str, Any]:
    """Whether held-out text has found its way into an arm's synthetic text.

    Returns:
      `seeds_in_train`, the share of documents whose seed is one of D_pretrain; `heldout` and
      `chance`, of the n-grams of held-out and of never used documents that D_pretrain does not
      have, the share that the synthetic text has; `difference` of the two with its interval over
      resampled concepts (documents where none are known), in which 0 lies where nothing leaked.
      Concepts, for documents of one concept share what a corpus says of it. Under `whole` the same
      of documents: the share of which the synthetic text has at least `MOST` of these n-grams.
    """
    written = study.corpus(name, choices)
    train = {text.id for text in study.splits.train}
    known = _ngrams(text.tokens for text in study.splits.train)
    there = _ngrams(one.tokens for one in written)
    world = study.splits.world
    heldout = _shared(study.splits.heldout, known, there, world)
    # Dev documents choose steps and settings, of which none can carry an n-gram into a corpus.
    chance = _shared(study.splits.dev, known, there, world)
    return {
        "ngram": NGRAM,
        "documents": len(written),
        "seeds_in_train": _share(one.seed_id in train for one in written),
        **_compared(heldout[:, :2], chance[:, :2], study.seed),
        "whole": _compared(heldout[:, 2:], chance[:, 2:], study.seed),
    }


def _compared(heldout: np.ndarray, chance: np.ndarray, seed: int) -> dict[str, Any]:
    """Shares of held-out text and of other text, and their difference with its interval."""
    rng = np.random.default_rng([seed, 5])
    drawn = [_resampled(heldout, rng) - _resampled(chance, rng) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    difference = {
        "mean": _ratio(heldout) - _ratio(chance),
        "low": float(low),
        "high": float(high),
    }
    return {"heldout": _ratio(heldout), "chance": _ratio(chance), "difference": difference}


def _ngrams(documents: Iterable[Sequence[int]], size: int = NGRAM) -> set[tuple[int, ...]]:
    return {
        tuple(tokens[start : start + size])
        for tokens in documents
        for start in range(len(tokens) - size + 1)
    }


def _shared(texts: Sequence[Any], known: set, there: set, world: ConceptWorld | None) -> np.ndarray:
    """What of each concept is not known, and how much of that is there, [n, 4].

    Two columns of n-grams, and two of documents that have any.
    """
    found = collections.defaultdict[int | None, list[int]](lambda: [0] * 4)
    for number, text in enumerate(texts):
        new = _ngrams([text.tokens]) - known
        shared = len(new & there)
        about = found[number if world is None else world.named(text.tokens)]
        counts = len(new), shared, bool(new), bool(new) and shared >= MOST * len(new)
        about[:] = (old + more for old, more in zip(about, counts, strict=True))
    return np.array(list(found.values()))


def _resampled(counts: np.ndarray, rng: np.random.Generator) -> float:
    return _ratio(counts[rng.integers(len(counts), size=len(counts))])


def _ratio(counts: np.ndarray) -> float:
    total, shared = counts.sum(axis=0)
    return float(shared / max(total, 1))


def _copies(written: Sequence[Written], documents: Iterable[Sequence[int]]) -> float:
    known = {tuple(tokens) for tokens in documents}
    return _share(tuple(one.tokens) in known for one in written)


def _mostly_copied(written: Sequence[Written], documents: Iterable[Sequence[int]]) -> float:
    """Share of documents of whose runs of `RUN` tokens at least `MOST` stand in D_pretrain."""
    known = _ngrams(documents, RUN)
    own = [_ngrams([one.tokens], RUN) for one in written]
    return _share(bool(runs) and len(runs & known) >= MOST * len(runs) for runs in own)


def _share(found: Iterable[bool]) -> float:
    return float(np.mean(list(found)))
