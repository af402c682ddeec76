"""Finished work shards: one file each, there whole or not at all, checked before it is believed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence

from absl import logging
from etils import epath

from sbp_jax.synthesize import storage

FOLDER = "shards"


@dataclasses.dataclass(frozen=True)
class Record:
    """A sampled document, kept or rejected.

    Attributes:
      id: seed id and sample index.
      text: as decoded.
      seed_id: the document it was written from.
      sample_index: which of that seed's samples.
      key: data of its random key, hexadecimal.
      finish_reason: `stop`, `length`, `repetition` or `nan`: see `sampler.Sample`.
      tokens: sampled, EOS among them.
      mean_log_probability: nats per token under the synthesizer at temperature 1.
      repetition: see `filters.Judged`, as of the next four.
      compression: of the text.
      language: of the text, or empty.
      seed_copy: of its seed.
      corpus_copy: of the training document that it copies most, or None.
      rejected_by: the filter, or None.
      alike: the text for which it is rejected, where there is one: a training document, an
        evaluation text, or the synthetic document that it nearly duplicates.
    """

    id: str
    text: str
    seed_id: str
    sample_index: int
    key: str
    finish_reason: str
    tokens: int
    mean_log_probability: float
    repetition: float
    compression: float
    language: str
    seed_copy: float
    corpus_copy: float | None
    rejected_by: str | None
    alike: str | None


def path(directory: epath.Path, number: int) -> epath.Path:
    return directory / f"shard-{number:06d}.jsonl"


def write(directory: epath.Path, number: int, records: Sequence[Record]) -> None:
    """Commits a shard: its first line is the checksum of the rest."""
    body = "".join(json.dumps(dataclasses.asdict(record)) + "\n" for record in records)
    checksum = hashlib.sha256(body.encode()).hexdigest()
    storage.write(path(directory, number), f"{checksum}\n{body}")


def read(directory: epath.Path, number: int) -> list[Record] | None:
    """A committed shard; None if there is none, or what is there is damaged (and said so)."""
    file = path(directory, number)
    content = storage.read(file)
    if content is None:
        return None
    checksum, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        logging.warning("%s is damaged: its documents are written again", file)
        return None
    return [Record(**json.loads(line)) for line in body.splitlines()]


def present(directory: epath.Path) -> list[int]:
    """Numbers of the shards that are there, in order; whether they are whole `read` tells."""
    names = [file.name for file in directory.iterdir()]
    found = [re.fullmatch(r"shard-(\d{6,})\.jsonl", name) for name in names]
    return sorted(int(match[1]) for match in found if match)


def accepted_tokens(records: Sequence[Record]) -> int:
    """Tokens of the records that no filter rejected."""
    return sum(record.tokens for record in records if record.rejected_by is None)
