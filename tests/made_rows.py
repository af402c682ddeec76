"""Artefacts for tests of what reads rows or text, made without SeqIO."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx

from sbp_jax import artifacts
from sbp_jax.checkpoints import CHECKPOINTS, save_parameters
from sbp_jax.data import documents, rows, vocab, vocabularies
from sbp_jax.model.decoder import DecoderConfig, structure

BOS, EOS = 3, 1


def small_model(vocab_size: int, layers: int = 1) -> DecoderConfig:
    """A decoder that is trained in seconds."""
    return DecoderConfig(
        vocab_size=vocab_size,
        width=16,
        layers=layers,
        heads=2,
        kv_heads=1,
        head_size=8,
        hidden=16,
        dtype="float32",
    )


def sentences(count: int, vocab_size: int, seed: int, least: int = 3, most: int = 40):
    """Documents a small model can learn: each counts up from a token in steps of its own."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        start, step, size = rng.integers(0, 1000), rng.integers(1, 4), rng.integers(least, most)
        yield [int(4 + (start + step * i) % (vocab_size - 4)) for i in range(size)]


def write_rows_artefact(
    directory,
    name: str,
    sources: Mapping[str, Sequence[Sequence[int]]],
    *,
    length: int = 32,
    vocab_size: int = 64,
    rates: Mapping[str, float] | None = None,
    synthetic: Sequence[str] = (),
    loss_from: int = 0,
    vocab: epath.PathLike | None = None,
) -> epath.Path:
    """Packs documents given as tokens, as `sbp cache` would; of pairs d2 is from `loss_from` on."""
    run = artifacts.Run(epath.Path(directory), name)
    config = {"length": length, "sources": {n: list(map(list, d)) for n, d in sources.items()}}
    inputs = {} if vocab is None else {"vocab": vocab}
    stage = artifacts.begin(run, "cache", config=config, inputs=inputs, code=())
    counts = {}
    for source, found in sources.items():
        folder = stage.work / source
        folder.mkdir(parents=True)
        pieces = [
            part._replace(loss_from=min(loss_from, len(part.targets)))
            for tokens in found
            for part in rows.split(rows.document_piece(tokens, BOS, EOS), length)
        ]
        written = rows.write_rows(
            folder / "rows-00000.array_record", rows.pack(pieces, length), vocab_size
        )
        tokens = sum(len(piece.targets) for piece in pieces)
        counts[source] = {
            "rate": (rates or {}).get(source, 1.0),
            "synthetic": source in synthetic,
            "repeat": source not in synthetic,
            "rows": written,
            "padding": written * length - tokens,
            "tokens": tokens,
            "loss_tokens": sum(piece.loss_tokens for piece in pieces),
            "documents": len(found),
            "bytes": 3 * tokens,
        }
    stage.commit({"vocab_size": vocab_size, "sources": counts})
    return run.out


def write_model(directory, model: DecoderConfig, name: str = "pretrain") -> Any:
    """A train artefact of random weights, which need no training to be compared; returns them."""
    run = artifacts.Run(epath.Path(directory), name)
    stage = artifacts.begin(run, "train", config={"model": model}, inputs={}, code=())
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        around, spread = (1.0, 0.1) if path[-1].key == "scale" else (0.0, 0.2)
        return jax.numpy.asarray(rng.normal(around, spread, leaf.shape), leaf.dtype)

    parameters = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(structure(model)[1]))
    save_parameters(stage.work / CHECKPOINTS, parameters)
    stage.commit({})
    return parameters


def write_bytes_vocabulary(directory, name: str = "vocab", size: int | None = None) -> None:
    """An artefact of `sbp vocab` whose tokens are bytes."""
    run = artifacts.Run(epath.Path(directory), name)
    stage = artifacts.begin(run, "vocab", config={"size": size}, inputs={}, code=())
    artifacts.write_atomic(stage.work / vocabularies.BYTES_FILE, "")
    stage.commit({})


class Reference:
    """What a decoder says of tokens after others, one question at a time, unpacked, on one device.

    Args:
      model: the decoder.
      parameters: of it.
      length: of the longest question.
    """

    def __init__(self, model: DecoderConfig, parameters: Any, length: int):
        graph, _ = structure(model)
        self.length = length
        self.model = jax.jit(lambda *row: jax.nn.log_softmax(nnx.merge(graph, parameters)(*row)[0]))

    def log_probabilities(self, tokens: Sequence[int]) -> np.ndarray:
        """Float64 [n, V] of what may follow each of n tokens."""
        row = np.zeros((1, self.length), np.int32)
        row[0, : len(tokens)] = tokens
        known = (np.arange(self.length) < len(tokens)).astype(np.int32)[None]
        found = self.model(row, known, np.arange(self.length)[None])
        return np.asarray(found, np.float64)[: len(tokens)]

    def score(self, context: Sequence[int], targets: Sequence[int]) -> tuple[float, bool]:
        """The log-likelihood of targets, in nats, and whether each is the most probable."""
        found = self.log_probabilities([*context, *targets][:-1])[len(context) - 1 :]
        chosen = found[np.arange(len(targets)), list(targets)]
        return float(chosen.sum()), bool((found.argmax(-1) == list(targets)).all())


def uneven_weights(monkeypatch, scale: float = 1.0) -> None:
    """Gives every row that is read from now on loss weights that differ much."""
    decode = rows.decode

    def uneven(
        record: bytes, length: int, vocab_size: int, into: rows.Row | None = None
    ) -> rows.Row:
        row = decode(record, length, vocab_size, into)
        rng = np.random.default_rng(zlib.crc32(record))
        weights = scale * rng.uniform(0, 2, length) ** 3 * (row.segment_ids > 0)
        row.loss_weights[:] = weights
        return row

    monkeypatch.setattr(rows, "decode", uneven)


TEXTS = [
    " ".join(random.Random(i).choices([f"w{c}{d}" for c in "abcdefgh" for d in "uvxyz"], k=40))
    for i in range(12)
]
VOCAB_SIZE = 320


def write_text_run(directory) -> epath.Path:
    """A run with `vocab` and with `rows/real`, of `TEXTS` and one empty document, id0 to id12."""
    directory = epath.Path(directory)
    stage = artifacts.begin(
        artifacts.Run(directory, "vocab"), "vocab", config={}, inputs={}, code=()
    )
    model = vocab.train(lambda: TEXTS, VOCAB_SIZE, 1.0, "texts")
    artifacts.write_atomic(stage.work / vocabularies.SENTENCEPIECE_FILE, model)
    pieces = vocabularies.load(stage.work)
    stage.commit({})
    tokens = [pieces.encode(text) for text in TEXTS]
    rows_directory = write_rows_artefact(
        directory, "rows/real", {"real": tokens}, vocab_size=VOCAB_SIZE, length=64
    )
    documents.write(
        rows_directory / "real" / documents.FILE,
        [documents.Document(f"id{i}", text) for i, text in enumerate([*TEXTS, ""])],
    )
    return directory
