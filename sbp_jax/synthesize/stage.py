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
from sbp_jax.data import excluded as excluded_texts
from sbp_jax.data.documents import Documents
from sbp_jax.data.rows import open_rows, prompt
from sbp_jax.data.vocabularies import Vocabulary, load, well_formed
from sbp_jax.errors import UserError
from sbp_jax.parallel import processes
from sbp_jax.progress import progress
from sbp_jax.settings import configurable
from sbp_jax.synthesize import claims, filters, shards
from sbp_jax.synthesize.draws import read_weights
from sbp_jax.synthesize.filters import FilterConfig
from sbp_jax.synthesize.ledger import Ledger
from sbp_jax.synthesize.sampler import Sample, Sampler, SamplerConfig
from sbp_jax.synthesize.schedule import Plan, Request, document_keys
from sbp_jax.text.ngram_index import NgramIndex
from sbp_jax.text.repeats import repeats
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
    weight_by: str | None = None,
    samples_together: int = 1,
    vocab: str = "vocab",
    any_checkpoint: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 0.9,
    min_length: int = 0,
    stop_repeats: int | None = None,
    stop_period: int = 32,
    filter: FilterConfig | None = None,
    max_samples_per_seed: int = 1000,
    documents_per_shard: int = 64,
    slots: int = 64,
    prefill_rows: int = 4,
    block: int = 8,
    chunk: int = 128,
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
      tokens: how many the documents shall have together; to within one shard, and counted before
        near-duplicates among them are taken out (the manifest tells both).
      seed_length: of a seed document the first so many tokens are read, and the rest is not; how
        many seeds are longer is counted as `cut_seeds`.
      max_length: most tokens of a document, its end among them.
      checkpoint: train artefact of the synthesizer.
      checkpoint_step: which of its checkpoints.
      seeds: rows artefact with the seed documents.
      weight_by: feature of theirs, a number of at least 0 as text, in proportion to which they are
        drawn; None for uniformly, as in the paper.
      samples_together: samples of a seed that follow one another, so that its prompt can be read
        once for them; `documents_per_shard` is a multiple of it.
      vocab: the run's vocabulary.
      any_checkpoint: whether to write even with a checkpoint that was not trained on pairs.
      temperature: of sampling; the paper's is remembered as 1.0.
      top_k: of sampling: each token is one of the so many most probable; None for no limit.
      top_p: of sampling, among those; the paper's is remembered as 0.9.
      min_length: fewest tokens of a document before it may end by itself.
      stop_repeats: a document is ended, and rejected, when its last `stop_repeats` × `stop_period`
        tokens are one passage of at most `stop_period` tokens over and over: the longest stands
        there so many times again, shorter ones for as long. None to let them go on to their limit.
      stop_period: see there; a step's work grows with it, and is small up to some hundreds.
      filter: what is rejected.
      max_samples_per_seed: stops before a seed would have more, though the tokens are not reached.
      documents_per_shard: documents that are committed together.
      slots: documents at work at a time on each device.
      prefill_rows: prompts read at a time.
      block: decode steps between two looks at which documents have ended.
      chunk: tokens of a prompt that are read at a time; few where most prompts are short.
      cpu_devices: on a CPU, how many devices to make of it, a replica each, since one replica of a
        small model keeps one core busy; None for JAX's own number.
      lease_seconds: after so long without a sign of life a process's shards are another's. Longer
        than the storage is ever away.
      most_nan: the run stops when a larger share of the documents in finished shards has ended in
        logits that are not numbers.
      seed: of all random draws.

    Raises:
      UserError: an argument is out of range, vocabulary and checkpoint do not fit, the checkpoint
        is no synthesizer, there is no seed, or no document was kept.
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
        ("samples_together", samples_together),
        ("documents_per_shard", documents_per_shard),
        ("slots", slots),
        ("prefill_rows", prefill_rows),
        ("block", block),
        ("chunk", chunk),
        ("cpu_devices", cpu_devices),
        ("top_k", top_k),
        ("stop_repeats", stop_repeats),
        ("stop_period", stop_period),
    ):
        if value is not None and value < 1:
            raise UserError(f"synthesize.{name} = {value}: expected at least 1")
    if not 0 <= min_length <= max_length:
        raise UserError(
            f"synthesize.min_length = {min_length}: expected from 0 to max_length = {max_length}"
        )
    if stop_repeats is not None and stop_repeats * stop_period >= max_length:
        raise UserError(
            f"synthesize.stop_repeats = {stop_repeats} × stop_period = {stop_period}: a document "
            f"of max_length = {max_length} tokens never holds such a loop; lower one of them"
        )
    if not lease_seconds > 0 or not 0 <= most_nan <= 1:
        raise UserError(
            f"synthesize: lease_seconds = {lease_seconds} must be above 0, "
            f"most_nan = {most_nan} in [0, 1]"
        )
    if documents_per_shard % samples_together or samples_together > max_samples_per_seed:
        raise UserError(
            f"synthesize.samples_together = {samples_together}: expected a divisor of "
            f"documents_per_shard = {documents_per_shard} that is at most max_samples_per_seed = "
            f"{max_samples_per_seed}"
        )
    if weight_by and max_samples_per_seed < 2 * samples_together:
        raise UserError(
            f"synthesize.max_samples_per_seed = {max_samples_per_seed}: expected at least "
            f"{2 * samples_together}, two draws of a seed, with weight_by"
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
    excluded = excluded_texts.find(
        run,
        filter.exclude,
        {name: run.path(name) for name in filter.exclude if ":" not in name or "://" in name},
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
            "top_k": top_k,
            "top_p": top_p,
            "min_length": min_length,
            "stop_repeats": stop_repeats,
            "stop_period": None if stop_repeats is None else stop_period,
            "filter": filter,
            "weight_by": weight_by,
            "samples_together": samples_together,
            "excluded_corpora": excluded.fingerprints,
            "max_samples_per_seed": max_samples_per_seed,
            "documents_per_shard": documents_per_shard,
            "seed": seed,
        },
        inputs={**paths, **excluded.inputs},
        code=(
            "sbp_jax.synthesize",
            "sbp_jax.model",
            "sbp_jax.text",
            "sbp_jax.data.excluded",
            "sbp_jax.data.rows",
            "sbp_jax.data.vocabularies",
            *excluded.code,
        ),
        resumable=True,
    )
    if stage.finished:
        tidy(stage.out)
        return
    if not any_checkpoint:
        check_synthesizer(paths["checkpoint"])
    excluded_index = NgramIndex(excluded.texts()) if filter.exclude else None
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
            chunk=chunk,
            top_k=top_k,
            min_length=min_length,
            stop_repeats=stop_repeats,
            stop_period=stop_period,
        ),
    )
    try:
        work = Work(
            Documents(paths["seeds"]),
            vocabulary,
            seed_length,
            filter,
            sampler,
            stage.work,
            excluded_index,
        )
        if not work.seeds:
            raise UserError(f"{paths['seeds']} has no seed document with a token in it")
        plan = Plan(
            [work.documents[index].id for index in work.seeds],
            seed,
            documents_per_shard,
            max_samples_per_seed,
            weights=(
                read_weights((work.documents[index] for index in work.seeds), weight_by)
                if weight_by
                else None
            ),
            samples_together=samples_together,
        )
        weightless = 0 if plan.weights is None else int((plan.weights == 0).sum())
        with claims.Worker(stage.work, lease_seconds) as worker:
            claimed = claims.Claims(worker)
            kept = work.until(tokens, plan, claimed, most_nan)
            finish_once(
                stage,
                claimed,
                lambda: finish(work, kept, info.hash) | {"weightless_seeds": weightless},
            )
    except FileNotFoundError:
        # Another process has committed: what this one still looked for has been renamed.
        if not artifacts.is_finished(stage.out):
            raise
    counts = artifacts.read_manifest(stage.out).counts
    if counts["accepted_tokens"] < tokens:
        logging.warning(
            "%s: a seed is sampled at most %d times, and there are %d of %d tokens: raise "
            "synthesize.max_samples_per_seed for more",
            run.scope,
            max_samples_per_seed,
            counts["accepted_tokens"],
            tokens,
        )


