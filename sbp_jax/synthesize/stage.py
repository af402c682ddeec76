"""The stage `sbp synthesize`: seed documents and a synthesizer become a synthetic corpus."""

from __future__ import annotations

import gin
from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.checkpoints import load_parameters, model_config
from sbp_jax.data import excluded as excluded_texts
from sbp_jax.data.documents import Documents
from sbp_jax.data.rows import open_rows
from sbp_jax.data.vocabularies import load
from sbp_jax.errors import UserError
from sbp_jax.parallel import processes
from sbp_jax.settings import configurable
from sbp_jax.synthesize import claims, commit
from sbp_jax.synthesize.draws import read_weights
from sbp_jax.synthesize.filters import FilterConfig
from sbp_jax.synthesize.sampler import Sampler, SamplerConfig
from sbp_jax.synthesize.schedule import Plan
from sbp_jax.synthesize.seeds import Seeds
from sbp_jax.synthesize.work import Work
from sbp_jax.text.ngram_index import NgramIndex

# Seeds on whose prompts the scales of an int8 cache are found: the first ones of the plan.
CALIBRATION = 64


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
    weight_dtype: str | None = None,
    cache_dtype: str | None = None,
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
      weight_dtype: `int8` halves what a step reads of the weights; None for the model's own dtype.
      cache_dtype: `int8` halves what a step reads of earlier tokens, and leaves room for as many
        slots again; None likewise. What both cost in quality, `benchmarks/int8.py` measures.
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
    config = SamplerConfig(
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
        weight_dtype=weight_dtype,
        cache_dtype=cache_dtype,
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
            "weight_dtype": weight_dtype,
            "cache_dtype": cache_dtype,
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
        commit.tidy(stage.out)
        return
    if not any_checkpoint:
        check_synthesizer(paths["checkpoint"])
    excluded_index = NgramIndex(excluded.texts()) if filter.exclude else None
    found = Seeds(Documents(paths["seeds"]), vocabulary, seed_length)
    if not len(found):
        raise UserError(f"{paths['seeds']} has no seed document with a token in it")
    plan = Plan(
        found.ids,
        seed,
        documents_per_shard,
        max_samples_per_seed,
        weights=read_weights(found, weight_by) if weight_by else None,
        samples_together=samples_together,
    )
    parameters, info = load_parameters(paths["checkpoint"], step=checkpoint_step)
    calibration = [
        found.prompts[plan.document(index)[0]]
        for index in range(0, plan.documents, samples_together)[:CALIBRATION]
    ]
    sampler = Sampler(
        model,
        parameters,
        config,
        calibration=calibration,
    )
    weightless = 0 if plan.weights is None else int((plan.weights == 0).sum())
    try:
        work = Work(stage.work, found, plan, sampler, vocabulary, filter, excluded_index)
        with claims.Worker(stage.work, lease_seconds) as worker:
            claimed = claims.Claims(worker)
            kept = work.until(tokens, claimed, most_nan)
            commit.once(
                stage,
                claimed,
                lambda: commit.write(work, kept, info.hash) | {"weightless_seeds": weightless},
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
