"""Seed documents beside what was written from them, and what can be said of all that was written.

The seeds shown are those whose ids have the smallest hashes: a choice that is the same on every
machine and knows nothing of quality.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from etils import epath

from sbp_jax.data.documents import Documents
from sbp_jax.errors import UserError
from sbp_jax.progress import progress

# A page is for looking at examples: of a corpus larger than this the first part is read.
READ_AT_MOST = 100_000


@dataclasses.dataclass(frozen=True)
class Written:
    """One synthetic document with what is recorded of it.

    Attributes:
      id: its own id.
      seed_id: the document that it was written from.
      sample_index: which of the seed's samples it is.
      key: the sampling key.
      checkpoint: hash of the synthesizer's checkpoint.
      finish_reason: `stop` at the end of the document, `length` at the limit.
      tokens: its length.
      mean_log_probability: of its tokens under the synthesizer, in nats.
      repetition: share of the text that repeats itself.
      seed_copy: share of the text that is copied from the seed.
      text: the document.
    """

    id: str
    seed_id: str
    sample_index: int
    key: str
    checkpoint: str
    finish_reason: str
    tokens: int
    mean_log_probability: float
    repetition: float
    seed_copy: float
    text: str


@dataclasses.dataclass(frozen=True)
class Example:
    """A seed, the first document written from it, and how many were.

    `seed_text` is None where the documents at hand do not hold the seed; `seed_features` are what
    the documents carry beside their text.
    """

    written: Written
    samples: int
    seed_text: str | None
    seed_features: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """The synthetic corpus.

    Attributes:
      documents: documents that were read.
      complete: whether these are all.
      tokens: tokens in them.
      finish_reasons: documents by the reason for which they ended.
      mean_repetition: mean over documents.
      mean_seed_copy: mean over documents.
      rejects: samples by the filter that rejected them.
      examples: see the module.
    """

    documents: int
    complete: bool
    tokens: int
    finish_reasons: Mapping[str, int]
    mean_repetition: float
    mean_seed_copy: float
    rejects: Mapping[str, int]
    examples: tuple[Example, ...]


def read_synthetic(synthetic: epath.Path, documents: epath.Path | None, count: int) -> Synthetic:
    """Reads the corpus of `sbp synthesize` and chooses `count` examples.

    Args:
      synthetic: the artefact, a TFDS dataset.
      documents: the artefact that holds the seed documents, if there is one.
      count: how many seeds to show.

    Raises:
      UserError: the corpus is not one that the stage writes.
    """
    chosen: dict[str, tuple[Written, int]] = {}  # by the hash of the seed's id
    read = tokens = 0
    repetition = seed_copy = 0.0
    reasons: Counter[str] = Counter()
    for written in progress(_read_documents(synthetic), desc="synthetic documents", unit="doc"):
        read += 1
        tokens += written.tokens
        repetition += written.repetition
        seed_copy += written.seed_copy
        reasons[written.finish_reason] += 1
        rank = hashlib.sha256(written.seed_id.encode()).hexdigest()
        if rank in chosen:
            first, samples = chosen[rank]
            earliest = min(first, written, key=lambda document: document.sample_index)
            chosen[rank] = earliest, samples + 1
        elif len(chosen) < count or rank < max(chosen):
            # A seed once driven out never comes back, so the numbers of samples are whole.
            chosen[rank] = written, 1
            if len(chosen) > count:
                del chosen[max(chosen)]
    seeds = _read_seeds(documents, {written.seed_id for written, _ in chosen.values()})
    examples = []
    for _, (written, samples) in sorted(chosen.items()):
        text, features = seeds.get(written.seed_id, (None, {}))
        examples.append(Example(written, samples, text, features))
    return Synthetic(
        documents=read,
        complete=read < READ_AT_MOST,
        tokens=tokens,
        finish_reasons=dict(sorted(reasons.items())),
        mean_repetition=repetition / max(read, 1),
        mean_seed_copy=seed_copy / max(read, 1),
        rejects=_read_rejects(synthetic / "rejects.json"),
        examples=tuple(examples),
    )


def _read_documents(synthetic: epath.Path) -> Iterator[Written]:
    # Imported here: it loads TensorFlow.
    from sbp_jax.synthesize import corpus

    fields = [field.name for field in dataclasses.fields(Written)]
    for one in itertools.islice(corpus.read(synthetic, fields), READ_AT_MOST):
        yield Written(**one)


def _read_seeds(
    documents: epath.Path | None, ids: Iterable[str]
) -> dict[str, tuple[str, Mapping[str, str]]]:
    if documents is None:
        return {}
    source = Documents(documents)
    places = {identifier: place for place, identifier in enumerate(source.ids)}
    found = {}
    for identifier in ids:
        if identifier in places:
            document = source[places[identifier]]
            found[identifier] = document.text, document.features
    return found


def _read_rejects(path: epath.Path) -> dict[str, int]:
    try:
        rejects = json.loads(path.read_text())
        return {str(name): int(number) for name, number in rejects.items()}
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: delete {path.parent}, run sbp synthesize again"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not hold a number for each filter ({error}): "
            f"delete {path.parent} and run sbp synthesize again"
        ) from error
