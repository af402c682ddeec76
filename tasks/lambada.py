"""LAMBADA: the last word of a passage, which only the whole passage tells, as SeqIO tasks.

What: `inputs` is a passage of a novel without its last word, `targets` that word, so that the loss
is on the word alone; its perplexity is the score, with `cache.join = ' '` for `sbp cache`.
Source: `test` is TFDS' `lambada`, in lower case with spaces round punctuation; Paperno et al.
2016, arXiv 1606.06031. `openai` is OpenAI's copy with the novels' own spelling, on which GPT-2 and
most after it were scored, JSON lines with `text`.
Licence: CC-BY-4.0 (https://zenodo.org/record/2630551); the novels remain their authors'.
Size: 5,153 passages.
Prepare: `tfds build lambada --data_dir=…` and `lambada.data_dir = '…'` in gin, after
`import tasks.lambada`; or
`curl -O https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl` and
`lambada_openai.files = 'lambada_test.jsonl'`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gin

from sbp_jax.data import corpora, formats
from sbp_jax.settings import configurable

if TYPE_CHECKING:
    import seqio  # imported where it is used: gin loads this module in every stage
    import tensorflow as tf


@configurable
def lambada(*, data_dir: str | None = None) -> str | None:
    """Where TFDS data sets lie; None for `TFDS_DATA_DIR` or TFDS' default."""
    return data_dir


@configurable
def lambada_openai(*, files: str = gin.REQUIRED) -> corpora.Streamed:
    """Where OpenAI's file lies, local or `gs://`."""
    return corpora.Streamed("lambada_openai.files", files, suffixes=formats.LINES)


def test(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """The test split as it was published."""
    from sbp_jax.data.prepared import PreparedSource

    source = PreparedSource("lambada", lambada(), "test")
    steps = [corpora.from_tfds(text="passage"), last_word]
    return corpora.register("lambada_test", source, vocabulary, steps, inputs=True)


def openai(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """The test split in OpenAI's copy."""
    source = corpora.from_files(lambada_openai())
    return corpora.register("lambada_openai", source, vocabulary, [last_word], inputs=True)


def last_word(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Splits `text` into `inputs` and `targets`, the last word; a text of one word is rejected."""
    import tensorflow as tf

    pattern = r"(?s)^(.*\S)\s+(\S+)$"

    def split(example):
        text = tf.strings.strip(example["text"])
        fits = tf.strings.regex_full_match(text, pattern)
        reason = tf.where(fits, "", "fewer than two words")
        return {
            "id": example["id"],
            "inputs": tf.where(fits, tf.strings.regex_replace(text, pattern, r"\1"), ""),
            "targets": tf.where(fits, tf.strings.regex_replace(text, pattern, r"\2"), ""),
            "rejected": tf.where(example["rejected"] == "", reason, example["rejected"]),
        }

    return dataset.map(split)
