"""Vocabularies of three kinds behind one interface: SentencePiece, bytes, Hugging Face.

What special tokens are called (`</s>`, `<|endoftext|>`, …) is plain text when it stands in a
document: no text becomes the id of a special token. Text that was read from invalid UTF-8 with
`errors="surrogateescape"` is kept by the bytes; the other kinds put U+FFFD in the place of each
byte that is none of a character. Nothing here loads TensorFlow or SeqIO.
"""

from __future__ import annotations

import abc
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import sentencepiece
import tokenizers
from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import UserError

# What lies in an artefact of `sbp vocab`: the first of these says which kind it is.
SENTENCEPIECE_FILE = "vocab.model"
HUGGING_FACE_FILE = "tokenizer.json"
BYTES_FILE = "vocab.bytes"
FILES = (SENTENCEPIECE_FILE, HUGGING_FACE_FILE, BYTES_FILE)
HUGGING_FACE_CONFIG = "tokenizer_config.json"

# Special tokens of tokenizers that come without a configuration. One that has several is a chat
# model's, where the first of them ends a document and the last a turn.
_NAMES = {
    "eos": (
        "<|end_of_text|>",
        "<|endoftext|>",
        "</s>",
        "<eos>",
        "<｜end▁of▁sentence｜>",
        "[EOS]",
        "<|im_end|>",
    ),
    "bos": (
        "<|begin_of_text|>",
        "<|startoftext|>",
        "<s>",
        "<bos>",
        "<｜begin▁of▁sentence｜>",
        "[BOS]",
    ),
    "pad": ("<pad>", "<|pad|>", "<|padding|>", "<｜▁pad▁｜>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
}
_SURROGATE = re.compile("[\ud800-\udfff]")


class Vocabulary(abc.ABC):
    """Text to ids and back.

    Attributes:
      size: V; every id is below it. It may be larger than the number of tokens, as the table of a
        model may be.
      eos: ends a document.
      bos: what a document starts from; a vocabulary without a token for that takes another.
      never: ids without text, `eos` aside: no document holds them, and none is to be written.
      adds_bos: whether those who published it have every text start from `bos`, in `transformers`.
    """

    size: int
    eos: int
    bos: int
    adds_bos: bool = False

    @property
    @abc.abstractmethod
    def never(self) -> tuple[int, ...]: ...

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, without its beginning and end."""

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, faster than one by one."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, in which special tokens and ids without a token are left out."""

    @abc.abstractmethod
    def piece(self, index: int) -> str:
        """One token as a person reads it; special tokens by name."""


def load(path: epath.PathLike) -> Vocabulary:
    """Loads a vocabulary, which need not be one that `sbp vocab` made.

    Args:
      path: an artefact of `sbp vocab`, another directory with a `tokenizer.json`, or a file:
        `tokenizer.json` or a SentencePiece model.

    Raises:
      UserError: there is none, it is damaged, or it has no end of document.
    """
    file = file_of(path)
    if file.name == BYTES_FILE:
        vocabulary: Vocabulary = Bytes()
    elif file.suffix == ".json":
        vocabulary = HuggingFace(file)
    else:
        vocabulary = SentencePiece(file)
    directory = epath.Path(path)
    if directory.is_dir() and artifacts.is_finished(directory):
        wanted = artifacts.read_manifest(directory).config.get("size")
        vocabulary.size = max(vocabulary.size, wanted or 0)
    return vocabulary


def file_of(path: epath.PathLike) -> epath.Path:
    """The file that makes a directory a vocabulary; a file itself is returned as it is.

    Raises:
      UserError: there is none.
    """
    path = epath.Path(path)
    if not path.is_dir():
        if path.exists():
            return path
        raise UserError(
            f"vocabulary {path} does not exist: make it with `sbp vocab`, or name another file"
        )
    for name in FILES:
        if (path / name).exists():
            return path / name
    raise UserError(
        f"{path} holds no vocabulary ({', '.join(FILES)}): make one with `sbp vocab`, or name "
        "another directory or file"
    )


def given(name: str) -> tuple[Vocabulary, dict[str, epath.Path]]:
    """A vocabulary from outside the run, and the files that make a copy of it.

    Args:
      name: a file or directory as for `load`, or `bytes`.

    Returns:
      The vocabulary, and its files by the names that they have in an artefact; bytes have none.
    """
    if name == "bytes":
        return Bytes(), {}
    vocabulary, file = load(name), file_of(name)
    match vocabulary:
        case SentencePiece():
            return vocabulary, {SENTENCEPIECE_FILE: file}
        case HuggingFace():
            files = {
                HUGGING_FACE_FILE: file,
                HUGGING_FACE_CONFIG: file.parent / HUGGING_FACE_CONFIG,
            }
            return vocabulary, {name: file for name, file in files.items() if file.exists()}
    return vocabulary, {}


def well_formed(text: str) -> str:
    """The text with U+FFFD for each surrogate, of which no UTF-8 can be written.

    Such a text comes from `errors="surrogateescape"`: one surrogate stands for one byte.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text)
    return text


def byte_name(byte: int) -> str:
    """A byte as a person reads it: a printable character of ASCII, else as `<0xC3>`."""
    return chr(byte) if 32 <= byte < 127 else f"<0x{byte:02X}>"


class SentencePiece(Vocabulary):
    """A SentencePiece model; without a BOS documents start from its padding, or from 0.

    Attributes:
      file: the model's.

    Raises:
      UserError: the file is no SentencePiece model, or has no end of document.
    """

    def __init__(self, file: epath.Path):
        self.file = file
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(file.read_bytes())
        except RuntimeError as error:
            raise UserError(
                f"vocabulary {file} is not a SentencePiece model: name a .model file that "
                "SentencePiece wrote or a tokenizer.json, or make one with `sbp vocab`"
            ) from error
        if self.processor.eos_id() < 0:
            raise UserError(
                f"vocabulary {file} has no id for the end of a document (eos): train one with it, "
                "as `sbp vocab` does"
            )
        self.size = self.pieces = self.processor.get_piece_size()
        self.eos = self.processor.eos_id()
        bos = self.processor.bos_id()
        self.bos = bos if bos >= 0 else max(self.processor.pad_id(), 0)
        self.adds_bos = bos >= 0

    @property
    def never(self) -> tuple[int, ...]:
        found = [i for i in range(self.pieces) if self._is_special(i) and i != self.eos]
        return (*found, *range(self.pieces, self.size))

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(well_formed(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self.processor.encode([well_formed(text) for text in texts], num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        return self.processor.decode([int(i) for i in ids if i < self.pieces])

    def piece(self, index: int) -> str:
        if index >= self.pieces:
            return f"<{index}>"
        name = self.processor.id_to_piece(index)
        if self.processor.is_byte(index):
            return byte_name(int(name[1:-1], 16))
        if self._is_special(index):
            return name
        text = self.processor.decode([index])
        # Where each text starts with a space of SentencePiece's own, decoding drops it.
        return f" {text}" if name.startswith("▁") and not text.startswith(" ") else text

    def _is_special(self, index: int) -> bool:
        of = self.processor
        return of.is_control(index) or of.is_unknown(index) or of.is_unused(index)


class Bytes(Vocabulary):
    """The bytes of UTF-8, with the ids of `seqio.ByteVocabulary(extra_ids=0)`.

    Byte b is b + 3; 0 is padding, from which documents start, 1 the end, 2 unknown. Bytes that are
    no UTF-8 are kept, as surrogates in the text (`errors="surrogateescape"`), so that what a model
    wrote may have to be made `well_formed`.
    """

    names = ("<pad>", "</s>", "<unk>")

    def __init__(self):
        self.size, self.eos, self.bos = 256 + len(self.names), 1, 0

    @property
    def never(self) -> tuple[int, ...]:
        return (0, 2, *range(256 + len(self.names), self.size))

    def encode(self, text: str) -> list[int]:
        try:
            data = text.encode(errors="surrogateescape")
        except UnicodeEncodeError:  # a surrogate that stands for no byte
            data = well_formed(text).encode()
        return [byte + len(self.names) for byte in data]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        data = bytes(i - len(self.names) for i in ids if 0 <= i - len(self.names) < 256)
        return data.decode(errors="surrogateescape")

    def piece(self, index: int) -> str:
        if index < len(self.names):
            return self.names[index]
        byte = index - len(self.names)
        return byte_name(byte) if byte < 256 else f"<{index}>"


class HuggingFace(Vocabulary):
    """A `tokenizer.json`; without a BOS documents start from its EOS.

    Special tokens have the names that `tokenizer_config.json` beside it gives, and of those it
    does not speak of, well-known ones. What the tokenizer itself normalises or does not know is
    lost in decoding; a byte-level one loses nothing.

    Attributes:
      pad: fills up; the EOS where it has none.
      unk: what it does not know, if it has a token for that.

    Raises:
      UserError: the file is no tokenizer, a special token has a name that it does not know, it has
        no end of document, or special tokens cannot be told from text.
    """

    def __init__(self, file: epath.Path):
        self.content = file.read_bytes()
        self.tokenizer = _tokenizer(self.content, file)
        config_file = file.parent / HUGGING_FACE_CONFIG
        names = _special_names(self.tokenizer, config_file)
        if "eos" not in names:
            raise UserError(
                f"vocabulary {file} has no token that is known to end a document: name it as "
                f'"eos_token" in {config_file}, e.g. {{"eos_token": "<|endoftext|>"}}'
            )
        self.names = tuple(dict.fromkeys(names.values()))
        self._make_special()
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        ids = {role: vocabulary[name] for role, name in names.items()}
        self.eos = ids["eos"]
        self.bos = ids.get("bos", self.eos)
        self.pad = ids.get("pad", self.eos)
        self.unk = ids.get("unk")
        self.adds_bos = self.tokenizer.encode("a").ids[:1] == [self.bos]
        added = self.tokenizer.get_added_tokens_decoder()
        self.special = {i for i, token in added.items() if token.special} | set(ids.values())
        self.tokens = set(vocabulary.values())
        self.size = max(self.tokens) + 1  # there may be ids without a token
        self._check_special(file)

    @property
    def never(self) -> tuple[int, ...]:
        without_token = set(range(self.size)) - self.tokens
        return tuple(sorted((self.special | without_token) - {self.eos}))

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        found = self.tokenizer.encode_batch_fast(
            [well_formed(text) for text in texts], add_special_tokens=False
        )
        return [one.ids for one in found]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def piece(self, index: int) -> str:
        name = self.tokenizer.id_to_token(index)
        if name is None:
            return f"<{index}>"
        if index in self.special:
            return name
        text = self.tokenizer.decode([index], skip_special_tokens=False)
        if "\ufffd" in text:  # a part of a character, for which the tokenizer has a name
            return name
        return f" {text}" if name.startswith("▁") and not text.startswith(" ") else text

    def _make_special(self) -> None:
        """Special tokens that the file lists as others, or as none, are such from here on."""
        self.tokenizer.add_special_tokens(
            [tokenizers.AddedToken(name, special=True, normalized=False) for name in self.names]
        )

    def _check_special(self, file: epath.Path) -> None:
        """Refuses a tokenizer whose model finds the special tokens in text by itself.

        Unigram models do, where they were converted with the special tokens among the pieces.
        """
        for index in sorted(self.special):
            if index == self.unk != self.eos:  # any text may hold what is unknown
                continue
            name = str(self.tokenizer.id_to_token(index))
            for ids in self.encode_batch([name, f" {name}", f"a{name}a"]):
                if index in ids:
                    raise UserError(
                        f"vocabulary {file} makes its special token {name} of a text that holds "
                        f"{name!r}: name the SentencePiece .model file that it was made from, or "
                        "a tokenizer whose model has no piece of that name"
                    )

    def __getstate__(self) -> dict[str, Any]:
        # Sent to another process, a tokenizer takes the names of special tokens in text for these.
        return {name: value for name, value in vars(self).items() if name != "tokenizer"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self.tokenizer = _tokenizer(self.content, epath.Path(HUGGING_FACE_FILE))
        self._make_special()


def _tokenizer(content: bytes, file: epath.Path) -> tokenizers.Tokenizer:
    """The tokenizer of a file's content, such that a text has one encoding and keeps all of it."""
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # it raises no other
        raise UserError(
            f"vocabulary {file} is not a Hugging Face tokenizer ({error}): name a tokenizer.json "
            "that the tokenizers library wrote, or make a vocabulary with `sbp vocab`"
        ) from error
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    return tokenizer


def _special_names(tokenizer: tokenizers.Tokenizer, config_file: epath.Path) -> dict[str, str]:
    """Names of special tokens by role, as far as there are any."""
    config = _config(config_file)
    names = {}
    for role, known in _NAMES.items():
        key = f"{role}_token"
        if key not in config:
            there = [name for name in known if tokenizer.token_to_id(name) is not None]
            if there:
                names[role] = there[0]
            continue
        name = config[key].get("content") if isinstance(config[key], dict) else config[key]
        if name is None:
            continue
        if not isinstance(name, str) or tokenizer.token_to_id(name) is None:
            if role in ("pad", "unk"):  # without which nothing is lost
                continue
            raise UserError(
                f"{config_file}: {key} is {name!r}, which is no token of the tokenizer.json "
                "beside it: name one that it has, or take both files from one model"
            )
        names[role] = name
    return names


def _config(file: epath.Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        config = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): mend it, or take it away") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} holds no JSON object: mend it, or take it away")
    return config
