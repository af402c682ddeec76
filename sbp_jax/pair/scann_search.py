"""Neighbours by ScaNN: exactly or nearly, by the size of the corpus; an index that can be kept.

The sizes at which the kind of index changes, and its parameters, follow ScaNN's published guidance
(its `docs/algorithms.md`): brute force below 20,000 vectors, asymmetric hashing with reordering
below 100,000, a tree above ("Accelerating Large-Scale Inference with Anisotropic Vector
Quantization", Guo et al., 2020). It says √n leaves for speed and n/100 for recall; of 2·√n fewer
vectors are read for the same recall than of √n, by a tenth to a fifth (200,000 vectors).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
from typing import Any

import numpy as np
from absl import logging

from sbp_jax import artifacts
from sbp_jax.errors import UserError
from sbp_jax.progress import progress
from sbp_jax.settings import configurable

BRUTE_FORCE_BELOW = 20_000
TREE_FROM = 100_000
QUERIES_PER_CALL = 4096
DIMENSIONS_PER_BLOCK = 2  # of one hash of four bits
# ScaNN's default sample of 100,000 would leave leaves of a larger corpus untrained, and the whole
# of it costs its size in memory again.
SAMPLE = 100_000
SAMPLE_PER_LEAF = 125
IDENTITY = "identity.json"


@dataclasses.dataclass(frozen=True)
class SearchPlan:
    """How a corpus is searched.

    Attributes:
      kind: `brute_force`, `hashed`, or `tree`.
      leaves: partitions of the tree.
      leaves_to_search: of them, per query.
      reorder: candidates whose exact product is taken.
    """

    kind: str
    leaves: int = 0
    leaves_to_search: int = 0
    reorder: int = 0

    def build(self, vectors: np.ndarray, count: int) -> ScannIndex:
        """An index of float32 [n, D], for so many neighbours a query."""
        from scann.scann_ops.py import scann_ops_pybind  # loads TensorFlow's runtime

        logging.info("ScaNN: %d vectors of %d dimensions, %s", *vectors.shape, self)
        vectors = np.ascontiguousarray(vectors, np.float32)
        builder = scann_ops_pybind.builder(vectors, min(count, len(vectors)), "dot_product")
        sample = self.sample(len(vectors))
        if self.kind == "brute_force":
            builder = builder.score_brute_force()
        else:
            if self.kind == "tree":
                builder = builder.tree(
                    num_leaves=self.leaves,
                    num_leaves_to_search=self.leaves_to_search,
                    training_sample_size=sample,
                    # Vectors are of length 1, and queries rank leaves by their inner product with
                    # the centroid: that of a wide leaf is shorter, and would be asked too late.
                    spherical=True,
                    # Random centroids follow no seed; k-means++ gives one tree every time.
                    random_init=False,
                )
            builder = builder.score_ah(
                DIMENSIONS_PER_BLOCK,
                anisotropic_quantization_threshold=0.2,
                training_sample_size=sample,
            ).reorder(max(self.reorder, count))
        return ScannIndex(builder.build(), self, len(vectors))

    def sample(self, vectors: int) -> int:
        """How many vectors leaves and hashes are learned from."""
        return min(vectors, max(SAMPLE, SAMPLE_PER_LEAF * self.leaves))


def plan(vectors: int, neighbours: int) -> SearchPlan:
    """The search for a corpus of so many vectors and so many neighbours a query."""
    if vectors < BRUTE_FORCE_BELOW:
        return SearchPlan("brute_force")
    reorder = max(200, 10 * neighbours)
    if vectors < TREE_FROM:
        return SearchPlan("hashed", reorder=reorder)
    leaves = 2 * round(math.sqrt(vectors))
    return SearchPlan("tree", leaves, max(1, leaves // 10), reorder)


@configurable
@dataclasses.dataclass(frozen=True)
class ScannSearch:
    """Search by ScaNN with the parameters that `plan` chooses by size, unless others are given.

    Attributes:
      leaves_to_search: of a tree, per query; more of them raise the recall and cost time.
      reorder: candidates whose exact product is taken; likewise.
      keep: a local directory in which indexes are kept, and looked for before one is built.
    """

    leaves_to_search: int | None = None
    reorder: int | None = None
    keep: str | None = None

    def __post_init__(self):
        for name, value in self.settings.items():
            if value is not None and value < 1:
                raise UserError(f"ScannSearch.{name} = {value}: expected 1 or more, or None")

    @property
    def name(self) -> str:
        return "scann"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the neighbours."""
        return {"leaves_to_search": self.leaves_to_search, "reorder": self.reorder}

    def plan(self, vectors: int, neighbours: int) -> SearchPlan:
        """How so many vectors are searched for so many neighbours."""
        chosen = plan(vectors, neighbours)
        if chosen.kind == "brute_force":
            return chosen
        leaves = self.leaves_to_search or chosen.leaves_to_search
        return dataclasses.replace(
            chosen,
            leaves_to_search=min(leaves, chosen.leaves),
            reorder=self.reorder or chosen.reorder,
        )

    def build(self, vectors: np.ndarray, count: int) -> ScannIndex:
        """An index of float32 [n, D], for so many neighbours a query.

        Raises:
          UserError: the index that was kept is none that may be loaded.
        """
        plan = self.plan(len(vectors), min(count, len(vectors)))
        if self.keep is None:
            return plan.build(vectors, count)
        directory = os.path.join(self.keep, _identity(plan, vectors)["hash"])
        if os.path.exists(os.path.join(directory, IDENTITY)):
            logging.info("ScaNN: the index is in %s", directory)
            return load(directory, plan, vectors)
        index = plan.build(vectors, count)
        index.save(directory, vectors)
        return index


