"""Embedders: texts to unit vectors, two ways behind one interface.

`TfidfEmbedder` needs no model at all; `ActivationEmbedder` uses the language model's own
activations, so that nothing but the corpus enters the bootstrap.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from sbp_jax import artifacts
from sbp_jax.checkpoints import load_parameters, model_config
from sbp_jax.data.vocabularies import load
from sbp_jax.errors import UserError
from sbp_jax.model.decoder import structure
from sbp_jax.progress import progress
from sbp_jax.settings import configurable

# Words, and the parts of identifiers: `cumulative_sum` and `CumulativeSum` share both.
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


class Embedder(Protocol):
    """Texts to vectors. `inputs` are the artefacts it reads, by role."""

    @property
    def inputs(self) -> dict[str, str]: ...

    def fit(self, run: artifacts.Run, texts: Sequence[str]) -> Callable:
        """Learns what it must from the texts; returns the function that embeds.

        The function takes texts and gives float32 [n, D]: unit vectors, or zeros for a text in
        which it finds nothing.
        """
        ...


@configurable
@dataclasses.dataclass(frozen=True)
class TfidfEmbedder:
    """TF-IDF over words, reduced by truncated SVD (latent semantic analysis).

    Attributes:
      dimensions: D, at most; fewer where the corpus has no more.
      max_document_frequency: words in a larger share of documents are dropped: left in, the
        phrases of a template would make all its documents alike.
      min_documents: words in fewer documents are dropped.
      seed: of the SVD's random projections.
    """

    dimensions: int = 256
    max_document_frequency: float = 0.04
    min_documents: int = 2
    seed: int = 0

    @property
    def inputs(self) -> dict[str, str]:
        return {}

    def fit(self, run: artifacts.Run, texts: Sequence[str]) -> Callable:
        # scikit-learn takes a second to load, which only this embedder needs.
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        # In a small corpus the share would leave no word that two documents have.
        share = max(self.max_document_frequency, (self.min_documents + 1) / max(len(texts), 1))
        vectorizer = TfidfVectorizer(
            analyzer=_words,
            sublinear_tf=True,
            max_df=min(share, 1.0),
            min_df=self.min_documents,
            dtype=np.float32,
        )
        try:
            terms = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise UserError(
                f"TfidfEmbedder: no word stands in {self.min_documents} to "
                f"{share:.0%} of the {len(texts)} documents: raise "
                "TfidfEmbedder.max_document_frequency, or embed more documents"
            ) from error
        components = min(self.dimensions, min(terms.shape) - 1)
        logging.info("TF-IDF: %d terms, %d dimensions", terms.shape[1], components)
        if components < 1:
            raise UserError(
                f"TfidfEmbedder: {len(texts)} document(s) with {terms.shape[1]} term(s) are too "
                "few to tell apart: embed more documents"
            )
        svd = TruncatedSVD(components, random_state=self.seed).fit(terms)
        return lambda texts: unit(svd.transform(vectorizer.transform(texts)))


@configurable
@dataclasses.dataclass(frozen=True)
class ActivationEmbedder:
    """The language model's own activations of one layer, pooled over a document's tokens.

    Attributes:
      checkpoint: train artefact.
      step: which of its checkpoints.
      vocab: the run's vocabulary.
      layer: after how many blocks; None for all.
      pooling: `mean` over the tokens, or the `last`, which alone has read the whole document.
      max_length: documents are cut to so many tokens.
      tokens_per_batch: padding counted.
    """

    checkpoint: str = "pretrain"
    step: int | str = "last"
    vocab: str = "vocab"
    layer: int | None = None
    pooling: str = "mean"
    max_length: int = 512
    tokens_per_batch: int = 8192

    def __post_init__(self):
        if self.pooling not in ("mean", "last"):
            raise UserError(
                f"ActivationEmbedder.pooling = {self.pooling!r}: expected `mean` or `last`"
            )

    @property
    def inputs(self) -> dict[str, str]:
        return {"checkpoint": self.checkpoint, "vocab": self.vocab}

    def fit(self, run: artifacts.Run, texts: Sequence[str]) -> Callable:
        directory = run.path(self.checkpoint)
        config = model_config(directory)
        if self.layer is not None and not 0 <= self.layer <= config.layers:
            raise UserError(
                f"ActivationEmbedder.layer = {self.layer}: the model has {config.layers} layers"
            )
        parameters, _ = load_parameters(directory, step=self.step)
        graph, _ = structure(config)
        vocabulary = load(run.path(self.vocab))

        @jax.jit
        def pooled(parameters: Any, tokens_BL: jax.Array, lengths_B: jax.Array) -> jax.Array:
            positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
            inside_BL = positions_BL < lengths_B[:, None]
            x_BLD = nnx.merge(graph, parameters).hidden_states(
                tokens_BL, inside_BL.astype(jnp.int32), positions_BL, layer=self.layer
            )
            x_BLD = x_BLD.astype(jnp.float32)
            if self.pooling == "last":
                return x_BLD[jnp.arange(len(tokens_BL)), lengths_B - 1]
            return jnp.sum(x_BLD * inside_BL[..., None], axis=1) / lengths_B[:, None]

        def activations(texts: Sequence[str]) -> np.ndarray:
            documents = [
                [vocabulary.bos, *ids][: self.max_length] for ids in vocabulary.encode_batch(texts)
            ]
            vectors = np.zeros((len(documents), config.width), np.float32)
            bar = progress(desc="activations", unit=" docs", total=len(documents))
            for length, members in _buckets([len(d) for d in documents], self.max_length):
                size = max(1, self.tokens_per_batch // length)
                for start in range(0, len(members), size):
                    chosen = members[start : start + size]
                    tokens = np.zeros((size, length), np.int32)
                    lengths = np.ones(size, np.int32)
                    for place, index in enumerate(chosen):
                        lengths[place] = len(documents[index])
                        tokens[place, : lengths[place]] = documents[index]
                    found = pooled(parameters, tokens, lengths)
                    vectors[chosen] = np.asarray(found)[: len(chosen)]
                    bar.update(len(chosen))
            bar.close()
            return vectors

        # All activations share a large common part, which would make every document alike.
        center_D = activations(texts).mean(axis=0)
        return lambda texts: unit(activations(texts) - center_D)


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _buckets(lengths: Sequence[int], most: int) -> list[tuple[int, list[int]]]:
    """Documents by padded length; one length is at most a quarter above the one before."""
    bounds = [16]
    while bounds[-1] < most:
        bounds.append(min(most, max(bounds[-1] + 8, bounds[-1] * 5 // 4)))
    members: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        bound = next(b for b in bounds if length <= b)
        members.setdefault(bound, []).append(index)
    return sorted(members.items())


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1, float32 [n, D]; a zero vector stays zero."""
    vectors = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-12)
