"""pyfunctions: short functions that every installation already carries, as SeqIO tasks.

What: the source of functions and methods, of 150 to 450 characters, of Python's standard library
and of the packages that this project depends on: some 63,000 documents and 17 MB of code. 46% of
the words of one are in less than one document of 100 (of docstrings 23%), and a quarter of these
stand in the most similar document of `train` too, of a random one next to none: what a document
says of another can be copied, and there is twice as much of it as in docstrings.
Source, licence, preparation and splits: as [pydocs](pydocs.py), whose data set this is a variant
of, with some 2,000 documents for `train`.
"""

from __future__ import annotations

import seqio

from tasks import pydocs

SETTINGS = pydocs.Settings(
    text="functions",
    min_characters=150,
    max_characters=450,
    heldout_share=0.025,
    dev_share=0.01,
    train_share=0.034,
)


def train(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """D_pretrain: a small share of the oracle's documents."""
    return pydocs.register("pyfunctions_train", "train", vocabulary, SETTINGS)


def oracle(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """The full pool, D_pretrain included."""
    return pydocs.register("pyfunctions_oracle", "oracle", vocabulary, SETTINGS)


def dev(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For choosing settings; no near-duplicate of it is in another split."""
    return pydocs.register("pyfunctions_dev", "dev", vocabulary, SETTINGS)


def heldout(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For the final score; no near-duplicate of it is in another split."""
    return pydocs.register("pyfunctions_heldout", "heldout", vocabulary, SETTINGS)
