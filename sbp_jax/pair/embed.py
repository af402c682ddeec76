"""The stage `sbp embed`: documents become unit vectors with their ids."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import gin
import numpy as np
from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.data.documents import Documents
from sbp_jax.errors import UserError
from sbp_jax.pair.embedders import Embedder
from sbp_jax.settings import configurable


@configurable
def embed(
    run: artifacts.Run,
    *,
    embedder: Embedder = gin.REQUIRED,
    documents: Mapping[str, str] = gin.REQUIRED,
    fit_on: str = "train",
) -> None:
    """Leaves `NAME-vectors.npy` (float32 [n, D], unit norm) and `NAME-ids.json` for each split.

    Args:
      run: names the artefact.
      embedder: `@TfidfEmbedder()` or `@ActivationEmbedder()`.
      documents: rows artefact with documents for each split, e.g. `{"train": "rows/real"}`.
      fit_on: the split that the embedder learns its vocabulary or centre from.
    """
    if fit_on not in documents:
        raise UserError(
            f"embed.fit_on = {fit_on!r}: expected one of embed.documents, {list(documents)}"
        )
    splits = {name: run.path(path) for name, path in documents.items()}
    stage = artifacts.begin(
        run,
        "embed",
        config={"embedder": embedder, "fit_on": fit_on, "splits": list(documents)},
        inputs={
            **{f"documents/{name}": path for name, path in splits.items()},
            **{role: run.path(path) for role, path in embedder.inputs.items()},
        },
        code=(
            "sbp_jax.pair.embed",
            "sbp_jax.pair.embedders",
            "sbp_jax.model",
            "sbp_jax.data.vocabularies",
        ),
    )
    if stage.finished:
        return
    corpora = {name: Documents(path) for name, path in splits.items()}
    function = embedder.fit(run, [document.text for document in corpora[fit_on]])
    counts: dict[str, int] = {}
    for name, corpus in corpora.items():
        vectors = function([document.text for document in corpus])
        zero = int((~vectors.any(axis=1)).sum())
        if zero:
            logging.warning("%s: nothing to embed in %d document(s): they get no pair", name, zero)
        buffer = io.BytesIO()
        np.save(buffer, vectors, allow_pickle=False)
        artifacts.write_atomic(stage.work / f"{name}-vectors.npy", buffer.getvalue())
        artifacts.write_atomic(stage.work / f"{name}-ids.json", json.dumps(corpus.ids))
        counts |= {
            f"{name}_documents": len(corpus),
            f"{name}_zero_vectors": zero,
            "dimensions": vectors.shape[1],
        }
    stage.commit(counts)


def read_vectors(directory: epath.Path, split: str) -> tuple[np.ndarray, list[str]]:
    """Vectors float32 [n, D] and ids of a split, checked.

    Raises:
      UserError: they are missing, damaged, no unit vectors, or not one for each id.
    """
    path = directory / f"{split}-vectors.npy"
    if not path.exists():
        known = [p.name.removesuffix("-vectors.npy") for p in directory.glob("*-vectors.npy")]
        raise UserError(f"{directory} has no vectors of {split!r}: expected one of {sorted(known)}")
    try:
        vectors = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        ids = json.loads((directory / f"{split}-ids.json").read_text())
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"{path} is damaged ({error}): delete {directory} and run sbp embed again"
        ) from error
    if vectors.ndim != 2 or vectors.dtype != np.float32 or len(vectors) != len(ids):
        raise UserError(
            f"{path}: expected float32 [{len(ids)}, D], one vector for each id, found "
            f"{vectors.dtype} {list(vectors.shape)}: run sbp embed again"
        )
    if len(set(ids)) != len(ids):
        raise UserError(f"{directory}: ids of {split!r} stand twice: run sbp embed again")
    norms = np.linalg.norm(vectors, axis=1)
    if not np.all(np.isclose(norms, 1, atol=1e-3) | (norms == 0)):
        worst = int(np.argmax(~(np.isclose(norms, 1, atol=1e-3) | (norms == 0))))
        raise UserError(
            f"{path}: the vector of {ids[worst]!r} has length {norms[worst]}, expected 1 "
            "(or 0 for a document with nothing in it): run sbp embed again"
        )
    return vectors, ids
