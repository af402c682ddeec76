"""A world of concepts whose documents follow the model of the method: c ~ P(c), then d ~ P(d|c).

A concept has a name and a value for each attribute. A document is of a genre, which has its own
order of the attributes and its own words for them; it names its concept, states every attribute,
and at its end names the concept and states some attributes again, as texts do that sum up:

    GENRE  NAME  CUE VALUE  CUE VALUE …  [NAME  CUE VALUE …]  NAME  CUE VALUE …

What is stated is a function of the concept, how it is stated of the genre and of chance. So the
least loss that any model can reach is known (`ConceptWorld.bayes_loss`), and so is the perfect
synthesizer, P(d2 | facts of d1): it states the seed's facts in a genre of its own.

Documents that repeat themselves are what makes copying from the context worth learning in
pretraining; without them a model that starts from nothing learns d1 → d2 as soon as the pretrained
one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sbp_jax.errors import UserError
from sbp_jax.settings import configurable

PAD, BOS, EOS = range(3)
SPECIAL = 3
_SYLLABLES = [consonant + vowel for consonant in "bdfghjklmnprstvz" for vowel in "aeiou"]


class WorldDocument(NamedTuple):
    """A document.

    Attributes:
      tokens: without BOS and EOS.
      concept: that it is about.
      genre: that it is of.
    """

    tokens: list[int]
    concept: int
    genre: int


@configurable
@dataclasses.dataclass(frozen=True)
class ConceptWorld:
    """What documents there can be, and how probable they are.

    Attributes:
      concepts: how many.
      attributes: of each concept; a document states all of them.
      values: that an attribute can have, drawn uniformly.
      genres: how many, equally probable.
      phrasings: ways in which a genre names an attribute, equally probable.
      mentions: how often a document names its concept in its main part, before equal shares of the
        attributes.
      recap: attributes that a document states a second time, drawn without replacement; with 0 it
        does not name its concept again either.
      skew: P(c) of the concept of rank r is in proportion to r^-skew; 0 for all alike.
      seed: of the facts and the genres' orders.
    """

    concepts: int = 500
    attributes: int = 8
    values: int = 24
    genres: int = 12
    phrasings: int = 3
    mentions: int = 1
    recap: int = 3
    skew: float = 0.0
    seed: int = 0

    def __post_init__(self):
        least = {"concepts": 1, "attributes": 1, "values": 1, "genres": 1, "phrasings": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UserError(f"ConceptWorld.{name} = {getattr(self, name)}: expected {low}+")
        if not 1 <= self.mentions <= self.attributes:
            raise UserError(
                f"ConceptWorld.mentions = {self.mentions}: expected 1 to attributes = "
                f"{self.attributes}"
            )
        if not 0 <= self.recap <= self.attributes:
            raise UserError(
                f"ConceptWorld.recap = {self.recap}: expected 0 to attributes = {self.attributes}"
            )
        if self.skew < 0:
            raise UserError(f"ConceptWorld.skew = {self.skew}: expected 0 or more")

    @property
    def length(self) -> int:
        """Tokens of a document; all have as many."""
        return 1 + self.mentions + 2 * self.attributes + (1 + 2 * self.recap if self.recap else 0)

    @property
    def vocab_size(self) -> int:
        """V: the special tokens, genres, names, values and cues, in this order."""
        return self._first_cue + self.genres * self.attributes * self.phrasings

    @property
    def _first_name(self) -> int:
        return SPECIAL + self.genres

    @property
    def _first_value(self) -> int:
        return self._first_name + self.concepts

    @property
    def _first_cue(self) -> int:
        return self._first_value + self.attributes * self.values

    @functools.cached_property
    def facts(self) -> np.ndarray:
        """Value of each attribute of each concept, int64 [concepts, attributes]."""
        rng = np.random.default_rng([self.seed, 0])
        return rng.integers(self.values, size=(self.concepts, self.attributes))

    @functools.cached_property
    def orders(self) -> np.ndarray:
        """In which order each genre states the attributes, int64 [genres, attributes]."""
        rng = np.random.default_rng([self.seed, 1])
        return np.stack([rng.permutation(self.attributes) for _ in range(self.genres)])

    @functools.cached_property
    def concept_probabilities(self) -> np.ndarray:
        """P(c), float64 [concepts]."""
        weights = np.arange(1, self.concepts + 1, dtype=float) ** -self.skew
        return weights / weights.sum()

    def bayes_loss(self) -> float:
        """The least loss of documents from P(d), EOS among their tokens, in nats per token.

        It is the entropy of a document over its length: a model that knows the world is left with
        which concept and genre, which attributes come again, and which words are taken for each.
        """
        p = self.concept_probabilities
        nats = math.log(self.genres) - float(np.sum(p * np.log(p)))
        nats += (self.attributes + self.recap) * math.log(self.phrasings)
        nats += sum(math.log(self.attributes - place) for place in range(self.recap))
        return nats / (self.length + 1)

    def documents(self, stream: int, count: int | None = None) -> Iterator[WorldDocument]:
        """Documents drawn from P(d); the first are the same however many are asked for.

        Args:
          stream: draws of different streams are independent.
          count: how many; None for no end.
        """
        rng = np.random.default_rng([self.seed, 2, stream])
        written = 0
        while count is None or written < count:
            concept = int(rng.choice(self.concepts, p=self.concept_probabilities))
            yield self.write(concept, rng)
            written += 1

    def restatements(self, concepts: Sequence[int], stream: int) -> Iterator[WorldDocument]:
        """One document of each of these concepts: what a perfect synthesizer writes from a seed."""
        rng = np.random.default_rng([self.seed, 3, stream])
        for concept in concepts:
            yield self.write(concept, rng)

    def write(
        self, concept: int, rng: np.random.Generator, facts: np.ndarray | None = None
    ) -> WorldDocument:
        """A document from P(d|c).

        Args:
          concept: that it is about.
          rng: chooses genre, recap and phrasings.
          facts: values of the attributes, int [attributes]; None for the concept's own.
        """
        facts = self.facts[concept] if facts is None else facts
        genre = int(rng.integers(self.genres))
        again = rng.permutation(self.attributes)[: self.recap]
        stated = np.concatenate([self.orders[genre], again])
        phrasings = rng.integers(self.phrasings, size=len(stated))
        cues = (genre * self.attributes + stated) * self.phrasings + phrasings + self._first_cue
        values = stated * self.values + facts[stated] + self._first_value
        named = {round(self.attributes * i / self.mentions) for i in range(self.mentions)}
        if self.recap:
            named.add(self.attributes)
        tokens = [SPECIAL + genre]
        for place, (cue, value) in enumerate(zip(cues.tolist(), values.tolist(), strict=True)):
            if place in named:
                tokens.append(self._first_name + concept)
            tokens += [cue, value]
        return WorldDocument(tokens, concept, genre)

    def named(self, tokens: Sequence[int]) -> int | None:
        """The concept that a text names first, if any."""
        first, past = self._first_name, self._first_value
        return next((token - first for token in tokens if first <= token < past), None)

    def genre(self, tokens: Sequence[int]) -> int | None:
        """The genre that a text starts with, if any."""
        known = tokens and SPECIAL <= tokens[0] < self._first_name
        return tokens[0] - SPECIAL if known else None

    def stated(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """Attributes and values that stand in a text, right or wrong."""
        first, past = self._first_value, self._first_cue
        return [divmod(token - first, self.values) for token in tokens if first <= token < past]

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as words."""
        return " ".join(word(token) for token in tokens)


