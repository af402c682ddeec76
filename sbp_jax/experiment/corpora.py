"""What an experiment is run on: the same documents for every arm, as tokens, in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from sbp_jax import artifacts
from sbp_jax.data import concept_world, vocabularies
from sbp_jax.data.concept_world import ConceptDocuments, ConceptWorld, WorldDocument
from sbp_jax.data.documents import Document, Documents
from sbp_jax.errors import UserError
from sbp_jax.settings import configurable


class Text(NamedTuple):
    """A document.

    Attributes:
      id: unique in the experiment.
      text: as words.
      tokens: without BOS and EOS.
    """

    id: str
    text: str
    tokens: list[int]


@dataclasses.dataclass(frozen=True)
class Splits:
    """The documents of one seed.

    Attributes:
      train: D_pretrain.
      dev: what settings, steps and the synthesizer are chosen by; nothing is trained on it.
      heldout: what losses are reported of; nothing is chosen by it.
      oracle: so many different documents or more, for an arm that never reads one twice; fewer
        where there are no more.
      vocab_size: V.
      bos: before each document.
      eos: behind it.
      never: ids that are not sampled.
      decode: tokens to words.
      bayes_loss: the least loss that any model can have of `heldout`, if known.
      world: that the documents are drawn from, if known.
      about: the concepts of `train`, if known.
    """

    train: list[Text]
    dev: list[Text]
    heldout: list[Text]
    oracle: Callable[[int], list[Text]]
    vocab_size: int
    bos: int
    eos: int
    never: tuple[int, ...]
    decode: Callable[[Sequence[int]], str]
    bayes_loss: float | None = None
    world: ConceptWorld | None = None
    about: list[int] | None = None


class Corpus(Protocol):
    """Where the documents come from. `inputs` are the artefacts it reads, by role."""

    @property
    def inputs(self) -> dict[str, str]: ...

    def splits(self, run: artifacts.Run, seed: int) -> Splits:
        """The documents of a seed: of a world another world each, of a corpus always the same."""
        ...


@configurable
@dataclasses.dataclass(frozen=True)
class ConceptCorpus:
    """Documents of a concept world. Each seed has a world of its own, with other facts and genres.

    Attributes:
      documents: of the world of seed 0, and how many of them.
    """

    documents: ConceptDocuments

    @property
    def inputs(self) -> dict[str, str]:
        return {}

    def splits(self, run: artifacts.Run, seed: int) -> Splits:
        del run
        world = dataclasses.replace(self.documents.world, seed=self.documents.world.seed + seed)
        documents = dataclasses.replace(self.documents, world=world)
        train = documents.train()

        def texts(name: str, documents: Sequence[WorldDocument]) -> list[Text]:
            return [
                Text(f"{name}-{number}", world.text(document.tokens), document.tokens)
                for number, document in enumerate(documents)
            ]

        return Splits(
            train=texts("train", train),
            dev=texts("dev", documents.dev()),
            heldout=texts("heldout", documents.heldout()),
            oracle=lambda count: texts("oracle", documents.oracle(count)),
            vocab_size=world.vocab_size,
            bos=concept_world.BOS,
            eos=concept_world.EOS,
            never=(concept_world.PAD, concept_world.BOS),
            decode=world.text,
            bayes_loss=world.bayes_loss(),
            world=world,
            about=[document.concept for document in train],
        )


@configurable
@dataclasses.dataclass(frozen=True)
class TextCorpus:
    """Documents of rows artefacts, made with `cache.documents = True`; TensorFlow is not needed.

    Attributes:
      train: artefact of D_pretrain.
      dev: likewise.
      heldout: likewise.
      oracle: likewise, of all the text there is.
      vocab: artefact of `sbp vocab`.
    """

    train: str = "rows/real"
    dev: str = "rows/dev"
    heldout: str = "rows/heldout"
    oracle: str = "rows/oracle"
    vocab: str = "vocab"

    @property
    def inputs(self) -> dict[str, str]:
        return dataclasses.asdict(self)

    def splits(self, run: artifacts.Run, seed: int) -> Splits:
        del seed
        vocabulary = vocabularies.load(run.path(self.vocab))

        def texts(name: str) -> list[Text]:
            documents: Sequence[Document] = Documents(run.path(name))
            tokens = vocabulary.encode_batch([document.text for document in documents])
            found = [
                Text(document.id, document.text, one)
                for document, one in zip(documents, tokens, strict=True)
                if one
            ]
            if not found:
                raise UserError(f"{run.path(name)} holds no document with a token in it")
            return found

        return Splits(
            train=texts(self.train),
            dev=texts(self.dev),
            heldout=texts(self.heldout),
            oracle=lambda _: texts(self.oracle),
            vocab_size=vocabulary.size,
            bos=vocabulary.bos,
            eos=vocabulary.eos,
            never=vocabulary.never,
            decode=vocabulary.decode,
        )
