"""pyfunctions: short functions of Keras, which every installation already carries, as SeqIO tasks.

What: the source of functions and methods, of 120 to 500 characters, of one package: some 6,100
documents and 1.8 MB of code. One package, since its functions are about the same things (layers,
operations, and their five backends); of all packages together a document has fewer relatives.
Source, licence, preparation and splits: as [pydocs](pydocs.py), whose data set this is a variant
of, with some 1,400 documents for `train`.
"""

from __future__ import annotations

import seqio

from tasks import pydocs

SETTINGS = pydocs.Settings(
    text="functions",
    package="keras",
    min_characters=120,
    max_characters=500,
    heldout_share=0.08,
    dev_share=0.04,
    train_share=0.26,
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
