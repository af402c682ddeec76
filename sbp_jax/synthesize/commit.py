"""From finished shards to a committed corpus, once, whoever wrote them."""

from __future__ import annotations

import collections
import dataclasses
import json
import time
from collections.abc import Callable

from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import UserError
from sbp_jax.synthesize import claims, filters, shards
from sbp_jax.synthesize.work import Work
from sbp_jax.text.repeats import repeats

REJECTS = "rejects.json"
REJECTED = "rejected.jsonl"
FINISH = "finish"  # who has claimed it writes the corpus


def once(stage: artifacts.Stage, claimed: claims.Claims, write_corpus: Callable[[], dict]) -> None:
    """Commits the stage, or waits until another process has.

    Args:
      stage: at work.
      claimed: of this process.
      write_corpus: writes what is committed, and returns its counts.
    """
    while not artifacts.is_finished(stage.out):
        if claimed.take(FINISH):
            counts = write_corpus()
            if claimed.holds(FINISH):
                stage.commit(counts)
                tidy(stage.out)
            claimed.let_go(FINISH)
        else:
            time.sleep(min(1.0, claimed.look_seconds))


def tidy(out: epath.Path) -> None:
    """Removes from a finished corpus what only its making needed.

    Not before it is committed: until then the shards are all there is.
    """
    for name in (shards.FOLDER, claims.CLAIMS, claims.PROGRESS):
        (out / name).rmtree(missing_ok=True)
    for file in out.glob(".*.tmp"):  # of processes that were killed while they wrote
        file.unlink(missing_ok=True)


def write(work: Work, kept: int, checkpoint: str) -> dict:
    """Writes the dataset and what was rejected; returns the counts.

    Args:
      work: whose shards are finished.
      kept: how many of them make the corpus.
      checkpoint: hash of the synthesizer's parameters.
    """
    # TFDS brings TensorFlow, which sampling does not need.
    from sbp_jax.synthesize import corpus

    records = [record for number in range(kept) for record in work.shard(number)]
    directory = work.directory.parent
    accepted_tokens = shards.accepted_tokens(records)
    if (most := work.filter.max_near_duplicate) is not None:
        reject_near_duplicates(records, most)
    accepted = [record for record in records if record.rejected_by is None]
    rejected = [record for record in records if record.rejected_by is not None]
    if not accepted:
        reasons = dict(collections.Counter(record.rejected_by for record in rejected))
        raise UserError(
            f"synthesize: all {len(rejected)} documents were rejected ({reasons}): train the "
            "synthesizer longer, or loosen FilterConfig"
        )
    corpus.write(directory, accepted, checkpoint)
    by_filter = collections.Counter(record.rejected_by for record in rejected)
    rejects = {name: by_filter[name] for name in filters.FILTERS}
    artifacts.write_atomic(directory / REJECTS, json.dumps(rejects, indent=2))
    lines = "".join(json.dumps(dataclasses.asdict(record)) + "\n" for record in rejected)
    artifacts.write_atomic(directory / REJECTED, lines)
    return {
        "documents": len(accepted),
        "tokens": shards.accepted_tokens(accepted),
        "accepted_tokens": accepted_tokens,  # before near-duplicates were taken out
        "bytes": sum(len(record.text.encode()) for record in accepted),
        "sampled_documents": len(records),
        "sampled_tokens": sum(record.tokens for record in records),
        "seeds": len({record.seed_id for record in accepted}),
        "empty_seeds": work.seeds.empty,
        "cut_seeds": work.seeds.cut,
        "unfinished": sum(record.finish_reason == "length" for record in accepted),
        "loops": sum(record.finish_reason == "repetition" for record in records),
        "rejected": rejects,
        "checkpoint": checkpoint,
    }


def reject_near_duplicates(records: list[shards.Record], threshold: float) -> None:
    """Rejects, in place, those that are near-duplicates of an earlier one that is kept.

    Args:
      records: in the plan's order.
      threshold: as `FilterConfig.max_near_duplicate`.
    """
    accepted = [place for place, one in enumerate(records) if one.rejected_by is None]
    for later, first in repeats([records[place].text for place in accepted], threshold).items():
        records[accepted[later]] = dataclasses.replace(
            records[accepted[later]],
            rejected_by=filters.NEAR_DUPLICATE,
            alike=records[accepted[first]].id,
        )
