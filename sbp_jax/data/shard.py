"""A shard of a task: one worker reads its documents, and leaves rows, texts and counts.

Everything a shard leaves depends on its own documents alone, and its counts are written last: they
say that it is finished. So any number of workers leave the same files, and what was finished
before an interruption is not done again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gin
import numpy as np
from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.data import excluded, vocabularies
from sbp_jax.data import rows as row_format
from sbp_jax.data.documents import Document, DocumentWriter
from sbp_jax.errors import UserError
from sbp_jax.text.ngram_index import NgramIndex

IDS_SHOWN = 10
BATCH_BYTES = 1 << 20  # of text that is tokenised at once


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How documents become rows: what `sbp cache` was asked for, as every worker needs it.

    Attributes:
      task: the SeqIO task or mixture, as `tasks.resolve` takes it.
      split: of the task.
      length: L, tokens in a row.
      vocab: path of the vocabulary.
      documents: whether texts are left too.
      seed_length: pairs only: d1 is cut to so many tokens.
      target_length: pairs only: d2 is cut to so many tokens.
      join: between inputs and targets that go on with them; None for pairs.
      decontaminate: tasks whose texts must not be contained in a document.
      overlap: the containment from which a document is removed.
      run: the run's directory.
      scope: of the stage.
      work: where the files go.
      gin_config: what gin was told, for processes that have not read it.
      modules: what gin configures there.
      python_path: where modules are found.
    """

    task: str
    split: str
    length: int
    vocab: str
    documents: bool
    seed_length: int | None
    target_length: int | None
    join: str | None
    decontaminate: tuple[str, ...]
    overlap: float
    run: str
    scope: str
    work: str
    gin_config: str
    modules: tuple[str, ...]
    python_path: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One of the parts that a task's documents are dealt to.

    Attributes:
      recipe: what becomes of them.
      task: the name of the SeqIO task.
      index: which part.
      count: of how many.
    """

    recipe: Recipe
    task: str
    index: int
    count: int

    def path(self, kind: str, suffix: str) -> epath.Path:
        """A file that the shard leaves."""
        folder = epath.Path(self.recipe.work) / self.task
        return folder / f"{kind}-{self.index:05d}.{suffix}"

    @property
    def counts_path(self) -> epath.Path:
        return self.path("counts", "json")

    @property
    def mistake_path(self) -> epath.Path:
        """Holds what the user has to mend, since exceptions do not come back from a cluster."""
        return self.path("mistake", "txt")


@dataclasses.dataclass
class Counts:
    """What was read, and what became of it.

    Attributes:
      documents: that were packed.
      bytes: of their texts in UTF-8.
      tokens: in rows, padding not counted.
      loss_tokens: those with loss.
      rows: that were written.
      padding: tokens of padding in them.
      split_documents: longer than a row, whose parts lie in several.
      not_utf8: documents in which wrong bytes became U+FFFD.
      cut: of pairs, how often d1 and d2 were cut; of joined ones, how often inputs were.
      rejected: by reason the number of documents that were left out, and the first ids.
    """

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    rows: int = 0
    padding: int = 0
    split_documents: int = 0
    not_utf8: int = 0
    cut: dict[str, int] = dataclasses.field(default_factory=dict)
    rejected: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def reject(self, reason: str, ids: Sequence[str], documents: int = 1) -> None:
        """Counts documents that are left out."""
        entry = self.rejected.setdefault(reason, {"documents": 0, "ids": []})
        entry["documents"] += documents
        entry["ids"] = [*entry["ids"], *ids][:IDS_SHOWN]

    def add(self, other: Counts) -> None:
        """Adds what another shard counted."""
        for field in dataclasses.fields(self):
            if field.type == "int":
                setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        self.cut = dict(collections.Counter(self.cut) + collections.Counter(other.cut))
        for reason, entry in other.rejected.items():
            self.reject(reason, entry["ids"], entry["documents"])


def cache_shard(shard: Shard) -> None:
    """Writes a shard's files; if its counts are there already, nothing.

    A mistake of the user's is written to `Shard.mistake_path`.
    """
    if shard.counts_path.exists():
        return
    recipe = shard.recipe
    _configure(recipe)
    started = time.monotonic()
    with gin.config_scope(recipe.scope or None):
        try:
            counts = _cache(shard)
        except UserError as error:
            shard.mistake_path.parent.mkdir(parents=True, exist_ok=True)
            artifacts.write_atomic(shard.mistake_path, error.message)
            return
    artifacts.write_atomic(shard.counts_path, json.dumps(dataclasses.asdict(counts)))
    seconds = time.monotonic() - started
    logging.debug("%s %d: %.0f tokens/s", shard.task, shard.index, counts.tokens / seconds)


@functools.cache
def _configure(recipe: Recipe) -> None:
    """Makes a process of its own know what the one that handed out the shard does."""
    sys.path += [path for path in recipe.python_path if path not in sys.path]
    if not gin.config_is_locked():  # as it is once the command line has been read
        for module in recipe.modules:
            importlib.import_module(module)
        gin.parse_config(recipe.gin_config, skip_unknown=True)


def read_counts(path: epath.Path) -> Counts:
    """What a finished shard counted."""
    return Counts(**json.loads(path.read_text()))


@functools.cache
def _vocabulary(path: str) -> vocabularies.Vocabulary:
    return vocabularies.load(path)


@functools.cache
def _seqio_vocabulary(path: str) -> Any:
    from sbp_jax.data.seqio_vocabularies import seqio_vocabulary

    return seqio_vocabulary(_vocabulary(path))


@functools.cache
def _task(recipe: Recipe, name: str) -> Any:
    from sbp_jax.data import tasks  # loads SeqIO

    run = artifacts.Run(epath.Path(recipe.run), recipe.scope)
    resolved = tasks.resolve(recipe.task, _seqio_vocabulary(recipe.vocab), run)
    return next(task for task in resolved.tasks if task.name == name)


@functools.cache
def _evaluation_index(recipe: Recipe) -> NgramIndex:
    """The texts that must stay out of training, by task and id."""
    from sbp_jax.data import tasks  # loads SeqIO

    run = artifacts.Run(epath.Path(recipe.run), recipe.scope)
    vocabulary = _seqio_vocabulary(recipe.vocab)
    resolved = (tasks.resolve(spec, vocabulary, run) for spec in recipe.decontaminate)
    return NgramIndex(
        text for one in resolved for task in one.tasks for text in excluded.texts_of(task)
    )


def _cache(shard: Shard) -> Counts:
    recipe = shard.recipe
    task, vocabulary = _task(recipe, shard.task), _vocabulary(recipe.vocab)
    paired = "inputs" in task.output_features
    if recipe.join is not None and not paired:
        raise UserError(f"task {task.name} has targets and no inputs: leave out cache.join")
    if paired and recipe.join is None and None in (recipe.seed_length, recipe.target_length):
        raise UserError(
            f"task {task.name} has pairs (inputs and targets): set cache.seed_length and "
            "cache.target_length, or cache.join where targets go on with inputs"
        )
    shard.counts_path.parent.mkdir(parents=True, exist_ok=True)
    counts = Counts()
    with contextlib.ExitStack() as files:
        writer = None
        if recipe.documents:
            writer = files.enter_context(
                DocumentWriter(files.enter_context(_whole(shard.path("documents", "array_record"))))
            )
        ids = files.enter_context(_ListFile(shard.path("ids", "npy")))
        removed = files.enter_context(_ListFile(shard.path("removed", "jsonl")))
        rows = files.enter_context(_whole(shard.path("rows", "array_record")))

        def pieces() -> Iterator[row_format.Piece]:
            for batch in _batches(_documents(shard, task, counts, ids.values, removed.values)):
                if recipe.join is None:
                    encoded = _tokens(batch, task, vocabulary)
                else:
                    encoded = _joined(batch, recipe.join, task, vocabulary)
                for document, tokens in zip(batch, encoded, strict=True):
                    if not tokens["targets"]:
                        counts.reject("no tokens", [document.id])
                        continue
                    if recipe.join is not None and len(tokens["targets"]) > recipe.length:
                        counts.reject("targets longer than a row", [document.id])
                        continue
                    if writer:
                        writer.write(Document(document.id, document.text, _features(document)))
                    for piece in _cut(tokens, recipe, vocabulary, counts):
                        counts.tokens += len(piece.targets)
                        counts.loss_tokens += piece.loss_tokens
                        yield piece._replace(document=counts.documents)
                    counts.documents += 1
                    counts.bytes += len(((recipe.join or "") + document.text).encode())

        packed = row_format.pack(pieces(), recipe.length)
        counts.rows = row_format.write_rows(rows, packed, vocabulary.size)
    counts.padding = counts.rows * recipe.length - counts.tokens
    return counts


class _Document(NamedTuple):
    """An example of a SeqIO task; its text is that of `targets`."""

    id: str
    text: str
    example: Mapping[str, Any]


def _documents(
    shard: Shard, task: Any, counts: Counts, ids: list[int], removed: list[dict[str, Any]]
) -> Iterator[_Document]:
    """The documents that are not left out; the hash of each one's id goes to `ids`."""
    from sbp_jax.data import tasks  # loads SeqIO

    recipe = shard.recipe
    index = _evaluation_index(recipe) if recipe.decontaminate else None
    seen: set[int] = set()
    part = shard.index, shard.count
    found = tasks.examples(task, recipe.split, part, tokenised=not _is_ours(task, recipe))
    for number, example in enumerate(found):
        name = tasks.id_of(example) or f"{shard.task}-{shard.index}-{number}"
        hashed = id_hash(name)
        if hashed in seen:
            raise UserError(id_twice(shard.task, name))
        seen.add(hashed)
        ids.append(hashed)
        if reason := tasks.rejection(example):
            counts.reject(reason, [name])
            continue
        text, replaced = tasks.text_of(example)
        if not text or not all(len(example[key]) for key in task.output_features):
            counts.reject("no tokens", [name])
            continue
        contained = index.most_contained(text) if index else None
        if contained and contained[1] >= recipe.overlap:
            counts.reject(f"contains {contained[0].split()[0]}", [name])
            removed.append({"id": name, "contains": contained[0], "containment": contained[1]})
            continue
        counts.not_utf8 += replaced
        yield _Document(name, text, example)