@configurable
@dataclasses.dataclass(frozen=True)
class ConceptDocuments:
    """The splits of a corpus from a concept world.

    Attributes:
      world: its shape.
      documents_per_concept: D_pretrain has so many of each concept, and is otherwise drawn from
        P(d|c); None for concepts from P(c), of which many then have hardly a document.
      train_documents: of D_pretrain, where that is None.
      dev_documents: from P(d).
      heldout_documents: likewise.
    """

    world: ConceptWorld
    documents_per_concept: int | None = None
    train_documents: int = 2500
    dev_documents: int = 500
    heldout_documents: int = 2000

    def __post_init__(self):
        for field in dataclasses.fields(self):
            number = getattr(self, field.name)
            if isinstance(number, int) and number < 1:
                raise UserError(f"ConceptDocuments.{field.name} = {number}: expected 1 or more")

    def train(self) -> list[WorldDocument]:
        """D_pretrain."""
        if self.documents_per_concept is None:
            return list(self.world.documents(0, self.train_documents))
        concepts = np.repeat(np.arange(self.world.concepts), self.documents_per_concept)
        mixed = np.random.default_rng([self.world.seed, 4]).permutation(concepts)
        return list(self.world.restatements(mixed.tolist(), 0))

    def dev(self) -> list[WorldDocument]:
        """What settings are chosen by."""
        return list(self.world.documents(1, self.dev_documents))

    def heldout(self) -> list[WorldDocument]:
        """What losses are reported of."""
        return list(self.world.documents(2, self.heldout_documents))

    def oracle(self, count: int) -> list[WorldDocument]:
        """As many different documents as are wanted."""
        return list(self.world.documents(3, count))


@functools.cache
def word(token: int) -> str:
    """A made-up word for a token: two syllables or more, no two alike."""
    syllables = []
    number = token + len(_SYLLABLES)
    while number:
        number, place = divmod(number, len(_SYLLABLES))
        syllables.append(_SYLLABLES[place])
    return "".join(syllables)
