"""C4: cleaned pages of Common Crawl from April 2019, as SeqIO tasks over its TFDS data set.

What: English web pages with T5's rules applied. A document has `text`, `url`, `content-type`,
`content-length` and `timestamp`; its id is the URL with its place in the data set.
Source: TFDS, `c4/en`; Raffel et al. 2020, arXiv 1910.10683.
Licence: ODC-By 1.0, and Common Crawl's terms of use; the pages remain their authors'.
Size: 365 million documents to train on and 365,000 for validation; some 800 GB in TFDS.
Prepare: `tfds build c4/en --data_dir=…` downloads Common Crawl and runs on Beam, for which the
documentation of TFDS wants a cluster; or copy a prepared data set. Then in gin, after
`import tasks.c4`, `c4.data_dir = 'gs://bucket/tfds'`. Nothing is prepared in the middle of a stage.

Splits: `train` is C4's own; `dev` and `heldout` are halves of its `validation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sbp_jax.data import corpora
from sbp_jax.settings import configurable

if TYPE_CHECKING:
    import seqio  # imported where it is used: gin loads this module in every stage


class Settings(NamedTuple):
    """Which data set, and where it lies."""

    dataset: str
    data_dir: str | None


@configurable
def c4(*, config: str = "en", data_dir: str | None = None) -> Settings:
    """Which of C4's data sets is read.

    Args:
      config: `en`, `realnewslike`, …, and a version if not the newest, `en:3.0.1`.
      data_dir: where TFDS data sets lie; None for `TFDS_DATA_DIR` or TFDS' default.
    """
    return Settings(f"c4/{config}", data_dir)


def _task(name: str, split: str, vocabulary: seqio.Vocabulary) -> seqio.Task:
    from sbp_jax.data.prepared import PreparedSource

    source = PreparedSource(*c4(), split)
    steps = [corpora.from_tfds(named_by="url"), corpora.text_to_targets]
    return corpora.register(f"c4_{name}", source, vocabulary, steps)


def train(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """C4's own split to train on."""
    return _task("train", "train", vocabulary)


def dev(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For choosing settings: the first half of C4's validation split."""
    return _task("dev", "validation[:50%]", vocabulary)


def heldout(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For the final score: the second half of C4's validation split."""
    return _task("heldout", "validation[50%:]", vocabulary)
