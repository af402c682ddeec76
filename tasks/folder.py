"""folder: your own text files, as SeqIO tasks.

What: every `.txt` and `.md` file under `folder.directory` is a document, and so is every line of a
`.jsonl` file: an object with `text`, and `id` if it has one of its own.
Source: your disk.
Licence: yours.
Size: what fits in memory, some 100,000 documents; larger corpora deserve a TFDS data set and a
task of their own.
Prepare: nothing; `folder.directory = '…'` in gin, after `import tasks.folder`.

Splits: `heldout` and `dev` get shares of the documents by hash, `train` the rest. Near-duplicates
(containment of 13-word shingles, taken transitively) always fall on the same side.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import gin
from etils import epath

from sbp_jax.errors import UserError
from sbp_jax.settings import configurable
from sbp_jax.text.splits import deal

if TYPE_CHECKING:
    import seqio  # imported where it is used: gin loads this module in every stage

TEXT_FILES = (".txt", ".md")
LINE_FILES = (".jsonl",)


class Corpus(NamedTuple):
    """A folder as it was read.

    Attributes:
      documents: of each split ids and texts.
      fingerprint: changes with any of them.
    """

    documents: dict[str, list[tuple[str, str]]]
    fingerprint: str


@configurable
def folder(
    *,
    directory: str = gin.REQUIRED,
    heldout_share: float = 0.05,
    dev_share: float = 0.02,
    threshold: float = 0.5,
) -> Corpus:
    """Reads the folder and deals its documents to the splits.

    Args:
      directory: is searched through all its depths.
      heldout_share: of the documents' clusters, to `heldout`.
      dev_share: of the clusters, to `dev`.
      threshold: containment from which two documents are near-duplicates.

    Raises:
      UserError: there is no such folder, a file in it cannot be read, or a split is left empty.
    """
    if min(heldout_share, dev_share) <= 0 or heldout_share + dev_share >= 1:
        raise UserError(
            f"folder: heldout_share {heldout_share} and dev_share {dev_share} must be above 0 and "
            "leave something to train on"
        )
    if not 0 < threshold <= 1:
        raise UserError(f"folder: threshold {threshold} must be above 0 and at most 1")
    return _read(directory, heldout_share, dev_share, threshold)


@functools.cache
def _read(directory: str, heldout_share: float, dev_share: float, threshold: float) -> Corpus:
    found = list(_documents(epath.Path(directory)))
    ids, texts = [name for name, _ in found], [text for _, text in found]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"folder: two documents of {directory} have the id {twice!r}")
    splits = deal(ids, texts, heldout_share=heldout_share, dev_share=dev_share, threshold=threshold)
    documents: dict[str, list[tuple[str, str]]] = {"train": [], "dev": [], "heldout": []}
    for document, split in zip(found, splits, strict=True):
        documents[split].append(document)
    if empty := [name for name, members in documents.items() if not members]:
        raise UserError(
            f"folder: of the {len(found)} documents of {directory} none fell to "
            f"{', '.join(empty)}: give more documents, or raise folder.{empty[0]}_share"
        )
    record = hashlib.sha256(json.dumps(documents).encode())
    return Corpus(documents, record.hexdigest()[:16])


def _documents(directory: epath.Path) -> Iterator[tuple[str, str]]:
    if not directory.is_dir():
        raise UserError(f"folder.directory = {str(directory)!r} is no folder: name one with text")
    files = (folder / name for folder, _, names in directory.walk() for name in names)
    paths = sorted(path for path in files if path.suffix in TEXT_FILES + LINE_FILES)
    if not paths:
        raise UserError(
            f"folder: {directory} holds no file that ends in "
            f"{', '.join(TEXT_FILES + LINE_FILES)}: put text there, or name another folder"
        )
    for path in paths:
        name = str(path.relative_to(directory))
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 (byte {error.start}): convert it, or take it away"
            ) from error
        if path.suffix in TEXT_FILES:
            yield name, text
            continue
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                yield str(entry.get("id", f"{name}:{number}")), entry["text"] + ""
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{path}, line {number}: expected a JSON object with a text under `text`"
                ) from error


def _task(split: str, vocabulary: seqio.Vocabulary) -> seqio.Task:
    """Registers a split as the task `folder_SPLIT`, whose only split is `train`."""
    import seqio
    import tensorflow as tf

    corpus = folder()
    documents = corpus.documents[split]

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del split, shuffle_files, seed
        text = tf.TensorSpec([], tf.string)
        return tf.data.Dataset.from_generator(
            lambda: ({"id": name, "targets": text} for name, text in documents),
            output_signature={"id": text, "targets": text},
        )

    source = seqio.FunctionDataSource(
        dataset_fn, splits=["train"], num_input_examples={"train": len(documents)}
    )
    source.fingerprint = corpus.fingerprint
    seqio.TaskRegistry.remove(f"folder_{split}")
    return seqio.TaskRegistry.add(
        f"folder_{split}",
        source=source,
        preprocessors=[seqio.preprocessors.tokenize],
        output_features={"targets": seqio.Feature(vocabulary, add_eos=True)},
    )


def train(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """D_pretrain."""
    return _task("train", vocabulary)


def dev(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For choosing settings; no near-duplicate of it is in another split."""
    return _task("dev", vocabulary)


def heldout(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For the final score; no near-duplicate of it is in another split."""
    return _task("heldout", vocabulary)
