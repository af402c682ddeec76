"""The stage `sbp cache`: a SeqIO task or mixture becomes packed rows, once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import gin
import numpy as np
from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.data import rows as row_format
from sbp_jax.data.documents import FILE, Document, DocumentWriter
from sbp_jax.errors import UserError
from sbp_jax.progress import progress
from sbp_jax.settings import configurable

IDS_SHOWN = 10


@dataclasses.dataclass
class SourceCounts:
    """What was read from one task, and what became of it."""

    rate: float
    synthetic: bool
    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    rows: int = 0
    padding: int = 0
    split_documents: int = 0
    cut: dict[str, int] = dataclasses.field(default_factory=dict)
    rejected: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def reject(self, reason: str, document_id: str) -> None:
        entry = self.rejected.setdefault(reason, {"documents": 0, "ids": []})
        entry["documents"] += 1
        if len(entry["ids"]) < IDS_SHOWN:
            entry["ids"].append(document_id)


@configurable
def cache(
    run: artifacts.Run,
    *,
    task: str | Mapping[str, float] = gin.REQUIRED,
    length: int = gin.REQUIRED,
    split: str = "train",
    vocab: str = "vocab",
    documents: bool = False,
    seed_length: int | None = None,
    target_length: int | None = None,
) -> None:
    """Reads a task or mixture once and leaves its packed rows.

    A task with the feature `targets` alone is packed as documents; those longer than a row are
    split without losing a token. One with `inputs` too is packed as pairs d1 → d2: cut, never
    split, with loss on d2 only.

    Args:
      run: names the artefact.
      task: `module:attribute[@artefact]`, or several with their rates for a mixture.
      length: L, tokens in a row.
      split: of the task.
      vocab: artefact of `sbp vocab`, or a SentencePiece model file.
      documents: whether to leave the documents' text too, for embedding and as seeds.
      seed_length: pairs only: d1 is cut to so many tokens.
      target_length: pairs only: d2 is cut to so many tokens.
    """
    # SeqIO brings TensorFlow, which only the stages that read tasks need.
    import seqio

    from sbp_jax.data import tasks
    from sbp_jax.data.vocab import load, model_file

    vocab_path = run.path(vocab)
    pieces = load(vocab_path)
    model = model_file(vocab_path)
    vocabulary = seqio.SentencePieceVocabulary(str(model), extra_ids=0)
    resolved = tasks.resolve(task, vocabulary, run)
    frame = 2 if seed_length is None else seed_length + 2
    if length < frame or (target_length is not None and length < frame - 1 + target_length):
        raise UserError(
            f"cache.length = {length} is too short: a row must hold "
            + (
                "a token and its end (2)"
                if seed_length is None
                else f"BOS, {seed_length} tokens of d1, EOS and {target_length} of d2 "
                f"({frame - 1 + (target_length or 1)})"
            )
        )
    inputs = {**resolved.inputs, "vocab": vocab_path}
    stage = artifacts.begin(
        run,
        "cache",
        config={
            "task": task,
            "split": split,
            "length": length,
            "documents": documents,
            "seed_length": seed_length,
            "target_length": target_length,
            "corpora": [tasks.fingerprint(one) for one in resolved.tasks],
        },
        inputs=inputs,
        code=("sbp_jax.data", *resolved.code),
    )
    if stage.finished:
        return
    reader = _Reader(pieces, length, split, seed_length, target_length)
    sources = {}
    for one, rate, synthetic in zip(
        resolved.tasks, resolved.rates, resolved.synthetic, strict=True
    ):
        directory = stage.work / one.name
        directory.mkdir(parents=True, exist_ok=True)
        counts = SourceCounts(rate, synthetic)
        found = reader.pieces(one, counts, directory if documents else None)
        counts.rows, counts.padding = row_format.write_rows(
            directory, row_format.pack(found, length)
        )
        if counts.documents == 0:
            raise UserError(
                f"task {one.name} is empty: split {split!r} gave no document"
                + (f" (rejected: {counts.rejected})" if counts.rejected else "")
            )
        for reason, entry in counts.rejected.items():
            logging.warning("%s: %d rejected: %s", one.name, entry["documents"], reason)
        sources[one.name] = dataclasses.asdict(counts)
    total = {
        field: sum(counts[field] for counts in sources.values())
        for field in ("documents", "bytes", "tokens", "loss_tokens", "rows", "padding")
    }
    slots = total["rows"] * length
    logging.info("%s: %.2f%% of the rows is padding", run.scope, 100 * total["padding"] / slots)
    stage.commit({**total, "vocab_size": pieces.get_piece_size(), "sources": sources})


class _Reader:
    """Turns the examples of a task into pieces, counting what it does."""

    def __init__(self, pieces, length, split, seed_length, target_length):
        self.sentencepiece = pieces
        self.eos = pieces.eos_id()
        self.bos = pieces.bos_id() if pieces.bos_id() >= 0 else max(pieces.pad_id(), 0)
        self.length, self.split = length, split
        self.seed_length, self.target_length = seed_length, target_length

    def pieces(
        self, task: Any, counts: SourceCounts, documents_directory: epath.Path | None
    ) -> Iterator[row_format.Piece]:
        from sbp_jax.data import tasks  # loads SeqIO

        paired = "inputs" in task.output_features
        if paired and (self.seed_length is None or self.target_length is None):
            raise UserError(
                f"task {task.name} has pairs (inputs and targets): "
                "set cache.seed_length and cache.target_length"
            )
        writer = DocumentWriter(documents_directory / FILE) if documents_directory else None
        seen: set[str] = set()
        bar = progress(tasks.examples(task, self.split), desc=f"cache {task.name}", unit=" docs")
        for index, example in enumerate(bar):
            document_id = _text(example.get("id")) or f"{task.name}-{index}"
            tokens = np.asarray(example["targets"], np.int32).tolist()
            if not tokens or (paired and not len(example["inputs"])):
                counts.reject("no tokens", document_id)
                continue
            if document_id in seen:
                raise UserError(
                    f"task {task.name} gives the id {document_id!r} twice: ids must be unique"
                )
            seen.add(document_id)
            text = tasks.text_of(example)
            if counts.documents < IDS_SHOWN:
                self._check_vocabulary(task.name, document_id, text, tokens)
            if writer:
                features = {
                    name: decoded
                    for name, value in example.items()
                    if isinstance(value, bytes)
                    and not name.endswith("_pretokenized")
                    and name not in ("id", "text")
                    and (decoded := _text(value)) is not None
                }
                writer.write(Document(document_id, text, features))
            counts.documents += 1
            counts.bytes += len(text.encode())
            for piece in self._cut(tokens, example.get("inputs"), counts):
                counts.tokens += len(piece.targets)
                counts.loss_tokens += int((piece.loss_weights > 0).sum())
                yield piece
        if writer:
            writer.writer.close()

    def _cut(self, tokens, seed, counts: SourceCounts) -> list[row_format.Piece]:
        if seed is None:
            piece = row_format.document_piece(tokens, self.bos, self.eos)
            parts = list(row_format.split(piece, self.length))
            counts.split_documents += len(parts) > 1
            return parts
        seed = np.asarray(seed, np.int32).tolist()
        for name, size, limit in (
            ("d1", len(seed), self.seed_length),
            ("d2", len(tokens) + 1, self.target_length),
        ):
            if size > limit:
                counts.cut[name] = counts.cut.get(name, 0) + 1
        return [
            row_format.pair_piece(
                seed, tokens, self.bos, self.eos, self.seed_length, self.target_length
            )
        ]

    def _check_vocabulary(self, task: str, document_id: str, text: str, tokens: list[int]) -> None:
        """A task with another vocabulary than the run's would train on noise without a word."""
        body = tokens[:-1] if tokens[-1] == self.eos else tokens
        if self.sentencepiece.encode(text)[: len(body)] != body:
            raise UserError(
                f"task {task} tokenises {document_id!r} otherwise than the run's vocabulary: "
                "build the task with that vocabulary, or set cache.vocab to the task's own"
            )


def _text(value: Any) -> str | None:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else None