class ScannIndex:
    """An index, ready to be asked or kept."""

    def __init__(self, searcher: Any, plan: SearchPlan, size: int):
        self.searcher, self.plan, self.size = searcher, plan, size

    def find(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest vectors to each query, by inner product; lower indices first among equals.

        Args:
          queries: float32 [m, D].
          count: how many each; fewer where there are no more.

        Returns:
          Indices int64 [m, k] and products float32 [m, k]; k = min(count, n).
        """
        count = min(count, self.size)
        found = np.zeros((len(queries), count), np.int64)
        products = np.zeros((len(queries), count), np.float32)
        bar = progress(desc="neighbours", unit=" queries", total=len(queries))
        for start in range(0, len(queries), QUERIES_PER_CALL):
            rows = slice(start, start + QUERIES_PER_CALL)
            found[rows], products[rows] = self._block(queries[rows], count)
            bar.update(len(queries[rows]))
        bar.close()
        return found, products

    def _block(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        # Those of the plan, which may have changed since the index was built.
        reorder = None if self.plan.kind == "brute_force" else max(self.plan.reorder, count)
        indices, products = self.searcher.search_batched_parallel(
            queries,
            final_num_neighbors=count,
            pre_reorder_num_neighbors=reorder,
            leaves_to_search=self.plan.leaves_to_search or None,
        )
        indices, products = np.array(indices, np.int64), np.array(products, np.float32)
        # Leaves with fewer than `count` vectors leave places that hold index 0 and no number.
        short = np.flatnonzero(np.isnan(products).any(axis=1))
        if len(short):
            indices[short], products[short] = self.searcher.search_batched_parallel(
                queries[short],
                final_num_neighbors=count,
                pre_reorder_num_neighbors=reorder,
                leaves_to_search=self.plan.leaves,
            )
        order = np.lexsort((indices, -products))
        return np.take_along_axis(indices, order, 1), np.take_along_axis(products, order, 1)

    def save(self, directory: str | os.PathLike, vectors: np.ndarray) -> None:
        """Keeps the index in a directory, with a hash of what it was built of and how.

        Args:
          directory: made if it is not there; local, since ScaNN writes it.
          vectors: float32 [n, D], those it was built of.
        """
        os.makedirs(directory, exist_ok=True)
        self.searcher.serialize(os.fspath(directory), relative_path=True)
        # Last: it says that the rest is whole.
        kept = _identity(self.plan, vectors)
        artifacts.write_atomic(os.path.join(directory, IDENTITY), json.dumps(kept, indent=2))


def load(directory: str | os.PathLike, plan: SearchPlan, vectors: np.ndarray) -> ScannIndex:
    """An index that `ScannIndex.save` kept, if it is that of this plan and these vectors.

    Raises:
      UserError: there is none, or one of other vectors, settings or version of ScaNN.
    """
    from scann.scann_ops.py import scann_ops_pybind

    path = os.path.join(directory, IDENTITY)
    try:
        with open(path) as file:
            found = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{directory} holds no finished search index ({error}): build and save it again"
        ) from error
    wanted = _identity(plan, vectors)
    if found != wanted:
        differing = [key for key in wanted if found.get(key) != wanted[key]]
        raise UserError(
            f"{directory} holds a search index with another {' and '.join(differing)}: "
            f"found {found}, expected {wanted}: delete it and build it again"
        )
    # ScaNN would run what lies there as names of documents, and this project gives it none.
    if os.path.exists(os.path.join(directory, "scann_docids.pkl")):
        raise UserError(
            f"{directory}/scann_docids.pkl: expected no such file: delete {directory} "
            "and build the index again"
        )
    searcher = scann_ops_pybind.load_searcher(os.fspath(directory), assets_backcompat_shim=False)
    return ScannIndex(searcher, plan, len(vectors))


def _identity(plan: SearchPlan, vectors: np.ndarray) -> dict[str, Any]:
    content = np.ascontiguousarray(vectors, np.float32)
    parts = {
        "settings": dataclasses.asdict(plan),
        "shape": list(vectors.shape),
        "vectors": hashlib.sha256(content.data).hexdigest()[:16],
        "scann": importlib.metadata.version("scann"),
    }
    return {**parts, "hash": artifacts.digest(parts)}
