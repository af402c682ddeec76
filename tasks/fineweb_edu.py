"""FineWeb-Edu: pages of Common Crawl that a classifier took for educational, as SeqIO tasks.

What: English web pages with an educational score of 3 or more out of 5. A document is a row of
Parquet with `text`, `id`, `dump`, `url`, `date`, `file_path`, `language`, `language_score`,
`token_count`, `score` and `int_score`.
Source: Hugging Face, `HuggingFaceFW/fineweb-edu`; Penedo et al. 2024, arXiv 2406.17557.
Licence: ODC-By 1.0, and Common Crawl's terms of use; the pages remain their authors'.
Size: 1.3 trillion tokens; samples of 10, 100 and 350 billion lie in `sample/`.
Prepare: copy a sample to a folder or bucket:
`hf download HuggingFaceFW/fineweb-edu --repo-type dataset --local-dir fineweb_edu \
--include 'sample/10BT/*'`; then in gin, after `import tasks.fineweb_edu`,
`fineweb_edu.files = 'fineweb_edu/sample/10BT'`.

Splits: `heldout` and `dev` get shares of the documents by the hash of their text, `train` the rest.
Near-duplicates that the publishers left are not kept together: that needs all documents in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gin

from sbp_jax.data import corpora, formats
from sbp_jax.settings import configurable

if TYPE_CHECKING:
    import seqio  # imported where it is used: gin loads this module in every stage


@configurable
def fineweb_edu(
    *,
    files: str = gin.REQUIRED,
    min_score: float | None = None,
    heldout_share: float = 0.001,
    dev_share: float = 0.001,
    max_bytes: int = formats.MAX_BYTES,
) -> corpora.Streamed:
    """Where the files lie, what is taken of them and how it is dealt to splits.

    Args:
      files: a folder or glob, local or `gs://`.
      min_score: least educational score (the column `score`, about 2.5 to 5); None takes all.
        What lies below is counted among the rejected of `train`.
      heldout_share: of the documents, to `heldout`.
      dev_share: of the documents, to `dev`.
      max_bytes: a longer document is not used.

    Raises:
      UserError: the shares leave a split empty.
    """
    corpora.check_shares("fineweb_edu", heldout_share, dev_share)

    def check(record: Mapping[str, Any]) -> str:
        if min_score is None:
            return ""
        score = record["score"]
        return f"score below {min_score:g}" if score is None or score < min_score else ""

    schema = formats.Schema(
        fields=("url",),
        max_bytes=max_bytes,
        needs=() if min_score is None else ("score",),
        check=check,
    )
    return corpora.Streamed(
        "fineweb_edu.files",
        files,
        schema,
        formats.PARQUET,
        heldout_share,
        dev_share,
        settings=(min_score,),
    )


def _task(split: str, vocabulary: seqio.Vocabulary) -> seqio.Task:
    source = corpora.from_files(fineweb_edu(), split)
    return corpora.register(f"fineweb_edu_{split}", source, vocabulary, [corpora.text_to_targets])


def train(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """What is in neither of the others; what could not be used is counted here."""
    return _task("train", vocabulary)


def dev(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For choosing settings."""
    return _task("dev", vocabulary)


def heldout(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For the final score."""
    return _task("heldout", vocabulary)
