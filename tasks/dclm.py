"""DCLM-baseline 1.0: pages of Common Crawl that a classifier took for good, as SeqIO tasks.

What: English web pages, extracted with resiliparse, without near-duplicates (Bloom filter), those
that a fastText classifier ranked highest. A document is a line of zstd JSON lines with `text`,
`url`, `metadata`, `language_id_whole_page_fasttext`, …; its id is `file:line`.
Source: Hugging Face, `mlfoundations/dclm-baseline-1.0`; Li et al. 2024, arXiv 2406.11794.
Licence: CC-BY-4.0; the pages remain their authors'.
Size: 3 billion documents, 4 trillion tokens, some 28,000 files of together several TB.
Prepare: copy as many files as the run needs to a folder or bucket:
`hf download mlfoundations/dclm-baseline-1.0 --repo-type dataset --local-dir dclm \
--include 'global-shard_01_of_10/local-shard_0_of_10/*'`; then in gin, after `import tasks.dclm`,
`dclm.files = 'gs://bucket/dclm/global-shard_01_of_10/*/*.jsonl.zst'`.

Splits: `heldout` and `dev` get shares of the documents by the hash of their text, `train` the rest.
Near-duplicates that the publishers left are not kept together: that needs all documents in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gin

from sbp_jax.data import corpora, formats
from sbp_jax.settings import configurable

if TYPE_CHECKING:
    import seqio  # imported where it is used: gin loads this module in every stage


@configurable
def dclm(
    *,
    files: str = gin.REQUIRED,
    heldout_share: float = 0.001,
    dev_share: float = 0.001,
    max_bytes: int = formats.MAX_BYTES,
) -> corpora.Streamed:
    """Where the files lie and how they are dealt to splits.

    Args:
      files: a folder or glob, local or `gs://`.
      heldout_share: of the documents, to `heldout`.
      dev_share: of the documents, to `dev`.
      max_bytes: a longer line is not used.

    Raises:
      UserError: the shares leave a split empty.
    """
    corpora.check_shares("dclm", heldout_share, dev_share)
    schema = formats.Schema(fields=("url",), max_bytes=max_bytes)
    return corpora.Streamed("dclm.files", files, schema, formats.LINES, heldout_share, dev_share)


def _task(split: str, vocabulary: seqio.Vocabulary) -> seqio.Task:
    source = corpora.from_files(dclm(), split)
    return corpora.register(f"dclm_{split}", source, vocabulary, [corpora.text_to_targets])


def train(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """What is in neither of the others; what could not be used is counted here."""
    return _task("train", vocabulary)


def dev(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For choosing settings."""
    return _task("dev", vocabulary)


def heldout(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For the final score."""
    return _task("heldout", vocabulary)
