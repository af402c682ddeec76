"""The stage `sbp synthesize`: seed documents and a synthesizer become a synthetic corpus."""

from __future__ import annotations

import collections
import dataclasses
import errno
import functools
import json
import time
from collections.abc import Callable, Iterator

import gin
import numpy as np
from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.checkpoints import load_parameters, model_config
from sbp_jax.data.documents import Documents
from sbp_jax.data.rows import prompt
from sbp_jax.data.vocabularies import Vocabulary, load, well_formed
from sbp_jax.errors import UserError
from sbp_jax.parallel import processes
from sbp_jax.progress import progress
from sbp_jax.settings import configurable
from sbp_jax.synthesize import claims, filters, shards
from sbp_jax.synthesize.filters import FilterConfig
from sbp_jax.synthesize.ledger import Ledger
from sbp_jax.synthesize.sampler import Sample, Sampler, SamplerConfig
from sbp_jax.synthesize.schedule import Plan, Request, document_keys
from sbp_jax.text.shingles import shingles

REJECTS = "rejects.json"
REJECTED = "rejected.jsonl"
FINISH = "finish"  # who has claimed it writes the corpus


@configurable
def synthesize(
    run: artifacts.Run,
    *,
    tokens: int = gin.REQUIRED,
    seed_length: int = gin.REQUIRED,
    max_length: int = gin.REQUIRED,
    checkpoint: str = "tune",
    checkpoint_step: int | str = "last",
    seeds: str = "rows/real",
    vocab: str = "vocab",
    temperature: float = 1.0,
    top_p: float = 0.9,
    filter: FilterConfig | None = None,
    max_samples_per_seed: int = 1000,
    documents_per_shard: int = 64,
    slots: int = 64,
    prefill_rows: int = 16,
    block: int = 16,
    cpu_devices: int | None = None,
    lease_seconds: float = 60.0,
    most_nan: float = 0.01,
    seed: int = 0,
) -> None:
    """Writes a corpus and leaves it as a TFDS dataset.

    Any number of processes work on it, come and go: those of a job, and others that were started
    by themselves, on this machine or another, with the same configuration and run directory. They
    share nothing but that directory: each claims a shard after the other (`claims`), one of them
    writes the corpus, and all end when it is there. The corpus is the shortest run of shards, from
    the first, that holds the wanted tokens: which devices, processes or attempts wrote them does
    not matter.

    Args:
      run: names the artefact.
      tokens: how many the documents shall have together; to within one shard.
      seed_length: of a seed document so many tokens are read.
      max_length: most tokens of a document, its end among them.
      checkpoint: train artefact of the synthesizer.
      checkpoint_step: which of its checkpoints.
      seeds: rows artefact with the seed documents, which are drawn uniformly.
      vocab: the run's vocabulary.
      temperature: of sampling; the paper's is remembered as 1.0.
      top_p: of sampling; the paper's is remembered as 0.9.
      filter: what is rejected.
      max_samples_per_seed: stops here though the tokens are not reached.
      documents_per_shard: documents that are committed together.
      slots: documents at work at a time on each device.
      prefill_rows: prompts read at a time.
      block: decode steps between two looks at which documents have ended.
      cpu_devices: on a CPU, how many devices to make of it, a replica each, since one replica of a
        small model keeps one core busy; None for JAX's own number.
      lease_seconds: after so long without a sign of life a process's shards are another's. Longer
        than the storage is ever away.
      most_nan: the run stops when a larger share of the documents in finished shards has ended in
        logits that are not numbers.
      seed: of all random draws.

    Raises:
      Stopped: the logits were no numbers, or the storage failed for good.
    """
    filter = filter or FilterConfig()
    if not temperature > 0 or not 0 < top_p <= 1:
        raise UserError(
            f"synthesize: temperature = {temperature} must be above 0, top_p = {top_p} in (0, 1]"
        )
    for name, value in (
        ("tokens", tokens),
        ("seed_length", seed_length),
        ("max_length", max_length),
        ("max_samples_per_seed", max_samples_per_seed),
        ("documents_per_shard", documents_per_shard),
        ("slots", slots),
        ("prefill_rows", prefill_rows),
        ("block", block),
        ("cpu_devices", cpu_devices),
    ):
        if value is not None and value < 1:
            raise UserError(f"synthesize.{name} = {value}: expected at least 1")
    if not lease_seconds > 0 or not 0 <= most_nan <= 1:
        raise UserError(
            f"synthesize: lease_seconds = {lease_seconds} must be above 0, "
            f"most_nan = {most_nan} in [0, 1]"
        )
    if cpu_devices is not None:
        processes.make_cpu_devices(cpu_devices)
    paths = {
        "checkpoint": run.path(checkpoint),
        "seeds": run.path(seeds),
        "vocab": run.path(vocab),
    }
    model = model_config(paths["checkpoint"])
    vocabulary = load(paths["vocab"])
    if vocabulary.size != model.vocab_size:
        raise UserError(
            f"{paths['vocab']} has {vocabulary.size} pieces, the synthesizer "
            f"{paths['checkpoint']} was trained with {model.vocab_size}: name its vocabulary"
        )
    stage = artifacts.begin(
        run,
        "synthesize",
        # Slots, prefill rows, block and lease decide how fast it is written, not what.
        config={
            "tokens": tokens,
            "seed_length": seed_length,
            "max_length": max_length,
            "checkpoint_step": checkpoint_step,
            "temperature": temperature,
            "top_p": top_p,
            "filter": filter,
            "max_samples_per_seed": max_samples_per_seed,
            "documents_per_shard": documents_per_shard,
            "seed": seed,
        },
        inputs=paths,
        code=(
            "sbp_jax.synthesize",
            "sbp_jax.model",
            "sbp_jax.text",
            "sbp_jax.data.rows",
            "sbp_jax.data.vocabularies",
        ),
        resumable=True,
    )
    if stage.finished:
        tidy(stage.out)
        return
    parameters, info = load_parameters(paths["checkpoint"], step=checkpoint_step)
    sampler = Sampler(
        model,
        parameters,
        SamplerConfig(
            prompt_length=seed_length + 2,
            max_length=max_length,
            temperature=temperature,
            top_p=top_p,
            eos=vocabulary.eos,
            never=vocabulary.never,
            slots=slots,
            prefill_rows=min(prefill_rows, slots),
            block=block,
        ),
    )
    try:
        work = Work(Documents(paths["seeds"]), vocabulary, seed_length, filter, sampler, stage.work)
        if not work.seeds:
            raise UserError(f"{paths['seeds']} has no seed document with a token in it")
        plan = Plan(
            [work.documents[index].id for index in work.seeds],
            seed,
            documents_per_shard,
            max_samples_per_seed,
        )
        with claims.Worker(stage.work, lease_seconds) as worker:
            claimed = claims.Claims(worker)
            kept = work.until(tokens, plan, claimed, most_nan)
            finish_once(stage, claimed, lambda: finish(work, kept, info.hash))
    except FileNotFoundError:
        # Another process has committed: what this one still looked for has been renamed.
        if not artifacts.is_finished(stage.out):
            raise
    counts = artifacts.read_manifest(stage.out).counts
    if counts["tokens"] < tokens:
        logging.warning(
            "%s: every seed was sampled %d times, and there are %d of %d tokens: raise "
            "synthesize.max_samples_per_seed for more",
            run.scope,
            max_samples_per_seed,
            counts["tokens"],
            tokens,
        )


