"""The stage `sbp vocab`: a SentencePiece model trained from a task's documents, or one given.

A trained model is lossless: what is encoded decodes to the same text, character by character,
with one exception, the noncharacter U+10FFFF (see `_ESCAPES`). Characters that it does not know
become bytes. What the ids of padding, end of document and so on are called inside SentencePiece
(`</s>`, …) is plain text when it stands in a document.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import sentencepiece
from absl import logging

from sbp_jax import artifacts
from sbp_jax.data import vocabularies
from sbp_jax.errors import UserError
from sbp_jax.progress import progress
from sbp_jax.settings import configurable

PAD, EOS, UNK, BOS = 0, 1, 2, 3

# SentencePiece writes a space inside a piece as U+2581, and so takes a U+2581 of the text for a
# space. It is therefore swapped, going in and coming out, with a code point that by definition
# stands in no text: code point in the text, code point in the pieces.
_ESCAPES = ((0x2581, 0x10FFFF),)
_LONGEST_LINE = 1000  # characters; training time grows faster than the length of a line
_CODE = ("sbp_jax.data.vocab", "sbp_jax.data.vocabularies")
_LEAST = 4 + 256 + 1  # special ids, bytes and the line break


@configurable
def vocab(
    run: artifacts.Run,
    *,
    task: str | None = None,
    size: int | None = None,
    character_coverage: float = 0.9995,
    documents: int | None = None,
    given: str | None = None,
) -> None:
    """Stage `vocab`: trains a vocabulary, or copies one that is given into the run.

    The pieces of a trained one are byte-pair encodings (Sennrich et al., 2016) as SentencePiece
    learns them. The same text and settings give the same file.

    Args:
      run: names the artefact.
      task: the SeqIO task whose `train` split is read; for a vocabulary that is given only to
        count documents, bytes and tokens, and not needed.
      size: pieces, with the special ids, 256 bytes and the line break; for a vocabulary that is
        given V of the model, which may have more ids than it, and not needed.
      character_coverage: the share of the text's characters that get pieces of their own; the
        rarest become bytes.
      documents: read so many documents, the task's first; None for all.
      given: trains nothing: a SentencePiece model, a `tokenizer.json` of Hugging Face (with the
        `tokenizer_config.json` beside it, if there is one), or `bytes`. Paths are from the
        current folder.

    Raises:
      UserError: the task is unknown or empty, `size` does not fit its text, or what is given is no
        vocabulary.
    """
    if not 0.9 <= character_coverage <= 1:
        raise UserError(f"vocab: character_coverage {character_coverage} must be from 0.9 to 1")
    if documents is not None and documents < 1:
        raise UserError(f"vocab: documents {documents} must be 1 or more, or None for all")
    if given is not None:
        _copy(run, given, task, size, documents)
        return
    if task is None or size is None:
        missing = "task" if task is None else "size"
        raise UserError(
            f"vocab: {missing} is not set: set vocab.task and vocab.size to train a vocabulary, "
            "or vocab.given to take one that there is"
        )
    if size < _LEAST:
        raise UserError(
            f"vocab: size {size} is too small: {_LEAST} pieces are special ids and bytes; "
            "choose at least 512"
        )
    text = _Text(run, task, documents)
    stage = artifacts.begin(
        run,
        "vocab",
        config={"size": size, "character_coverage": character_coverage, **text.config},
        inputs=text.inputs,
        code=(*_CODE, *text.code),
    )
    if stage.finished:
        return
    model = train(lambda: text.read("learning pieces"), size, character_coverage, task)
    artifacts.write_atomic(stage.work / vocabularies.SENTENCEPIECE_FILE, model)
    stage.commit(counts=_counts(vocabularies.load(stage.work), text))


def _copy(
    run: artifacts.Run, given: str, task: str | None, size: int | None, documents: int | None
) -> None:
    """Leaves a vocabulary that is given, and what it makes of the task's text."""
    vocabulary, files = vocabularies.given(given)
    if size is not None and size < vocabulary.size:
        raise UserError(
            f"vocab: size {size} is too small for {given}: its ids go up to {vocabulary.size - 1}; "
            f"set vocab.size to {vocabulary.size}, or to the model's if that is larger"
        )
    size = size or vocabulary.size
    text = _Text(run, task, documents) if task is not None else None
    stage = artifacts.begin(
        run,
        "vocab",
        config={
            "given": type(vocabulary).__name__,
            "size": size,
            **(text.config if text else {}),
        },
        inputs={**files, **(text.inputs if text else {})},
        code=(*_CODE, *(text.code if text else ())),
    )
    if stage.finished:
        return
    if not files:
        artifacts.write_atomic(stage.work / vocabularies.BYTES_FILE, "The bytes of UTF-8.\n")
    for name, file in files.items():
        artifacts.write_atomic(stage.work / name, file.read_bytes())
    stage.commit(counts=_counts(vocabularies.load(stage.work), text))


class _Text:
    """The text of a task, and what a manifest is to say of it.

    Args:
      run: where artefacts are looked for.
      task: its name.
      documents: read so many, the first; None for all.
    """

    def __init__(self, run: artifacts.Run, task: str, documents: int | None):
        # Only here, because it loads SeqIO and with it TensorFlow.
        import seqio

        from sbp_jax.data import tasks

        self._task = tasks.resolve(task, seqio.ByteVocabulary(), run)
        self._texts = tasks.texts
        self._documents = documents
        self.config = {
            "task": task,
            "documents": documents,
            "corpora": [tasks.fingerprint(one) for one in self._task.tasks],
        }
        self.inputs = self._task.inputs
        self.code = ("sbp_jax.data.tasks", *self._task.code)

    def read(self, desc: str) -> Iterator[str]:
        found = enumerate(self._texts(self._task))
        for i, text in progress(found, desc=desc, unit="document", total=self._documents):
            if i == self._documents:
                return
            yield text


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


def _counts(vocabulary: vocabularies.Vocabulary, text: _Text | None) -> dict[str, int | float]:
    if text is None:
        return {"pieces": vocabulary.size}
    documents = size = tokens = 0
    for one in text.read("counting tokens"):
        documents += 1
        size += len(one.encode())
        tokens += len(vocabulary.encode(one))
    return {
        "documents": documents,
        "bytes": size,
        "tokens": tokens,
        "pieces": vocabulary.size,
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
