"""Wikipedia: the articles of one language at one date, as SeqIO tasks over its TFDS data set.

What: articles as text without markup. A document has `title` and `text`; its id is the title with
its place in the data set.
Source: TFDS, `wikipedia/DATE.LANGUAGE`, made of https://dumps.wikimedia.org.
Licence: CC-BY-SA and GFDL.
Size: 6.6 million articles and 20 GB in English, in 2023.
Prepare: `tfds build wikipedia/20230601.en --data_dir=…` (downloads the dump, or the prepared data
set where TFDS has one), then in gin, after `import tasks.wikipedia`,
`wikipedia.data_dir = 'gs://bucket/tfds'`. Nothing is prepared in the middle of a stage.

Splits: TFDS has one, in random order; `heldout` and `dev` are its first hundredths, `train` the
rest.
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
def wikipedia(*, config: str = "20230601.en", data_dir: str | None = None) -> Settings:
    """Which of Wikipedia's data sets is read.

    Args:
      config: date and language, `20230601.de`.
      data_dir: where TFDS data sets lie; None for `TFDS_DATA_DIR` or TFDS' default.
    """
    return Settings(f"wikipedia/{config}", data_dir)


def _task(name: str, split: str, vocabulary: seqio.Vocabulary) -> seqio.Task:
    from sbp_jax.data.prepared import PreparedSource

    source = PreparedSource(*wikipedia(), split)
    steps = [corpora.from_tfds(named_by="title"), corpora.text_to_targets]
    return corpora.register(f"wikipedia_{name}", source, vocabulary, steps)


def train(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """All but the first two hundredths."""
    return _task("train", "train[2%:]", vocabulary)


def dev(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For choosing settings: the second hundredth."""
    return _task("dev", "train[1%:2%]", vocabulary)


def heldout(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For the final score: the first hundredth."""
    return _task("heldout", "train[:1%]", vocabulary)
