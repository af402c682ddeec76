"""concept_world: made-up documents about made-up concepts, whose best possible loss is known.

What: documents of a `sbp_jax.data.concept_world.ConceptWorld`, drawn as the method's model of text
has it: a concept, then a document about it. The words are made up; what stands in them hangs
together, for a concept has one value of each attribute in whatever genre it is described.
Source: generated, the same on every machine.
Licence: none is needed.
Size: as `concept_world.documents` says; a document has some 30 words.
Prepare: nothing; `concept_world.documents = @ConceptDocuments()` in gin, after
`import tasks.concept_world`.

Splits: `train` (D_pretrain), and `dev`, `heldout` and `oracle` from P(d). `ideal` is what a perfect
synthesizer writes from `train`: the facts of each of its documents, stated anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import gin

from sbp_jax.data import corpora
from sbp_jax.data.concept_world import ConceptDocuments, WorldDocument
from sbp_jax.errors import UserError
from sbp_jax.settings import configurable

if TYPE_CHECKING:
    import seqio  # imported where it is used: gin loads this module in every stage


class Settings(NamedTuple):
    """Which documents there are, and how many of `oracle` and for each of `train` of `ideal`."""

    documents: ConceptDocuments
    oracle_documents: int
    ideal_passes: int


@configurable
def concept_world(
    *,
    documents: ConceptDocuments = gin.REQUIRED,
    oracle_documents: int = 40_000,
    ideal_passes: int = 10,
) -> Settings:
    """What the tasks are made of.

    Args:
      documents: the world, and how many documents its splits have.
      oracle_documents: of `oracle`.
      ideal_passes: `ideal` has so many documents for each of `train`.

    Raises:
      UserError: a number is below 1.
    """
    if min(oracle_documents, ideal_passes) < 1:
        raise UserError(
            f"concept_world: oracle_documents = {oracle_documents} and ideal_passes = "
            f"{ideal_passes} must be at least 1"
        )
    return Settings(documents, oracle_documents, ideal_passes)


def _task(
    name: str, vocabulary: seqio.Vocabulary, documents: Callable[[Settings], list[WorldDocument]]
) -> seqio.Task:
    """Registers a split as the task `concept_world_NAME`, whose only split is `train`."""
    settings = concept_world()
    world = settings.documents.world

    def examples() -> Iterator[dict[str, str]]:
        for number, document in enumerate(documents(settings)):
            yield {"id": f"{name}-{number}", "text": world.text(document.tokens)}

    fingerprint = hashlib.sha256(repr((name, settings)).encode()).hexdigest()[:16]
    source = corpora.from_memory(("id", "text"), examples, None, fingerprint)
    return corpora.register(f"concept_world_{name}", source, vocabulary, [corpora.text_to_targets])


def train(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """D_pretrain."""
    return _task("train", vocabulary, lambda settings: settings.documents.train())


def dev(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For choosing settings."""
    return _task("dev", vocabulary, lambda settings: settings.documents.dev())


def heldout(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For the final score."""
    return _task("heldout", vocabulary, lambda settings: settings.documents.heldout())


def oracle(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """Different documents, far more than D_pretrain has."""
    return _task("oracle", vocabulary, lambda s: s.documents.oracle(s.oracle_documents))


def ideal(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """What a perfect synthesizer writes: the facts of each document of D_pretrain, stated anew."""

    def restated(settings: Settings) -> list[WorldDocument]:
        concepts = [document.concept for document in settings.documents.train()]
        return list(settings.documents.world.restatements(concepts * settings.ideal_passes, 1))

    return _task("ideal", vocabulary, restated)