def _is_ours(task: Any, recipe: Recipe) -> bool:
    """Whether a task has the run's vocabulary: then its texts are tokenised here, in batches."""
    ours = _seqio_vocabulary(recipe.vocab)
    return all(feature.vocabulary == ours for feature in task.output_features.values())


def _batches(documents: Iterable[_Document]) -> Iterator[list[_Document]]:
    """Documents by some `BATCH_BYTES` of text."""
    batch: list[_Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _tokens(
    batch: Sequence[_Document], task: Any, vocabulary: vocabularies.Vocabulary
) -> list[dict[str, list[int]]]:
    """The tokens of each document's features, which the task may have left to us."""
    found: list[dict[str, list[int]]] = [{} for _ in batch]
    for key in task.output_features:
        if isinstance(batch[0].example[key], bytes):
            # Bytes that are no UTF-8 are the vocabulary's business, which may keep them.
            texts = [one.example[key].decode(errors="surrogateescape") for one in batch]
            values = vocabulary.encode_batch(texts)
        else:
            values = [document.example[key].tolist() for document in batch]
            if key == "targets":
                for document, tokens in list(zip(batch, values, strict=True))[:IDS_SHOWN]:
                    _check_vocabulary(task.name, document, tokens, vocabulary)
        for features, value in zip(found, values, strict=True):
            features[key] = value
    return found


def _joined(
    batch: Sequence[_Document], join: str, task: Any, vocabulary: vocabularies.Vocabulary
) -> list[dict[str, list[int]]]:
    """The tokens of inputs and targets as one text, which may be others than those of the parts.

    What belongs to the targets is told as lm-evaluation-harness does: all behind as many tokens as
    the inputs have alone.
    """
    if not all(isinstance(batch[0].example[key], bytes) for key in ("inputs", "targets")):
        raise UserError(
            f"task {task.name} tokenises by itself, or with another vocabulary than the run's: "
            "cache.join needs texts, which seqio.preprocessors.tokenize as the last step leaves"
        )
    inputs, targets = (
        [one.example[key].decode(errors="surrogateescape") for one in batch]
        for key in ("inputs", "targets")
    )
    whole = vocabulary.encode_batch([a + join + b for a, b in zip(inputs, targets, strict=True)])
    sizes = [len(tokens) for tokens in vocabulary.encode_batch(inputs)]
    return [
        {"inputs": tokens[:size], "targets": tokens[size:]}
        for tokens, size in zip(whole, sizes, strict=True)
    ]


def _check_vocabulary(
    task: str, document: _Document, tokens: Sequence[int], vocabulary: vocabularies.Vocabulary
) -> None:
    """A task with another vocabulary than the run's would train on noise without a word."""
    body = tokens[:-1] if tokens and tokens[-1] == vocabulary.eos else tokens
    if vocabulary.encode(document.text)[: len(body)] != list(body):
        raise UserError(
            f"task {task} tokenises {document.id!r} otherwise than the run's vocabulary: "
            "build the task with that vocabulary, or set cache.vocab to the task's own"
        )


def _cut(
    tokens: Mapping[str, list[int]],
    recipe: Recipe,
    vocabulary: vocabularies.Vocabulary,
    counts: Counts,
) -> Iterator[row_format.Piece]:
    """A document's pieces: parts of a row's length, a pair cut to its limits, or one joined."""
    bos, eos, targets = vocabulary.bos, vocabulary.eos, tokens["targets"]
    if "inputs" not in tokens:
        piece = row_format.document_piece(targets, bos, eos)
        counts.split_documents += len(piece.targets) > recipe.length
        yield from row_format.split(piece, recipe.length)
        return
    if recipe.join is not None:
        if len(tokens["inputs"]) + len(targets) > recipe.length:
            counts.cut["inputs"] = counts.cut.get("inputs", 0) + 1
        yield row_format.continued_piece(tokens["inputs"], targets, bos, recipe.length)
        return
    assert recipe.seed_length is not None
    assert recipe.target_length is not None
    sizes = {"d1": (len(tokens["inputs"]), recipe.seed_length)}
    sizes["d2"] = (len(targets) + 1, recipe.target_length)
    for name, (size, limit) in sizes.items():
        if size > limit:
            counts.cut[name] = counts.cut.get(name, 0) + 1
    yield row_format.pair_piece(
        tokens["inputs"], targets, bos, eos, recipe.seed_length, recipe.target_length
    )


def _features(document: _Document) -> dict[str, str]:
    """The other texts of an example, to be kept beside its own."""
    from sbp_jax.data import tasks  # loads SeqIO

    left_out = ("id", "text", "targets", "rejected")
    return {
        name: tasks.decode(value)[0]
        for name, value in document.example.items()
        if isinstance(value, bytes) and name not in left_out and not name.endswith("_pretokenized")
    }


def id_hash(document_id: str) -> int:
    """64 bits of an id."""
    hashed = hashlib.blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(hashed.digest(), "little")


def id_twice(task: str, document_id: str) -> str:
    """What is wrong when a task gives an id twice."""
    return f"task {task} gives the id {document_id!r} twice: ids must be unique"


class _ListFile:
    """Collects values, and leaves a file of them if there are any: uint64 or JSON lines."""

    def __init__(self, path: epath.Path):
        self.path, self.values = path, list[Any]()

    def __enter__(self) -> _ListFile:
        return self

    def __exit__(self, kind, *exception) -> None:
        if kind is not None or not self.values:
            return
        if self.path.suffix == ".jsonl":
            lines = "".join(json.dumps(value) + "\n" for value in self.values)
            artifacts.write_atomic(self.path, lines)
            return
        with _whole(self.path) as path, Path(path).open("wb") as file:
            np.save(file, np.sort(np.array(self.values, np.uint64)))


@contextlib.contextmanager
def _whole(path: epath.Path) -> Iterator[str]:
    """A local name to write to; the file is there under its own name once it is whole."""
    remote = "://" in os.fspath(path)
    with tempfile.TemporaryDirectory() if remote else contextlib.nullcontext() as folder:
        parent = folder if folder else os.fspath(path.parent)
        local = os.path.join(parent, f".{path.name}.{uuid.uuid4().hex}")
        try:
            yield local
        except BaseException:
            Path(local).unlink(missing_ok=True)
            raise
        if folder:
            epath.Path(local).copy(path, overwrite=True)
        else:
            os.replace(local, path)
