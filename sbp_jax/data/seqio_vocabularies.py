"""The vocabularies as SeqIO's, for task factories. This module loads SeqIO, and so TensorFlow.

What `encode_tf` makes of bytes, in `tf.data` too, is what `Vocabulary.encode` makes of the text
that they are under `errors="surrogateescape"`.
"""

from __future__ import annotations

import numpy as np
import seqio
import tensorflow as tf

from sbp_jax.data.vocabularies import Bytes, HuggingFace, SentencePiece, Vocabulary


def seqio_vocabulary(vocabulary: Vocabulary) -> seqio.Vocabulary:
    """A vocabulary of SeqIO's with the same ids."""
    match vocabulary:
        case SentencePiece():
            return seqio.SentencePieceVocabulary(str(vocabulary.file), extra_ids=0)
        case Bytes():
            return seqio.ByteVocabulary(extra_ids=0)
        case HuggingFace():
            return HuggingFaceVocabulary(vocabulary)
    raise TypeError(f"{vocabulary!r} is no vocabulary that SeqIO could have")


class HuggingFaceVocabulary(seqio.Vocabulary):
    """A `tokenizer.json` in SeqIO; in `tf.data` Python is called for each example."""

    def __init__(self, vocabulary: HuggingFace):
        super().__init__()
        self.vocabulary = vocabulary

    @property
    def bos_id(self) -> int:
        return self.vocabulary.bos

    @property
    def eos_id(self) -> int:
        return self.vocabulary.eos

    @property
    def pad_id(self) -> int:
        # SeqIO's own is 0, which is text here.
        return self.vocabulary.pad

    @property
    def unk_id(self) -> int | None:
        return self.vocabulary.unk

    @property
    def _base_vocab_size(self) -> int:
        return self.vocabulary.size

    def _encode(self, s: str | bytes) -> list[int]:
        text = s.decode(errors="surrogateescape") if isinstance(s, bytes) else s
        return self.vocabulary.encode(text)

    def _decode(self, ids) -> str:
        return self.vocabulary.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        """A scalar string to int32 [n]."""
        ids = tf.numpy_function(
            lambda data: np.asarray(self._encode(data), np.int32), [s], tf.int32
        )
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """Integers [..., n] to strings [...]."""

        def decode(rows: np.ndarray) -> np.ndarray:
            texts = [self._decode(row).encode() for row in rows.reshape(-1, rows.shape[-1])]
            return np.asarray(texts, object).reshape(rows.shape[:-1])

        texts = tf.numpy_function(decode, [ids], tf.string)
        texts.set_shape(ids.shape[:-1])
        return texts

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HuggingFaceVocabulary):
            return False
        return self.vocabulary.__getstate__() == other.vocabulary.__getstate__()
