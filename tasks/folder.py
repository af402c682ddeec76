"""folder: your own text files, as SeqIO tasks.

What: every `.txt` and `.md` file under `folder.directory` is a document, every line of a `.jsonl`
file (also `.ndjson`; packed as `.jsonl.gz`, `.jsonl.zst`, `.json.gz`): an object with `text`, and
`id` if it has one of its own; and every row of a `.parquet` file with such columns.
Source: your disk, or a bucket (`gs://…`).
Licence: yours.
Size: what fits in memory, some 100,000 documents; with `folder.near_duplicates = False` any.
Prepare: nothing; `folder.directory = '…'` in gin, after `import tasks.folder`.

Splits: `heldout` and `dev` get shares of the documents by hash, `train` the rest. Near-duplicates
(containment of 13-word shingles, taken transitively) always fall on the same side; with
`near_duplicates = False`, which reads a stream, only equal texts do.

A line that is no JSON, a document without text, one that is too long or not UTF-8 is an example of
`train` with the reason in `rejected`, to be counted and named by `sbp cache`. A file that breaks
off is refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import gin

from sbp_jax.data import corpora, formats
from sbp_jax.errors import UserError
from sbp_jax.settings import configurable
from sbp_jax.text.splits import deal

if TYPE_CHECKING:
    import seqio  # imported where it is used: gin loads this module in every stage


class Corpus(NamedTuple):
    """A folder as it was read.

    Attributes:
      documents: of each split ids and texts.
      rejected: where something stands that cannot be used, and why it cannot.
      fingerprint: changes with any of them.
    """

    documents: dict[str, list[tuple[str, str]]]
    rejected: list[tuple[str, str]]
    fingerprint: str


@configurable
def folder(
    *,
    directory: str = gin.REQUIRED,
    text: str = "text",
    heldout_share: float = 0.05,
    dev_share: float = 0.02,
    near_duplicates: bool = True,
    threshold: float = 0.5,
    max_bytes: int = formats.MAX_BYTES,
) -> Corpus | corpora.Streamed:
    """Reads the folder and deals its documents to the splits.

    Args:
      directory: is searched through all its depths; or a file or glob.
      text: the field, or column, that holds the text.
      heldout_share: of the documents' clusters, to `heldout`.
      dev_share: of the clusters, to `dev`.
      near_duplicates: whether they are kept on one side, which holds all documents in memory; if
        not, shares are of documents, and nothing is read before a task is.
      threshold: containment from which two documents are near-duplicates.
      max_bytes: a longer document, or line, is not used.

    Raises:
      UserError: there is no such folder, a file in it cannot be read, or a split is left empty.
    """
    corpora.check_shares("folder", heldout_share, dev_share)
    if not 0 < threshold <= 1:
        raise UserError(f"folder: threshold {threshold} must be above 0 and at most 1")
    found = corpora.Streamed(
        "folder.directory",
        directory,
        formats.Schema(text=text, max_bytes=max_bytes),
        heldout_share=heldout_share,
        dev_share=dev_share,
    )
    return _read(found, threshold) if near_duplicates else found


@functools.cache
def _read(source: corpora.Streamed, threshold: float) -> Corpus:
    found, rejected = [], []
    for file in formats.find(source.place, source.setting):
        for example in formats.read(file, source.schema):
            if example["rejected"]:
                rejected.append((example["id"], example["rejected"]))
            else:
                found.append((example["id"], example["text"]))
    ids, texts = [name for name, _ in found], [text for _, text in found]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"folder: two documents of {source.place} have the id {twice!r}")
    splits = deal(
        ids,
        texts,
        heldout_share=source.heldout_share,
        dev_share=source.dev_share,
        threshold=threshold,
    )
    dealt: dict[str, list[tuple[str, str]]] = {"train": [], "dev": [], "heldout": []}
    for document, split in zip(found, splits, strict=True):
        dealt[split].append(document)
    if empty := [name for name, members in dealt.items() if not members]:
        unusable = f" ({len(rejected)} more cannot be used: {rejected[0]})" if rejected else ""
        raise UserError(
            f"folder: of the {len(found)} documents of {source.place}{unusable} none fell to "
            f"{', '.join(empty)}: give more documents, or raise folder.{empty[0]}_share"
        )
    record = hashlib.sha256(json.dumps([dealt, rejected]).encode())
    return Corpus(dealt, rejected, record.hexdigest()[:16])


def _task(split: str, vocabulary: seqio.Vocabulary) -> seqio.Task:
    """Registers a split as the task `folder_SPLIT`, whose only split is `train`."""
    corpus = folder()
    if isinstance(corpus, Corpus):
        source = _source(corpus, split)
    else:
        source = corpora.from_files(corpus, split)
    return corpora.register(f"folder_{split}", source, vocabulary, [corpora.text_to_targets])


def _source(corpus: Corpus, split: str) -> seqio.DataSource:
    documents = corpus.documents[split]
    rejected = corpus.rejected if split == "train" else []

    def examples() -> Iterator[dict[str, str]]:
        for name, content in documents:
            yield {"id": name, "text": content, "rejected": ""}
        for name, reason in rejected:
            yield {"id": name, "text": "", "rejected": reason}

    features = ("id", "text", "rejected")
    count = len(documents) + len(rejected)
    return corpora.from_memory(features, examples, count, corpus.fingerprint)


def train(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """D_pretrain."""
    return _task("train", vocabulary)


def dev(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For choosing settings; no near-duplicate of it is in another split."""
    return _task("dev", vocabulary)


def heldout(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For the final score; no near-duplicate of it is in another split."""
    return _task("heldout", vocabulary)
