"""Pairs of related documents in memory, by the embedders, search and filters of the stages.

Search is exact: an experiment has so few documents that an index would only lose some.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sbp_jax import artifacts
from sbp_jax.data.documents import Document
from sbp_jax.experiment.corpora import Splits, Text
from sbp_jax.experiment.design import Design
from sbp_jax.model.decoder import DecoderConfig
from sbp_jax.pair import filters, pairs
from sbp_jax.pair.activations import make_runner
from sbp_jax.pair.embedders import ActivationEmbedder, Embed
from sbp_jax.pair.exact import ExactSearch
from sbp_jax.parallel.mesh import Layout


class Pairing(NamedTuple):
    """Related documents as (seed, target): indices of D_pretrain, and of it or the dev documents.

    Attributes:
      train: to tune the synthesizer on.
      dev: to choose it by: targets are dev documents.
      statistics: of the first, as `sbp pair` leaves them.
    """

    train: list[tuple[int, int]]
    dev: list[tuple[int, int]]
    statistics: dict[str, Any]


def find_pairs(
    run: artifacts.Run, splits: Splits, design: Design, base: Any, layout: Layout
) -> Pairing:
    """Pairs of D_pretrain with itself and with the dev documents.

    Args:
      run: names what an embedder reads.
      splits: the documents.
      design: says which embedder, and what is a pair.
      base: parameters of the base model, for its activations.
      layout: over the devices.
    """
    texts = [text.text for text in splits.train]
    embed = _embed(run, splits, design, base, layout)
    seeds = embed(texts).vectors
    index = ExactSearch().build(seeds, design.neighbours + 1)
    documents = _documents(splits.train)

    def choose(targets: Sequence[Text], vectors: np.ndarray, same: bool):
        found, products = index.find(vectors, min(design.neighbours + same, len(seeds)))
        others = documents if same else _documents(targets)
        threshold = design.near_duplicates
        duplicates = None
        if threshold is not None:
            duplicates = filters.near_duplicates(documents, others, threshold)
        chosen, removed = pairs.select(
            found,
            products,
            same_corpus=same,
            alpha=design.alpha,
            near_duplicate=duplicates,
            max_pairs_per_document=design.max_pairs_per_document,
        )
        told = pairs.statistics(chosen, removed, products, seeds=len(seeds), alpha=design.alpha)
        return [(pair.seed, pair.target) for pair in chosen], told

    train, statistics = choose(splits.train, seeds, True)
    dev, _ = choose(splits.dev, embed([text.text for text in splits.dev]).vectors, False)
    return Pairing(train, dev, statistics)


def _embed(run: artifacts.Run, splits: Splits, design: Design, base: Any, layout: Layout) -> Embed:
    texts = [text.text for text in splits.train]
    embedder = design.embedder
    if not isinstance(embedder, ActivationEmbedder):
        return embedder.fit(run, texts)
    tokens = {text.text: text.tokens for text in (*splits.train, *splits.dev)}
    model: DecoderConfig = design.model
    runner = make_runner(
        model,
        jax.tree.map(jax.numpy.array, base),
        layout,
        max_length=embedder.max_length,
        tokens_per_device=embedder.tokens_per_device,
        pooling="last" if embedder.pooling == "last" else "mean",
        layer=embedder.layer,
    )
    return embedder.centred(runner, splits.bos, lambda some: [tokens[t] for t in some], texts)


def _documents(texts: Sequence[Text]) -> list[Document]:
    return [Document(text.id, text.text) for text in texts]