class Work:
    """What one process does: shards of documents, sampled, judged and committed."""

    def __init__(
        self,
        documents: Documents,
        vocabulary: Vocabulary,
        seed_length: int,
        filter: FilterConfig,
        sampler: Sampler,
        directory: epath.Path,
    ):
        self.documents, self.vocabulary, self.filter = documents, vocabulary, filter
        self.seed_length, self.sampler = seed_length, sampler
        self.directory = directory / shards.FOLDER
        self.directory.mkdir(exist_ok=True)  # no parents: gone is finished, by another process
        tokens = vocabulary.encode_batch([document.text for document in documents])
        self.seeds = [index for index, found in enumerate(tokens) if found]
        self.empty_seeds = len(tokens) - len(self.seeds)
        self.prompts = [
            prompt(tokens[index], seed_length, vocabulary.bos, vocabulary.eos)
            for index in self.seeds
        ]

    @functools.cached_property
    def seed_shingles(self) -> list[np.ndarray]:
        return [shingles(self.documents[index].text) for index in self.seeds]

    def until(self, tokens: int, plan: Plan, claimed: claims.Claims, most_nan: float) -> int:
        """Writes shards until there are enough, whoever wrote them.

        Returns:
          How many shards, from the first, hold the tokens.

        Raises:
          Stopped: too many documents have ended in logits that are no numbers.
          FileNotFoundError: the directory is gone, as when another process has committed.
        """
        ledger = Ledger(
            self.directory,
            claimed,
            tokens=tokens,
            shards_planned=plan.shards,
            most=plan.documents_per_shard * self.sampler.config.max_length,
            most_nan=most_nan,
        )
        requests = Requests(ledger, lambda number: self._requests(number, plan))
        bar = progress(desc="synthesize", unit=" tokens", total=tokens)
        while ledger.kept is None:
            if requests.ready():
                self._write(requests, ledger, plan, claimed.worker, bar)
            else:
                # What is missing is with others: they finish it, or their claims lapse.
                time.sleep(min(1.0, claimed.look_seconds))
                ledger.look()
        bar.close()
        return ledger.kept

    def _write(
        self, requests: Requests, ledger: Ledger, plan: Plan, worker: claims.Worker, bar
    ) -> None:
        """Writes shards for as long as there are any to be claimed and more are needed."""
        done: dict[int, list[shards.Record]] = collections.defaultdict(list)
        for sample in self.sampler.sample(requests):
            number = sample.request.index // plan.documents_per_shard
            done[number].append(self._record(sample, plan))
            if len(done[number]) == len(plan.shard(number)):
                records = done.pop(number)
                order = {self._id(plan, index): index for index in plan.shard(number)}
                records.sort(key=lambda one: order[one.id])
                shards.write(self.directory, number, records)
                worker.tell(tokens=worker.tokens + shards.accepted_tokens(records))
                ledger.add(number, records)
                bar.n = ledger.total.accepted
                bar.refresh()
            if ledger.kept is not None:
                return

    def _requests(self, number: int, plan: Plan) -> list[Request]:
        places = [(index, *plan.document(index)) for index in plan.shard(number)]
        keys = document_keys(
            plan.seed,
            [plan.seed_ids[document] for _, document, _ in places],
            [sample for _, _, sample in places],
        )
        return [
            Request(index, self.prompts[document], key)
            for (index, document, _), key in zip(places, keys, strict=True)
        ]

    def shard(self, number: int) -> list[shards.Record]:
        """A finished shard."""
        if (records := shards.read(self.directory, number)) is None:
            file = shards.path(self.directory, number)
            raise FileNotFoundError(errno.ENOENT, "was finished, and is gone or damaged", str(file))
        return records

    def _id(self, plan: Plan, index: int) -> str:
        document, sample = plan.document(index)
        return f"{plan.seed_ids[document]}-{sample}"

    def _record(self, sample: Sample, plan: Plan) -> shards.Record:
        document, index = plan.document(sample.request.index)
        tokens = sample.tokens.tolist()
        body = tokens[:-1] if sample.finish_reason == "stop" else tokens
        text = "" if sample.finish_reason == "nan" else well_formed(self.vocabulary.decode(body))
        judged = filters.judge(
            text, sample.finish_reason, self.seed_shingles[document], self.filter
        )
        mean = sample.log_probability / len(tokens) if sample.finish_reason != "nan" else 0.0
        return shards.Record(
            id=self._id(plan, sample.request.index),
            text=text,
            seed_id=plan.seed_ids[document],
            sample_index=index,
            key=sample.request.key.astype(">u4").tobytes().hex(),
            finish_reason=sample.finish_reason,
            tokens=len(tokens),
            mean_log_probability=mean,
            repetition=judged.repetition,
            seed_copy=judged.seed_copy,
            rejected_by=judged.rejected_by,
        )


