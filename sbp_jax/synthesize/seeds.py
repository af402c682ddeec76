"""The seed documents: from which prompts a corpus is written."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from sbp_jax.data.documents import Document, Documents
from sbp_jax.data.rows import prompt
from sbp_jax.data.vocabularies import Vocabulary
from sbp_jax.text.ngram_index import NgramIndex
from sbp_jax.text.shingles import shingles


class Seeds:
    """Seed documents with a token in them, numbered from 0, and their prompts.

    Args:
      documents: all of them; one without a token is no seed.
      vocabulary: of the synthesizer.
      length: of a document the first so many tokens are read.

    Attributes:
      ids: of the N seeds.
      prompts: what the synthesizer reads, token ids.
      empty: how many documents have no token.
      cut: how many are longer than `length`.
    """

    def __init__(self, documents: Documents, vocabulary: Vocabulary, length: int):
        self.documents = documents
        tokens = vocabulary.encode_batch([document.text for document in documents])
        self.places = [place for place, found in enumerate(tokens) if found]
        self.ids = [documents[place].id for place in self.places]
        self.prompts = [
            prompt(tokens[place], length, vocabulary.bos, vocabulary.eos) for place in self.places
        ]
        self.empty = len(tokens) - len(self.places)
        self.cut = sum(len(found) > length for found in tokens)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Document]:
        return (self.documents[place] for place in self.places)

    @functools.cached_property
    def shingles(self) -> list[np.ndarray]:
        """Of each seed's whole text."""
        return [shingles(document.text) for document in self]

    def index(self, one_in: int) -> NgramIndex:
        """Of all documents, by which a copy of any of them is found."""
        named = ((document.id, document.text) for document in self.documents)
        return NgramIndex(named, one_in=one_in)
