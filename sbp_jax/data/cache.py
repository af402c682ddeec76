"""The stage `sbp cache`: a SeqIO task or mixture becomes packed rows, once.

A task's documents are dealt to shards, which any number of workers cache on their own (`shard`);
here they are counted out, handed to an engine, and put together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import gin
import numpy as np
from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.data import engine, vocabularies
from sbp_jax.data.shard import Counts, Recipe, Shard, cache_shard, id_hash, id_twice, read_counts
from sbp_jax.errors import UserError
from sbp_jax.progress import progress
from sbp_jax.settings import configurable

IDS_AT_ONCE = 1 << 26  # hashes of ids that are compared at a time: 512 MB


@configurable
def cache(
    run: artifacts.Run,
    *,
    task: str = gin.REQUIRED,
    length: int = gin.REQUIRED,
    split: str = "train",
    vocab: str = "vocab",
    documents: bool = False,
    seed_length: int | None = None,
    target_length: int | None = None,
    join: str | None = None,
    repeat: bool = True,
    decontaminate: Sequence[str] = (),
    overlap: float = 0.5,
    shards: int | None = None,
    runner: str = engine.LOCAL,
    runner_options: Sequence[str] = (),
) -> None:
    """Reads a task or mixture once and leaves its packed rows.

    A task with the feature `targets` alone is packed as documents; those longer than a row are
    split without losing a token. One with `inputs` too is packed as pairs d1 → d2: cut, never
    split, with loss on d2 only; or, with `join`, as one text that goes on from `inputs` to
    `targets`, with loss on what follows `inputs`: such are questions to a language model, which has
    never read on behind an end. An example with a text in its feature `rejected` is left out and
    counted under that reason.

    Args:
      run: names the artefact.
      task: `module:attribute[@artefact]`.
      length: L, tokens in a row.
      split: of the task.
      vocab: artefact of `sbp vocab`, or a vocabulary's file.
      documents: whether to leave the documents' text too, for embedding and as seeds.
      seed_length: pairs only: d1 is cut to so many tokens.
      target_length: pairs only: d2 is cut to so many tokens.
      join: stands between `inputs` and `targets` where these go on with those, e.g. a space; no end
        stands between them or behind. Too long `inputs` are cut on the left. None for pairs.
      repeat: whether a run may read a row more than once; what `sbp synthesize` wrote never is.
      decontaminate: evaluation tasks, all splits: a document that contains too much of one of their
        texts is left out, and listed in `removed-*.jsonl`.
      overlap: how much is too much: the share of the smaller text's runs of 13 words that stand in
        the other.
      shards: parts that the documents are dealt to, each the work of one process; None for as many
        as the task's source has files.
      runner: Apache Beam's: `DirectRunner` works on all cores here; `inline` on one, without Beam.
      runner_options: for that runner, as `--project=mine`.
    """
    # SeqIO brings TensorFlow, which only the stages that read tasks need.
    from sbp_jax.data import tasks
    from sbp_jax.data.seqio_vocabularies import seqio_vocabulary

    if not 0 < overlap <= 1:
        raise UserError(f"cache.overlap = {overlap}: expected a share above 0 and up to 1")
    if shards is not None and shards < 1:
        raise UserError(f"cache.shards = {shards}: expected 1 or more, or None")
    if join is not None and (seed_length, target_length) != (None, None):
        raise UserError(
            "cache.seed_length and cache.target_length are limits of pairs, which a task has "
            "without cache.join: set either these or that"
        )
    _check_length(length, seed_length, target_length)
    vocab_path = run.path(vocab)
    vocabulary = vocabularies.load(vocab_path)
    of_seqio = seqio_vocabulary(vocabulary)
    resolved = tasks.resolve(task, of_seqio, run)
    evaluation = [tasks.resolve(one, of_seqio, run) for one in decontaminate]
    counted = {one.name: shards or tasks.source_shards(one, split) for one in resolved.tasks}
    read = [resolved, *evaluation]
    stage = artifacts.begin(
        run,
        "cache",
        config={
            "task": task,
            "split": split,
            "length": length,
            "documents": documents,
            "seed_length": seed_length,
            "target_length": target_length,
            "join": join,
            "repeat": repeat,
            "decontaminate": decontaminate,
            "overlap": overlap if decontaminate else None,
            "shards": counted,
            "corpora": [tasks.fingerprint(one) for found in read for one in found.tasks],
        },
        inputs={
            **{name: path for found in read for name, path in found.inputs.items()},
            "vocab": vocab_path,
        },
        code=("sbp_jax.data", "sbp_jax.text", *(module for found in read for module in found.code)),
        resumable=True,
    )
    if stage.finished:
        return
    recipe = Recipe(
        task=task,
        split=split,
        length=length,
        vocab=os.fspath(vocab_path),
        documents=documents,
        seed_length=seed_length,
        target_length=target_length,
        join=join,
        decontaminate=tuple(decontaminate),
        overlap=overlap,
        run=os.fspath(run.directory),
        scope=run.scope,
        work=os.fspath(stage.work),
        gin_config=gin.config_str(),
        modules=tuple(module for found in read for module in found.code),
        python_path=tuple(sys.path),
    )
    work = {
        name: [Shard(recipe, name, index, count) for index in range(count)]
        for name, count in counted.items()
    }
    _run([shard for parts in work.values() for shard in parts], runner, runner_options, stage)
    sources: dict[str, dict[str, Any]] = {}
    for one, rate, synthetic in zip(
        resolved.tasks, resolved.rates, resolved.synthetic, strict=True
    ):
        counts = Counts()
        for shard in work[one.name]:
            counts.add(read_counts(shard.counts_path))
        _check_source(one.name, split, counts)
        _check_ids(one, work[one.name])
        sources[one.name] = {
            "rate": rate,
            "synthetic": synthetic,
            "repeat": repeat and not synthetic,
            **dataclasses.asdict(counts),
        }
    for parts in work.values():
        for shard in parts:
            shard.counts_path.unlink()
            shard.path("ids", "npy").unlink(missing_ok=True)
    total = {
        field: sum(counts[field] for counts in sources.values())
        for field in ("documents", "bytes", "tokens", "loss_tokens", "rows", "padding")
    }
    share = 100 * total["padding"] / (total["rows"] * length)
    logging.info("%s: %.2f%% of the rows is padding", run.scope, share)
    stage.commit({**total, "vocab_size": vocabulary.size, "sources": sources})


def _check_length(length: int, seed_length: int | None, target_length: int | None) -> None:
    frame = 2 if seed_length is None else seed_length + 2
    if length < frame or (target_length is not None and length < frame - 1 + target_length):
        raise UserError(
            f"cache.length = {length} is too short: a row must hold "
            + (
                "a token and its end (2)"
                if seed_length is None
                else f"BOS, {seed_length} tokens of d1, EOS and {target_length} of d2 "
                f"({frame - 1 + (target_length or 1)})"
            )
        )


def _run(shards: list[Shard], runner: str, options: Sequence[str], stage: artifacts.Stage) -> None:
    """Caches the shards that are not finished.

    Raises:
      UserError: a shard met a mistake. Finished shards stay for the next attempt.
    """
    missing = [shard for shard in shards if not shard.counts_path.exists()]
    if len(missing) < len(shards):
        logging.info("%d of %d shards are finished", len(shards) - len(missing), len(shards))
    for shard in missing:
        shard.mistake_path.unlink(missing_ok=True)
    for folder in {shard.counts_path.parent for shard in missing}:
        for path in folder.iterdir() if folder.exists() else ():
            if path.name.startswith("."):  # what a worker was writing when it was ended
                path.unlink()
    with _watched(shards, missing):
        engine.run_all(cache_shard, missing, runner, options)
    stage.save_time()
    mistakes = [s.mistake_path.read_text() for s in missing if s.mistake_path.exists()]
    if mistakes:
        if not any(shard.counts_path.exists() for shard in shards):
            stage.work.rmtree()  # nothing is finished, and the next attempt may differ
        raise UserError(mistakes[0])


@contextlib.contextmanager
def _watched(shards: Sequence[Shard], missing: Sequence[Shard]) -> Iterator[None]:
    """Shows a bar of finished shards, which say so by their files alone."""
    ended = threading.Event()
    done = len(shards) - len(missing)
    bar = progress(desc="cache", unit=" shards", total=len(shards), initial=done)

    def watch() -> None:
        left = list(missing)
        while not ended.wait(1.0):
            still = [shard for shard in left if not shard.counts_path.exists()]
            bar.update(len(left) - len(still))
            left = still

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        bar.close()


def _check_source(name: str, split: str, counts: Counts) -> None:
    for reason, entry in counts.rejected.items():
        shown = ", ".join(entry["ids"])
        logging.warning("%s: %d left out: %s (%s)", name, entry["documents"], reason, shown)
    if counts.not_utf8:
        logging.warning("%s: %d documents are not UTF-8 throughout", name, counts.not_utf8)
    if counts.documents == 0:
        raise UserError(
            f"task {name} is empty: split {split!r} gave no document"
            + (f" (rejected: {counts.rejected})" if counts.rejected else "")
        )


def _check_ids(task: Any, shards: Sequence[Shard]) -> None:
    """That no two shards give the same id; within a shard it was seen to.

    Raises:
      UserError: two do.
    """
    if len(shards) == 1:
        return
    files = [s.path("ids", "npy") for s in shards]
    files = [path for path in files if path.exists()]
    parts = -(-sum(_hashes(path).size for path in files) // IDS_AT_ONCE)
    for part in range(parts):
        found = [ids[ids % parts == part] for ids in map(_hashes, files)]
        hashes = np.sort(np.concatenate(found))
        same = hashes[1:][hashes[1:] == hashes[:-1]]
        if len(same):
            raise UserError(id_twice(task.name, next(_ids(task, shards, int(same[0])))))


def _hashes(path: epath.Path) -> np.ndarray:
    with path.open("rb") as file:
        return np.load(file)


def _ids(task: Any, shards: Sequence[Shard], hashed: int) -> Iterator[str]:
    """The ids of a hash, for which the documents are read again."""
    from sbp_jax.data import tasks

    for shard in shards:
        part = shard.index, shard.count
        for example in tasks.examples(task, shard.recipe.split, part, tokenised=False):
            name = tasks.id_of(example)
            if name is not None and id_hash(name) == hashed:
                yield name
