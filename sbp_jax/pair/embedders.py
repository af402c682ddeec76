"""Embedders: texts to unit vectors, three ways behind one interface.

`TfidfEmbedder` needs no model at all; `ActivationEmbedder` uses the language model's own
activations, so that nothing but the corpus enters the bootstrap; `HuggingFaceEmbedder` runs a
published embedding model, as the paper does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, cast

import jax
import numpy as np
from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.checkpoints import load_parameters, model_config
from sbp_jax.data import vocabularies
from sbp_jax.data.vocabularies import Vocabulary
from sbp_jax.errors import UserError
from sbp_jax.model.decoder import DecoderConfig
from sbp_jax.pair.activations import Embedded, make_runner, parameter_shardings
from sbp_jax.parallel.mesh import MeshConfig, make_layout
from sbp_jax.settings import configurable

# Texts that are tokenised at a time.
_BATCH = 1000

# Words, and the parts of identifiers: `cumulative_sum` and `CumulativeSum` share both.
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


# Texts to their vectors.
Embed = Callable[[Sequence[str]], Embedded]


class Embedder(Protocol):
    """Texts to vectors. `inputs` are the artefacts and files it reads, by role."""

    @property
    def inputs(self) -> dict[str, str]: ...

    def fit(self, run: artifacts.Run, texts: Sequence[str]) -> Embed:
        """Learns what it must from the texts; returns the function that embeds.

        It takes texts and gives float32 [n, D]: unit vectors, or zeros for a text in which it finds
        nothing. The same texts give the same function, or a stage could not be gone on with.
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

    def fit(self, run: artifacts.Run, texts: Sequence[str]) -> Embed:
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
        return lambda texts: Embedded(unit(svd.transform(vectorizer.transform(texts))))


