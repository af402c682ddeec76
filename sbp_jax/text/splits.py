"""Splits of a corpus between which no near-duplicate is torn."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Sequence

from absl import logging

from sbp_jax.progress import progress
from sbp_jax.text import near_duplicates, shingles

# A cluster larger than this is trained on, so that no held-out split is mostly one template.
LARGEST_HELD_OUT_CLUSTER = 50


def deal(
    ids: Sequence[str],
    texts: Sequence[str],
    *,
    heldout_share: float,
    dev_share: float,
    threshold: float,
) -> list[str]:
    """Deals documents to the splits by the hash of their cluster of near-duplicates.

    Near-duplicates, taken transitively, always fall to the same split. Which one depends on the
    cluster's own documents alone.

    Args:
      ids: of the documents, unique.
      texts: of the documents.
      heldout_share: of the clusters, to `heldout`.
      dev_share: of the clusters, to `dev`.
      threshold: containment of 13-word shingles from which two documents are near-duplicates.

    Returns:
      Of each document `heldout`, `dev` or `train`.
    """
    sets = [shingles.shingles(text) for text in progress(texts, desc="shingles", unit=" documents")]
    pairs = near_duplicates.near_duplicate_pairs(sets, threshold)
    labels = near_duplicates.clusters(len(ids), pairs).tolist()
    sizes = collections.Counter(labels)
    logging.info(
        "%d documents, %d of them without near-duplicates; the largest clusters: %s",
        len(ids),
        sum(size == 1 for size in sizes.values()),
        sorted(sizes.values())[:-6:-1],
    )
    names: dict[int, str] = {}
    for label, document_id in zip(labels, ids, strict=True):
        names[label] = min(names.get(label, document_id), document_id)

    def split(label: int) -> str:
        drawn = draw("split", names[label])
        if sizes[label] > LARGEST_HELD_OUT_CLUSTER or drawn >= heldout_share + dev_share:
            return "train"
        return "heldout" if drawn < heldout_share else "dev"

    return [split(label) for label in labels]


def draw(salt: str, document_id: str) -> float:
    """A number in [0, 1) that is random over ids and the same in every process."""
    hashed = hashlib.sha256(f"{salt} {document_id}".encode()).digest()
    return int.from_bytes(hashed[:8], "little") / 2**64
