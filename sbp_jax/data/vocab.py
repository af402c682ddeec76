"""The vocabulary: a SentencePiece model trained from a task's documents, and how it is loaded.

The model is lossless: what is encoded decodes to the same text, character by character, with one
exception, the noncharacter U+10FFFF (see `_ESCAPES`). Characters that it does not know become
bytes. What the ids of padding, end of document and so on are called inside SentencePiece
(`</s>`, …) is plain text when it stands in a document.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import gin
import sentencepiece
from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import UserError
from sbp_jax.progress import progress
from sbp_jax.settings import configurable

FILE = "vocab.model"
PAD, EOS, UNK, BOS = 0, 1, 2, 3

# SentencePiece writes a space inside a piece as U+2581, and so takes a U+2581 of the text for a
# space. It is therefore swapped, going in and coming out, with a code point that by definition
# stands in no text: code point in the text, code point in the pieces.
_ESCAPES = ((0x2581, 0x10FFFF),)
_LONGEST_LINE = 1000  # characters; training time grows faster than the length of a line
_LEAST = 4 + 256 + 1  # special ids, bytes and the line break


@configurable
def vocab(
    run: artifacts.Run,
    *,
    task: str = gin.REQUIRED,
    size: int = gin.REQUIRED,
    character_coverage: float = 0.9995,
    documents: int | None = None,
) -> None:
    """Stage `vocab`: trains a vocabulary; leaves `vocab.model`.

    The pieces are byte-pair encodings (Sennrich et al., 2016) as SentencePiece learns them. The
    same text and settings give the same file.

    Args:
      run: names the artefact.
      task: the SeqIO task whose `train` split is read.
      size: pieces, with the special ids, 256 bytes and the line break.
      character_coverage: the share of the text's characters that get pieces of their own; the
        rarest become bytes.
      documents: train from this many documents, the task's first; None for all.

    Raises:
      UserError: the task is unknown or empty, or `size` does not fit its text.
    """
    if not 0.9 <= character_coverage <= 1:
        raise UserError(f"vocab: character_coverage {character_coverage} must be from 0.9 to 1")
    if documents is not None and documents < 1:
        raise UserError(f"vocab: documents {documents} must be 1 or more, or None for all")
    if size < _LEAST:
        raise UserError(
            f"vocab: size {size} is too small: {_LEAST} pieces are special ids and bytes; "
            "choose at least 512"
        )
    # Only here, because it loads SeqIO and with it TensorFlow.
    import seqio

    from sbp_jax.data import tasks as task_registry

    resolved = task_registry.resolve(task, seqio.ByteVocabulary(), run)
    stage = artifacts.begin(
        run,
        "vocab",
        config={
            "task": task,
            "size": size,
            "character_coverage": character_coverage,
            "documents": documents,
            "corpora": [task_registry.fingerprint(one) for one in resolved.tasks],
        },
        inputs=resolved.inputs,
        code=("sbp_jax.data.vocab", "sbp_jax.data.tasks", *resolved.code),
    )
    if stage.finished:
        return

    def texts(desc: str) -> Iterator[str]:
        found = enumerate(task_registry.texts(resolved))
        for i, text in progress(found, desc=desc, unit="document", total=documents):
            if i == documents:
                return
            yield text

    model = train(lambda: texts("learning pieces"), size, character_coverage, task)
    artifacts.write_atomic(stage.work / FILE, model)
    stage.commit(counts=_counts(load(stage.work), texts("counting tokens")))


def model_file(path: epath.PathLike) -> epath.Path:
    """The SentencePiece model of an artefact of `vocab`; a model file itself is returned as is."""
    path = epath.Path(path)
    return path / FILE if path.is_dir() else path


def load(path: epath.PathLike) -> sentencepiece.SentencePieceProcessor:
    """Loads a vocabulary, which need not be one that `vocab` made.

    Args:
      path: the artefact's directory, or a SentencePiece model file.

    Raises:
      UserError: there is no file, it is no SentencePiece model, or it has no end of document.
    """
    path = model_file(path)
    if not path.exists():
        raise UserError(
            f"vocabulary {path} does not exist: make it with `sbp vocab`, or name another file"
        )
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
    except RuntimeError as error:
        raise UserError(
            f"vocabulary {path} is not a SentencePiece model: name a .model file that "
            "SentencePiece wrote, or make one with `sbp vocab`"
        ) from error
    if processor.eos_id() < 0:
        raise UserError(
            f"vocabulary {path} has no id for the end of a document (eos): train one with it, "
            "as `sbp vocab` does"
        )
    return processor


def train(
    texts: Callable[[], Iterable[str]], size: int, character_coverage: float, name: str
) -> bytes:
    """Trains a model; returns the content of its file.

    Args:
      texts: gives the documents.
      size: pieces.
      character_coverage: as for `vocab`.
      name: what the text is called in an error.

    Raises:
      UserError: `size` does not fit the text, or there is no text.
    """
    failed: list[BaseException] = []
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as directory:
        escape, unescape = Path(directory, "escape.tsv"), Path(directory, "unescape.tsv")
        escape.write_text("".join(f"{a:X}\t{b:X}\n" for a, b in _ESCAPES))
        unescape.write_text("".join(f"{b:X}\t{a:X}\n" for a, b in _ESCAPES))
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_lines(texts(), failed),
                model_writer=model,
                model_type="bpe",
                vocab_size=size,
                character_coverage=character_coverage,
                pad_id=PAD,
                eos_id=EOS,
                unk_id=UNK,
                bos_id=BOS,
                user_defined_symbols=["\n"],
                byte_fallback=True,
                normalization_rule_tsv=str(escape),
                denormalization_rule_tsv=str(unescape),
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                allow_whitespace_only_pieces=True,
                max_sentence_length=4 * _LONGEST_LINE,  # bytes; a character has at most 4
                num_threads=2,
                minloglevel=2,
            )
        except RuntimeError as error:
            if failed:
                raise failed[0] from None
            raise _explained(error, size, name) from error
    if failed:
        raise failed[0]
    return _without_paths(model.getvalue())


def _lines(texts: Iterable[str], failed: list[BaseException]) -> Iterator[str]:
    """Lines of the texts, in parts short enough for the trainer not to skip them.

    The trainer calls this from C++ and loses exceptions, so one is put into `failed`.
    """
    try:
        for text in texts:
            for line in text.split("\n"):
                for start in range(0, len(line), _LONGEST_LINE):
                    yield line[start : start + _LONGEST_LINE]
    except BaseException as error:
        failed.append(error)


def _counts(
    processor: sentencepiece.SentencePieceProcessor, texts: Iterable[str]
) -> dict[str, int | float]:
    documents = size = tokens = 0
    for text in texts:
        documents += 1
        size += len(text.encode())
        tokens += len(processor.encode(text))
    return {
        "documents": documents,
        "bytes": size,
        "tokens": tokens,
        "pieces": processor.get_piece_size(),
        "bytes_per_token": round(size / max(tokens, 1), 4),
    }


def _explained(error: RuntimeError, size: int, name: str) -> Exception:
    message = str(error)
    if found := re.search(r"set it to a value <= (\d+)", message):
        return UserError(
            f"vocab: size {size} is too large for the text of task {name!r}: it gives at most "
            f"{found[1]} pieces; set vocab.size to that or less, or give more text"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"vocab: size {size} is too small for the text of task {name!r}: its characters alone "
            f"need {found[1]} pieces; set vocab.size above that, or lower vocab.character_coverage"
        )
    if "!sentences_.empty()" in message:
        return UserError(
            f"vocab: task {name!r} holds no text: name a task whose train split has documents"
        )
    logging.error("SentencePiece said: %s", message)
    return error


def _without_paths(model: bytes) -> bytes:
    """The model without the names of temporary files, so that the same text gives the same file."""
    from sentencepiece import sentencepiece_model_pb2  # needs protobuf, which loading does not

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at run time
    proto.ParseFromString(model)
    for spec in (proto.normalizer_spec, proto.denormalizer_spec):
        spec.normalization_rule_tsv = ""
    return proto.SerializeToString(deterministic=True)