@configurable
@dataclasses.dataclass(frozen=True)
class ActivationEmbedder:
    """The language model's own activations of one layer, pooled over a document's tokens.

    A text of nothing but white space gets no vector.

    Attributes:
      checkpoint: train artefact.
      step: which of its checkpoints.
      vocab: the run's vocabulary.
      layer: after how many blocks; None for all.
      pooling: `mean` over the tokens, or the `last`, which alone has read the whole document.
      max_length: documents are cut to so many tokens.
      center_documents: so many, evenly spread, give the mean that is taken off all vectors.
      tokens_per_device: of a batch, padding counted; a single row may be longer.
    """

    checkpoint: str = "pretrain"
    step: int | str = "last"
    vocab: str = "vocab"
    layer: int | None = None
    pooling: str = "mean"
    max_length: int = 512
    center_documents: int = 10_000
    tokens_per_device: int = 8192

    def __post_init__(self):
        if self.pooling not in ("mean", "last"):
            raise UserError(
                f"ActivationEmbedder.pooling = {self.pooling!r}: expected `mean` or `last`"
            )
        _check_positive(self, "max_length", "center_documents", "tokens_per_device")

    @property
    def inputs(self) -> dict[str, str]:
        return {"checkpoint": self.checkpoint, "vocab": self.vocab}

    def fit(self, run: artifacts.Run, texts: Sequence[str]) -> Embed:
        directory = run.path(self.checkpoint)
        config = model_config(directory)
        if self.layer is not None and not 0 <= self.layer <= config.layers:
            raise UserError(
                f"ActivationEmbedder.layer = {self.layer}: the model has {config.layers} layers"
            )
        vocabulary = _vocabulary(run.path(self.vocab), directory, config)
        runner = _runner(
            directory,
            self.step,
            config,
            max_length=self.max_length,
            tokens_per_device=self.tokens_per_device,
            pooling=cast(Literal["mean", "last"], self.pooling),
            layer=self.layer,
        )

        return self.centred(runner, vocabulary.bos, lambda texts: _encode(vocabulary, texts), texts)

    def centred(
        self,
        runner: Callable[[Sequence[np.ndarray]], Embedded],
        bos: int,
        encode: Callable[[Sequence[str]], Iterable[list[int]]],
        texts: Sequence[str],
    ) -> Embed:
        """The function that embeds, for a model in memory.

        Args:
          runner: as `make_runner` gives it.
          bos: stands before each text.
          encode: texts to their tokens.
          texts: of which `center_documents` give the mean that is taken off.
        """

        def activations(texts: Sequence[str]) -> tuple[Embedded, np.ndarray]:
            tokens = [
                np.array([bos, *ids][: self.max_length] if text.strip() else [], np.int32)
                for text, ids in zip(texts, encode(texts), strict=True)
            ]
            return runner(tokens), np.array([len(t) > 0 for t in tokens], bool)

        # All activations share a large common part, which would make every document alike.
        count = min(self.center_documents, len(texts))
        found, there = activations([texts[i * len(texts) // count] for i in range(count)])
        center_D = found.vectors[there].mean(axis=0) if there.any() else np.float32(0)

        def embed(texts: Sequence[str]) -> Embedded:
            found, there = activations(texts)
            return found._replace(vectors=unit((found.vectors - center_D) * there[:, None]))

        return embed


@configurable
@dataclasses.dataclass(frozen=True)
class HuggingFaceEmbedder:
    """Qwen3-Embedding, and models that are used as it is (arXiv 2506.05176).

    The vector is what the decoder's last norm gives at the token that ends the text. A text of
    nothing but white space gets none. What special tokens are called is plain text in a document,
    where the model's own tokenizer would make the tokens of it.

    Attributes:
      checkpoint: of the model, made with `sbp import-hf`.
      vocab: its `tokenizer.json`.
      instruction: the task, where texts are queries: `Instruct: TASK`, and the text as `Query:`;
        None for documents. Related documents are found among vectors that were made alike.
      end_token: which ends a text; the tokenizer of the model adds it.
      max_length: texts are cut to so many tokens, the end among them.
      dimensions: D, the first so many, where the model was trained for that (Matryoshka); None for
        all.
      dtype: of activations and matrix products; None for the checkpoint's (bfloat16).
      tokens_per_device: of a batch, padding counted; a single row may be longer.
    """

    checkpoint: str = "embedder"
    vocab: str = "tokenizer.json"
    instruction: str | None = None
    end_token: str = "<|endoftext|>"
    max_length: int = 8192
    dimensions: int | None = None
    dtype: str | None = None
    tokens_per_device: int = 16_384

    def __post_init__(self):
        _check_positive(self, "max_length", "tokens_per_device", "dimensions")

    @property
    def inputs(self) -> dict[str, str]:
        return {"checkpoint": self.checkpoint, "vocab": self.vocab}

    def fit(self, run: artifacts.Run, texts: Sequence[str]) -> Embed:
        directory = run.path(self.checkpoint)
        config = model_config(directory)
        config = dataclasses.replace(config, dtype=self.dtype or config.dtype)
        if self.dimensions and self.dimensions > config.width:
            raise UserError(
                f"HuggingFaceEmbedder.dimensions = {self.dimensions}: the model has {config.width}"
            )
        vocabulary = _vocabulary(run.path(self.vocab), directory, config)
        end = None
        if isinstance(vocabulary, vocabularies.HuggingFace):
            end = vocabulary.tokenizer.token_to_id(self.end_token)
        if end is None:
            raise UserError(
                f"HuggingFaceEmbedder.vocab = {self.vocab!r} has no token {self.end_token!r}: name "
                "the tokenizer.json of the model, and as end_token what it puts behind a text"
            )
        runner = _runner(
            directory,
            "last",
            config,
            max_length=self.max_length,
            tokens_per_device=self.tokens_per_device,
            pooling="last",
            final_norm=True,
        )

        def embed(texts: Sequence[str]) -> Embedded:
            given = texts
            if self.instruction is not None:
                given = [f"Instruct: {self.instruction}\nQuery:{text}" for text in texts]
            found = runner(
                [
                    np.array([*ids[: self.max_length - 1], end] if text.strip() else [], np.int32)
                    for text, ids in zip(texts, _encode(vocabulary, given), strict=True)
                ]
            )
            return found._replace(vectors=unit(found.vectors[:, : self.dimensions]))

        return embed


def from_manifest(fields: Mapping[str, Any]) -> Embedder:
    """The embedder that stands in the configuration of an artefact of `sbp embed`.

    Raises:
      UserError: it is none of this module's.
    """
    kinds = {
        kind.__name__: kind for kind in (TfidfEmbedder, ActivationEmbedder, HuggingFaceEmbedder)
    }
    kind = kinds.get(fields[""])
    if kind is None:
        raise UserError(f"the embedder {fields['']} is not known: expected one of {list(kinds)}")
    return kind(**{name: value for name, value in fields.items() if name})


def _check_positive(embedder: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(embedder, field)
        if value is not None and value < 1:
            raise UserError(f"{type(embedder).__name__}.{field} = {value}: must be at least 1")


def _runner(
    directory: epath.Path, step: int | str, config: DecoderConfig, **options: Any
) -> Callable[[Sequence[np.ndarray]], Embedded]:
    """`make_runner` with the parameters of a checkpoint, over the devices of this process."""
    layout = make_layout(MeshConfig(), jax.local_devices())
    shardings = parameter_shardings(config, layout)
    parameters, _ = load_parameters(directory, step=step, shardings=shardings)
    return make_runner(config, parameters, layout, **options)


def _vocabulary(path: epath.Path, checkpoint: epath.Path, config: DecoderConfig) -> Vocabulary:
    """A vocabulary whose every id is in the model's table."""
    vocabulary = vocabularies.load(path)
    if vocabulary.size > config.vocab_size:
        raise UserError(
            f"vocabulary {path} has {vocabulary.size} ids, and the model {checkpoint} a table of "
            f"{config.vocab_size}: name the vocabulary that the model was trained with"
        )
    return vocabulary


def _encode(vocabulary: Vocabulary, texts: Sequence[str]) -> Iterator[list[int]]:
    """The ids of each text, of which few are held at a time as lists."""
    for start in range(0, len(texts), _BATCH):
        yield from vocabulary.encode_batch(texts[start : start + _BATCH])


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1, float32 [n, D]; a zero vector stays zero."""
    vectors = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-12)