def check_synthesizer(checkpoint: epath.Path) -> None:
    """Refuses a checkpoint that has not learnt to write one document from another.

    It was trained on pairs if some of its rows have tokens without loss, those of d1.

    Args:
      checkpoint: a train artefact, or one of `sbp import-hf`, which tells nothing of its training.

    Raises:
      UserError: it was not trained on pairs, or its rows are not there to tell.
    """
    remedy = "name the one that was tuned on pairs, or set synthesize.any_checkpoint = True"
    inputs = artifacts.read_manifest(checkpoint).inputs
    rows = [inputs[role] for role in inputs if role == "rows" or role.startswith("rows[")]
    try:
        artefacts = [open_rows(artifacts.input_path(checkpoint, entry)) for entry in rows]
    except UserError as error:
        raise UserError(
            f"{checkpoint} may be no synthesizer, its rows cannot tell ({error.message}): {remedy}"
        ) from error
    sources = [source for artefact in artefacts for source in artefact.sources.values()]
    if not any(source.loss_tokens < source.tokens for source in sources):
        raise UserError(f"{checkpoint} is no synthesizer, it was not trained on pairs: {remedy}")


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
        excluded: NgramIndex | None = None,
    ):
        self.documents, self.vocabulary, self.filter = documents, vocabulary, filter
        self.excluded = excluded
        self.seed_length, self.sampler = seed_length, sampler
        self.directory = directory / shards.FOLDER
        self.directory.mkdir(exist_ok=True)  # no parents: gone is finished, by another process
        tokens = vocabulary.encode_batch([document.text for document in documents])
        self.seeds = [index for index, found in enumerate(tokens) if found]
        self.empty_seeds = len(tokens) - len(self.seeds)
        self.cut_seeds = sum(len(found) > seed_length for found in tokens)
        self.prompts = [
            prompt(tokens[index], seed_length, vocabulary.bos, vocabulary.eos)
            for index in self.seeds
        ]

    @functools.cached_property
    def seed_shingles(self) -> list[np.ndarray]:
        return [shingles(self.documents[index].text) for index in self.seeds]

    @functools.cached_property
    def corpus(self) -> NgramIndex | None:
        if self.filter.max_corpus_copy is None:
            return None
        named = ((document.id, document.text) for document in self.documents)
        return NgramIndex(named, one_in=self.filter.corpus_copy_one_in)

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
            text,
            sample.finish_reason,
            self.seed_shingles[document],
            self.filter,
            self.corpus,
            self.excluded,
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
            **judged._asdict(),
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
        "empty_seeds": work.empty_seeds,
        "cut_seeds": work.cut_seeds,
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
