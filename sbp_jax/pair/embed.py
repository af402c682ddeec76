"""The stage `sbp embed`: documents become unit vectors with their ids, shard by shard.

A shard is a run of documents. It is read, embedded and written before the next, and its counts are
written last: they say that it is finished, and an interrupted stage does not embed it again.
Several processes share the shards out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, overload

import gin
import jax
from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.data.documents import Documents
from sbp_jax.errors import UserError
from sbp_jax.pair.embedders import Embed, Embedder
from sbp_jax.pair.vectors import DTYPES, open_vectors, write_shard
from sbp_jax.parallel import processes
from sbp_jax.settings import configurable


@configurable
def embed(
    run: artifacts.Run,
    *,
    embedder: Embedder = gin.REQUIRED,
    documents: Mapping[str, str] = gin.REQUIRED,
    fit_on: str = "train",
    vectors_dtype: str = "float32",
    shard_documents: int = 100_000,
) -> None:
    """Leaves vectors and ids of each split, as `sbp_jax.pair.vectors` describes them.

    Args:
      run: names the artefact.
      embedder: `@TfidfEmbedder()`, `@ActivationEmbedder()` or `@HuggingFaceEmbedder()`.
      documents: rows artefact with documents for each split, e.g. `{"train": "rows/real"}`.
      fit_on: the split that the embedder learns its vocabulary or centre from.
      vectors_dtype: on disk: `float32`, `bfloat16` (half of it) or `int8` (a quarter).
      shard_documents: documents of a shard, which are in memory together.
    """
    if fit_on not in documents:
        raise UserError(
            f"embed.fit_on = {fit_on!r}: expected one of embed.documents, {list(documents)}"
        )
    if vectors_dtype not in DTYPES:
        raise UserError(f"embed.vectors_dtype = {vectors_dtype!r}: expected one of {list(DTYPES)}")
    if shard_documents < 1:
        raise UserError(f"embed.shard_documents = {shard_documents} must be at least 1")
    for name in documents:
        if not name or name.startswith(".") or "/" in name:
            raise UserError(f"embed.documents: {name!r} cannot name a folder of vectors")
    splits = {name: run.path(path) for name, path in documents.items()}
    stage = artifacts.begin(
        run,
        "embed",
        config={
            "embedder": embedder,
            "fit_on": fit_on,
            "splits": list(documents),
            "vectors_dtype": vectors_dtype,
            "shard_documents": shard_documents,
        },
        inputs={
            **{f"documents/{name}": path for name, path in splits.items()},
            **{role: run.path(path) for role, path in embedder.inputs.items()},
        },
        code=(
            "sbp_jax.pair.embed",
            "sbp_jax.pair.embedders",
            "sbp_jax.pair.activations",
            "sbp_jax.pair.vectors",
            "sbp_jax.model",
            "sbp_jax.data.vocabularies",
        ),
        resumable=True,
        writer=processes.is_writer(),
    )
    if stage.finished:
        return
    processes.wait_for_all(f"begin {run.scope}")
    corpora = {name: Documents(path) for name, path in splits.items()}
    for name, corpus in corpora.items():
        if not len(corpus):
            raise UserError(f"embed: {splits[name]} ({name!r}) has no documents")
    shards = [
        (name, number)
        for name, corpus in corpora.items()
        for number in range(-(-len(corpus) // shard_documents))
    ]
    mine = [
        shard
        for place, shard in enumerate(shards)
        if place % jax.process_count() == jax.process_index()
        and not _counts_path(stage.work, *shard).exists()
    ]
    # A checkpoint is read by all processes or by none.
    done = processes.all_of(not mine)
    function = None if done else embedder.fit(run, Texts(corpora[fit_on]))
    for name, number in mine:
        assert function is not None
        one = slice(number * shard_documents, (number + 1) * shard_documents)
        _embed_shard(stage.work, name, number, corpora[name], one, function, vectors_dtype)
        if processes.is_writer():
            stage.save_time()
    processes.wait_for_all(f"end {run.scope}")
    if processes.is_writer():
        stage.commit(_counts(stage.work, shards, list(corpora)))


def _embed_shard(
    work: epath.Path,
    name: str,
    number: int,
    corpus: Documents,
    one: slice,
    function: Embed,
    dtype: str,
) -> None:
    documents = corpus[one]
    found = function([document.text for document in documents])
    write_shard(work, name, number, [d.id for d in documents], found.vectors, dtype)
    counts = {
        "documents": len(documents),
        "zero_vectors": int((~found.vectors.any(axis=1)).sum()),
        "dimensions": found.vectors.shape[1],
        "tokens": found.tokens,
        "padding": found.padding,
    }
    artifacts.write_atomic(_counts_path(work, name, number), json.dumps(counts))
    logging.info("%s: %d of %d documents", name, one.start + len(documents), len(corpus))


def _counts_path(work: epath.Path, name: str, number: int) -> epath.Path:
    return work / name / f"counts-{number:05d}.json"


def _counts(
    work: epath.Path, shards: Sequence[tuple[str, int]], names: Sequence[str]
) -> dict[str, Any]:
    """What all shards hold together; each split is opened once, as its readers will."""
    of = {shard: json.loads(_counts_path(work, *shard).read_text()) for shard in shards}
    counts: dict[str, Any] = {}
    for name in names:
        opened = open_vectors(work, name)
        zero = sum(of[shard]["zero_vectors"] for shard in shards if shard[0] == name)
        if zero:
            logging.warning("%s: nothing to embed in %d document(s): they get no pair", name, zero)
        counts |= {
            f"{name}_documents": len(opened),
            f"{name}_zero_vectors": zero,
            "dimensions": opened.dimensions,
        }
    tokens, padding = (sum(one[key] for one in of.values()) for key in ("tokens", "padding"))
    if tokens:
        share = padding / (tokens + padding)
        logging.info("%d tokens, and beside them %.1f%% padding", tokens, 100 * share)
        # Padding depends on the devices, on which nothing that is recorded may: it is in the files.
        counts |= {"tokens": tokens}
    return counts


class Texts(Sequence[str]):
    """The texts of documents, each read when it is asked for."""

    def __init__(self, documents: Documents):
        self.documents = documents

    def __len__(self) -> int:
        return len(self.documents)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [document.text for document in self.documents[index]]
        return self.documents[index].text