class Requests(Iterator[Request]):
    """The documents of shards that are claimed when the sampler has a slot for them.

    That there is none now is told as an iterator tells its end; asked again, there may be one,
    since the number of shards that are needed is known better with each that is finished.

    Args:
      ledger: where shards are claimed.
      of_shard: the requests of a shard.
    """

    def __init__(self, ledger: Ledger, of_shard: Callable[[int], list[Request]]):
        self.ledger, self.of_shard = ledger, of_shard
        self.waiting: collections.deque[Request] = collections.deque()

    def ready(self) -> bool:
        """Whether there is one now."""
        if not self.waiting and (number := self.ledger.next()) is not None:
            self.waiting.extend(self.of_shard(number))
        return bool(self.waiting)

    def __next__(self) -> Request:
        if not self.ready():
            raise StopIteration
        return self.waiting.popleft()


def finish_once(stage: artifacts.Stage, claimed: claims.Claims, write: Callable[[], dict]) -> None:
    """Commits the stage, or waits until another process has.

    Args:
      stage: at work.
      claimed: of this process.
      write: writes what is committed, and returns its counts.
    """
    while not artifacts.is_finished(stage.out):
        if claimed.take(FINISH):
            counts = write()
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


def finish(work: Work, kept: int, checkpoint: str) -> dict:
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
        "bytes": sum(len(record.text.encode()) for record in accepted),
        "sampled_documents": len(records),
        "sampled_tokens": sum(record.tokens for record in records),
        "seeds": len({record.seed_id for record in accepted}),
        "empty_seeds": work.empty_seeds,
        "unfinished": sum(record.finish_reason == "length" for record in accepted),
        "rejected": rejects,
        "checkpoint": checkpoint,
    }
