"""The stage `sbp synthesize`: seed documents and a synthesizer become a synthetic corpus."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
from collections.abc import Iterator

import gin
import jax
import numpy as np
from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.checkpoints import load_parameters, model_config
from sbp_jax.data import excluded as excluded_texts
from sbp_jax.data.documents import Documents
from sbp_jax.data.rows import prompt
from sbp_jax.data.vocabularies import Vocabulary, load, well_formed
from sbp_jax.errors import UserError
from sbp_jax.parallel import processes
from sbp_jax.progress import progress
from sbp_jax.settings import configurable
from sbp_jax.synthesize import filters, shards
from sbp_jax.synthesize.filters import FilterConfig
from sbp_jax.synthesize.sampler import Sample, Sampler, SamplerConfig
from sbp_jax.synthesize.schedule import Plan, Request, document_keys
from sbp_jax.text.ngram_index import NgramIndex
from sbp_jax.text.repeats import repeats
from sbp_jax.text.shingles import shingles

SHARDS = "shards"
REJECTS = "rejects.json"
REJECTED = "rejected.jsonl"


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
    seed: int = 0,
) -> None:
    """Writes a corpus and leaves it as a TFDS dataset.

    Each process works by itself on its own shards; they meet only between rounds. The corpus is
    the shortest run of shards, from the first, that holds the wanted tokens: which devices,
    processes or attempts wrote them does not matter.

    Args:
      run: names the artefact.
      tokens: how many the documents shall have together; to within one shard, and counted before
        near-duplicates among them are taken out (the manifest tells both).
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
      seed: of all random draws.
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
        # Slots, prefill rows and block decide how fast it is written, not what.
        config={
            "tokens": tokens,
            "seed_length": seed_length,
            "max_length": max_length,
            "checkpoint_step": checkpoint_step,
            "temperature": temperature,
            "top_p": top_p,
            "filter": filter,
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
        writer=processes.is_writer(),
    )
    if stage.finished:
        return
    processes.wait_for_all(f"begin {run.scope}")
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
        ),
    )
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
    )
    kept_shards = work.until(tokens, plan)
    processes.wait_for_all(f"end {run.scope}")
    if processes.is_writer():
        counts = finish(stage.work, kept_shards, info.hash, work.empty_seeds, filter)
        if counts["accepted_tokens"] < tokens:
            logging.warning(
                "%s: every seed was sampled %d times, and there are %d of %d tokens: raise "
                "synthesize.max_samples_per_seed for more",
                run.scope,
                max_samples_per_seed,
                counts["accepted_tokens"],
                tokens,
            )
        stage.commit(counts)


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
        self.directory = directory / SHARDS
        self.directory.mkdir(parents=True, exist_ok=True)
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

    @functools.cached_property
    def corpus(self) -> NgramIndex | None:
        if self.filter.max_corpus_copy is None:
            return None
        named = ((document.id, document.text) for document in self.documents)
        return NgramIndex(named, one_in=self.filter.corpus_copy_one_in)

    def until(self, tokens: int, plan: Plan) -> list[list[shards.Record]]:
        """Works in rounds until the shards hold the tokens; returns the shards that count.

        What a round takes on follows from the shards of earlier rounds alone, so that every
        process, and every attempt, comes to the same rounds.
        """
        most = plan.documents_per_shard * self.sampler.config.max_length
        goal = min(plan.shards, max(1, -(-tokens // most)))
        found: list[list[shards.Record]] = []
        bar = progress(desc="synthesize", unit=" tokens", total=tokens)
        while True:
            self._round(range(len(found), goal), plan, bar)
            processes.wait_for_all(f"round up to shard {goal}")
            for number in range(len(found), goal):
                records = shards.read(self.directory, number)
                if records is None:
                    raise RuntimeError(f"shard {number} of {self.directory} was not committed")
                found.append(records)
            sums = np.cumsum([shards.accepted_tokens(records) for records in found])
            bar.n = int(sums[-1])
            bar.refresh()
            if sums[-1] >= tokens or goal == plan.shards:
                bar.close()
                return found[: int(np.searchsorted(sums, tokens)) + 1]
            missing = tokens - int(sums[-1])
            each = max(1.0, float(sums[-1]) / len(found))
            goal = min(plan.shards, len(found) + max(1, round(missing / each)))

    def _round(self, numbers: range, plan: Plan, bar) -> None:
        """Samples this process's part of some shards, as far as they are not committed yet."""
        mine = [
            number
            for number in numbers
            if number % jax.process_count() == jax.process_index()
            and shards.read(self.directory, number) is None
        ]
        done: dict[int, list[shards.Record]] = collections.defaultdict(list)
        for sample in self.sampler.sample(self._requests(mine, plan)):
            number = sample.request.index // plan.documents_per_shard
            record = self._record(sample, plan)
            done[number].append(record)
            bar.update(record.tokens if record.rejected_by is None else 0)
            if len(done[number]) == len(plan.shard(number)):
                records = done.pop(number)
                order = {self._id(plan, index): index for index in plan.shard(number)}
                records.sort(key=lambda one: order[one.id])
                shards.write(self.directory, number, records)

    def _requests(self, numbers: list[int], plan: Plan) -> Iterator[Request]:
        for number in numbers:
            places = [(index, *plan.document(index)) for index in plan.shard(number)]
            keys = document_keys(
                plan.seed,
                [plan.seed_ids[document] for _, document, _ in places],
                [sample for _, _, sample in places],
            )
            for (index, document, _), key in zip(places, keys, strict=True):
                yield Request(index, self.prompts[document], key)

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


def finish(
    directory: epath.Path,
    kept: list[list[shards.Record]],
    checkpoint: str,
    empty_seeds: int,
    filter: FilterConfig,
) -> dict:
    """Writes the dataset and what was rejected; removes the shards; returns the counts."""
    # TFDS brings TensorFlow, which sampling does not need.
    from sbp_jax.synthesize import corpus

    records = [record for shard in kept for record in shard]
    accepted_tokens = shards.accepted_tokens(records)
    if filter.max_near_duplicate is not None:
        reject_near_duplicates(records, filter.max_near_duplicate)
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
    (directory / SHARDS).rmtree()
    return {
        "documents": len(accepted),
        "tokens": shards.accepted_tokens(accepted),
        "accepted_tokens": accepted_tokens,  # before near-duplicates were taken out
        "bytes": sum(len(record.text.encode()) for record in accepted),
        "sampled_documents": len(records),
        "sampled_tokens": sum(record.tokens for record in records),
        "seeds": len({record.seed_id for record in accepted}),
        "empty_seeds": empty_seeds,
        "unfinished": sum(record.finish_reason == "length" for record in accepted),
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
