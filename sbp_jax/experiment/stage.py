"""The stage `sbp experiment`: arms, controls and sweeps, tuned alike and trained over seeds.

First every arm's settings are chosen on seeds of their own, over one grid, by their mean
development loss, and every synthesizer's over another. Then each arm is trained with its own on all
other seeds, and only these are reported. Nothing is chosen by held-out documents.

`result.json` says what came out, and is the same to the last bit when the same seeds are run again
on the same machine, which `provenance.json` tells; how long it took stands in the manifest.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gin
import jax
import numpy as np
from absl import logging

from sbp_jax import artifacts
from sbp_jax.data import loader
from sbp_jax.errors import UserError
from sbp_jax.experiment import checks, provenance, statistics
from sbp_jax.experiment.corpora import ConceptCorpus
from sbp_jax.experiment.design import Design, Sweep
from sbp_jax.experiment.fitting import Fit, Settings
from sbp_jax.experiment.memory import Memory
from sbp_jax.experiment.study import (
    ARMS,
    CONTROLS,
    FURTHER,
    SYNTHESIZERS,
    Choices,
    Study,
    SynthesizerSettings,
)
from sbp_jax.model.compute import ComputeConfig
from sbp_jax.model.decoder import parameter_count
from sbp_jax.parallel import processes
from sbp_jax.parallel.mesh import MeshConfig, make_layout
from sbp_jax.settings import configurable
from sbp_jax.train.optimizer import OptimizerConfig

RESULT = "result.json"
MEMORY = "memory"
# Those modules of this room that decide what comes out; the others only tell of it.
CODE = tuple(
    f"sbp_jax.experiment.{name}"
    for name in (
        "checks",
        "corpora",
        "design",
        "fitting",
        "memory",
        "pairing",
        "stage",
        "statistics",
        "study",
    )
)


@configurable
def experiment(
    run: artifacts.Run,
    *,
    question: str = gin.REQUIRED,
    criterion: str = gin.REQUIRED,
    corpus: Any = gin.REQUIRED,
    design: Design = gin.REQUIRED,
    optimizer: OptimizerConfig = gin.REQUIRED,
    grid: Mapping[str, Sequence[float]] = gin.REQUIRED,
    synthesizer_grid: Mapping[str, Sequence[float]] = gin.REQUIRED,
    arms: Sequence[str] = ARMS,
    controls: Sequence[str] = (),
    sweeps: Sequence[Sweep] = (),
    seeds: Sequence[int] = (0, 1, 2),
    tuning_seeds: Sequence[int] = (1000,),
    evaluations: int = 20,
    least_share: float | None = None,
    least_seeds_ahead: int | None = None,
    before: str = "",
    mesh: MeshConfig | None = None,
    compute: ComputeConfig | None = None,
) -> None:
    """Leaves `result.json`: held-out losses of all arms over seeds, and what they say.

    Args:
      run: names the artefact.
      question: that the experiment answers.
      criterion: what counts as an answer, written down before the seeds are run.
      corpus: `ConceptCorpus` or `TextCorpus`.
      design: what the arms have in common.
      optimizer: what the grid does not say of it.
      grid: values of the fields of `Settings`; every arm is trained with every combination.
      synthesizer_grid: likewise for synthesizers, with `start`: at which share of its training the
        base model is taken.
      arms: of `study.ARMS` and `study.FURTHER`; `repetition` is always among them.
      controls: of `study.CONTROLS`.
      sweeps: each with a name of its own.
      seeds: that are reported.
      tuning_seeds: on which settings are chosen; none of them. With one, what was luck there is
        taken for a good setting.
      evaluations: of the development loss in each training.
      least_share: of the oracle's gain that SBP has to recover, where the criterion asks for one.
      least_seeds_ahead: likewise, in how many seeds SBP has to be ahead of repetition.
      before: earlier runs, what came out of them, and why they do not count: the page tells it.
      mesh: how parameters and batch are laid over the devices.
      compute: how a step is computed.

    Raises:
      UserError: an argument is out of range.
    """
    _check_arms(arms, controls)
    _check_sweeps(sweeps, [*arms, *controls], design)
    read = {*controls, *itertools.chain(*(sweep.arms for sweep in sweeps))}
    if "ideal" in read and not isinstance(corpus, ConceptCorpus):
        raise UserError(
            "experiment: `ideal` is of a concept world, whose facts are known: leave it out of "
            f"controls and sweeps for {type(corpus).__name__}"
        )
    all_seeds = [*seeds, *tuning_seeds]
    if not seeds or not tuning_seeds or len(set(all_seeds)) < len(all_seeds) or min(all_seeds) < 0:
        raise UserError(
            f"experiment.seeds = {list(seeds)}, tuning_seeds = {list(tuning_seeds)}: expected one "
            "or more of each, all different, of 0 and more"
        )
    if evaluations < 1:
        raise UserError(f"experiment.evaluations = {evaluations}: expected 1 or more")
    if least_share is not None and not 0 < least_share <= 1:
        raise UserError(f"experiment.least_share = {least_share}: expected above 0 and up to 1")
    if least_seeds_ahead is not None and not 1 <= least_seeds_ahead <= len(seeds):
        raise UserError(
            f"experiment.least_seeds_ahead = {least_seeds_ahead}: expected 1 to the number of "
            f"seeds, {len(seeds)}"
        )
    settings, of_synthesizers = _combinations(grid), _of_synthesizers(synthesizer_grid)
    layout = make_layout(mesh or MeshConfig())
    for rows in (design.batch_size, design.tune_batch_size):
        loader.check_batch(rows, layout.batch_shards)
    if jax.default_backend() == "cpu":
        processes.reuse_freed_memory()
    inputs = {role: run.path(name) for role, name in corpus.inputs.items()}
    stage = artifacts.begin(
        run,
        "experiment",
        config={
            "corpus": {type(corpus).__name__: corpus},
            "design": design,
            "embedder": type(design.embedder).__name__,
            "optimizer": optimizer,
            "grid": grid,
            "synthesizer_grid": synthesizer_grid,
            "arms": arms,
            "controls": controls,
            "sweeps": sweeps,
            "seeds": seeds,
            "tuning_seeds": tuning_seeds,
            "evaluations": evaluations,
        },
        inputs=inputs,
        code=(
            *CODE,
            "sbp_jax.data.concept_world",
            "sbp_jax.data.rows",
            "sbp_jax.model",
            "sbp_jax.train",
            "sbp_jax.pair",
            "sbp_jax.synthesize.sampler",
            "sbp_jax.synthesize.schedule",
        ),
        resumable=True,
    )
    if stage.finished:
        return
    memory = Memory(stage.work / MEMORY, written=stage.save_time)
    programs: dict[Any, Any] = {}

    def study(seed: int, design: Design = design) -> Study:
        return Study(
            run,
            corpus,
            design,
            optimizer,
            seed,
            layout,
            compute or ComputeConfig(),
            evaluations,
            memory,
            programs,
        )

    names = [*arms, *controls]
    tuning = [study(seed) for seed in tuning_seeds]
    tuned = tune(tuning, names, settings, of_synthesizers)
    studies = [study(seed) for seed in seeds]
    losses = {name: _losses(studies, name, tuned) for name in names}
    swept = {}
    for sweep in sweeps:
        swept[sweep.name] = _sweep(sweep, study, seeds, tuning_seeds, tuned, grid, of_synthesizers)
    result = {
        "question": question,
        "criterion": criterion,
        "least_share": least_share,
        "least_seeds_ahead": least_seeds_ahead,
        "before": before,
        "seeds": list(seeds),
        "tuning_seeds": list(tuning_seeds),
        "config_hash": stage.manifest.identity,
        "parameters": parameter_count(studies[0].design.model),
        "train_tokens": studies[0].tokens,
        "unique_tokens": studies[0].real.source.tokens,
        "documents": len(studies[0].splits.train),
        "passes": design.passes,
        "synthetic_share": design.share,
        "heldout_tokens": [one.heldout.source.tokens for one in studies],
        "bayes_loss": [one.splits.bayes_loss for one in studies],
        **statistics.summary(losses, controls),
        "tuning": _of_tuning(tuning, names, tuned, settings),
        "synthesizer_tuning": _of_synthesizer_tuning(tuning, tuned, of_synthesizers),
        "synthesizers": {
            kind: [checks.synthesizer(one, kind, tuned) for one in studies]
            for kind in tuned.synthesizers
        },
        "corpora": {
            name: [checks.corpus(one, name, tuned) for one in studies]
            for name in names
            if name in (*SYNTHESIZERS, "unconditional", "ideal")
        },
        "pairs": [one.pairing(tuned).statistics for one in studies] if tuned.synthesizers else [],
        "sweeps": swept,
    }
    if "sbp" in names:
        result["leakage"] = [checks.leakage(one, "sbp", tuned) for one in studies]
        result["cost"] = [one.charge(tuned) for one in studies]
    artifacts.write_atomic(stage.work / RESULT, json.dumps(result, indent=1, sort_keys=True))
    where = provenance.provenance(run.scope, run.directory.name, run.arguments)
    artifacts.write_atomic(stage.work / provenance.FILE, json.dumps(where._asdict(), indent=1))
    share = result.get("oracle_gain_recovered")
    logging.info("%s: share of the oracle's gain recovered: %s", run.scope, share)
    stage.commit({"seeds": len(seeds), "arms": len(names), "oracle_gain_recovered": share})


def _check_arms(arms: Sequence[str], controls: Sequence[str]) -> None:
    for place, names, known in (
        ("arms", arms, (*ARMS, *FURTHER)),
        ("controls", controls, CONTROLS),
    ):
        if isinstance(names, str) or not set(names) <= set(known) or len(set(names)) < len(names):
            raise UserError(f"experiment.{place} = {names!r}: expected some of {list(known)}, once")
    if "repetition" not in arms:
        raise UserError(f"experiment.arms = {list(arms)}: expected `repetition` among them")


def _check_sweeps(sweeps: Sequence[Sweep], names: Sequence[str], design: Design) -> None:
    """What is wrong with a sweep is told now, and not after hours."""
    known = (*ARMS, *FURTHER, *CONTROLS)
    for sweep in sweeps:
        if not isinstance(sweep, Sweep) or not set(sweep.arms) <= set(known):
            raise UserError(f"experiment.sweeps: {sweep!r}: expected a Sweep of arms of {known}")
        if not sweep.changes:
            raise UserError(f"experiment.sweeps: {sweep.name} changes nothing: expected a change")
        for changes in sweep.changes:
            design.changed(changes)
        untuned = sorted({*sweep.arms} - {*names})
        if untuned and not sweep.retune:
            raise UserError(
                f"experiment.sweeps: {sweep.name}: {', '.join(untuned)} is no arm or control of "
                "the experiment, whose settings it would take: add it there, or set retune"
            )
    titles = [sweep.name for sweep in sweeps]
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice:
        raise UserError(f"experiment.sweeps: {twice[0]} is there twice: name each differently")


def tune(
    studies: Sequence[Study],
    names: Sequence[str],
    settings: Sequence[Settings],
    of_synthesizers: Sequence[SynthesizerSettings],
) -> Choices:
    """Chooses every arm's settings by the least mean of its development losses over `studies`.

    And every synthesizer's likewise.

    Those of `repetition` come first, since the base model is made with them, then those of the
    synthesizers, since arms read what they write.
    """
    choices = Choices()

    def choose(name: str) -> None:
        choices.arms[name] = min(
            settings, key=lambda s: _mean(study.arm(name, choices, s) for study in studies)
        )
        logging.info("%s: %s", name, choices.arms[name])

    def choose_synthesizer(kind: str) -> None:
        choices.synthesizers[kind] = min(
            _settings_of(kind, of_synthesizers),
            key=lambda s: _mean(study.synthesizer(kind, choices, s) for study in studies),
        )
        logging.info("synthesizer %s: %s", kind, choices.synthesizers[kind])

    choose("repetition")
    for kind in ("related", "random", "scratch"):
        if any(SYNTHESIZERS.get(name) == kind for name in (*names, *_base_of(names))):
            choose_synthesizer(kind)
    for name in names:
        if name not in ("repetition", "second_round", "repetition_charged"):
            choose(name)
    if "second_round" in names:
        choose_synthesizer("second")
        choose("second_round")
    if "repetition_charged" in names:
        choose("repetition_charged")
    return choices


def _base_of(names: Sequence[str]) -> list[str]:
    """Arms on which others hang."""
    return ["sbp"] if {"second_round", "repetition_charged"} & set(names) else []


def _losses(studies: Sequence[Study], name: str, choices: Choices) -> dict[str, Any]:
    fits = [one.arm(name, choices) for one in studies]
    return {
        "by_seed": [fit.losses["heldout"] for fit in fits],
        "dev_by_seed": [fit.dev_loss for fit in fits],
        "train_by_seed": [fit.losses["train"] for fit in fits],
        "step_by_seed": [fit.step for fit in fits],
        "steps": studies[0].steps if name != "repetition_charged" else None,
        "curves": [fit.curve for fit in fits],
        "passes": [fit.passes for fit in fits],
        "settings": dataclasses.asdict(choices.arms[name]),
    }


def _mean(fits: Iterable[Fit]) -> float:
    """Of their development losses."""
    return float(np.mean([fit.dev_loss for fit in fits]))


def _of_tuning(
    studies: Sequence[Study], names: Sequence[str], choices: Choices, settings: Sequence[Settings]
) -> dict[str, list[dict[str, Any]]]:
    """Mean development losses of all settings that were tried for each arm."""
    return {
        name: [
            {
                **dataclasses.asdict(one),
                "dev_loss": _mean(study.arm(name, choices, one) for study in studies),
            }
            for one in settings
        ]
        for name in names
    }


def _of_synthesizer_tuning(
    studies: Sequence[Study], choices: Choices, settings: Sequence[SynthesizerSettings]
) -> dict[str, list[dict[str, Any]]]:
    """Likewise for each synthesizer."""
    return {
        kind: [
            {
                "start": one.start,
                **dataclasses.asdict(one.fit),
                "dev_loss": _mean(study.synthesizer(kind, choices, one) for study in studies),
            }
            for one in _settings_of(kind, settings)
        ]
        for kind in choices.synthesizers
    }


def _settings_of(
    kind: str, settings: Sequence[SynthesizerSettings]
) -> Sequence[SynthesizerSettings]:
    """One that is tuned from no base model has no start: its settings differ in the rest alone."""
    if kind in ("scratch", "second"):
        return list(dict.fromkeys(one._replace(start=0.0) for one in settings))
    return settings


def _sweep(
    sweep: Sweep,
    study: Any,
    seeds: Sequence[int],
    tuning_seeds: Sequence[int],
    tuned: Choices,
    grid: Mapping[str, Sequence[float]],
    of_synthesizers: Sequence[SynthesizerSettings],
) -> list[dict[str, Any]]:
    """The arms of a sweep for each of its changes, or what kept one from being made."""
    found: list[dict[str, Any]] = []
    names = list(dict.fromkeys(["repetition", *sweep.arms]))
    for changes in sweep.changes:
        changed = study(tuning_seeds[0]).design.changed(changes)
        choices = tuned
        trained = names if sweep.retune else list(sweep.arms)
        studies = [study(seed, changed) for seed in seeds]
        try:
            if sweep.retune:
                tuning = [study(seed, changed) for seed in tuning_seeds]
                choices = tune(tuning, names, _combinations(grid), of_synthesizers)
            losses = {name: _losses(studies, name, choices) for name in trained}
        except UserError as error:  # an α that leaves no pair: all else is worth hours, and stays
            logging.warning("sweep %s, %s: %s", sweep.name, changes, error.message)
            plain = artifacts.plain(changes)
            found.append({"changes": plain, "arms": {}, "failed": error.message})
            continue
        for one in losses.values():
            one["heldout_loss"] = statistics.mean_and_interval(one["by_seed"])
            del one["curves"]
        found.append({"changes": artifacts.plain(changes), "arms": losses})
    return found


def _combinations(grid: Mapping[str, Sequence[float]]) -> list[Settings]:
    """All settings of a grid.

    Raises:
      UserError: a field is unknown or missing.
    """
    known = [field.name for field in dataclasses.fields(Settings)]
    lists = all(isinstance(one, Sequence) and len(one) for one in grid.values())
    if "learning_rate" not in grid or set(grid) - set(known) or not lists:
        raise UserError(
            f"experiment.grid = {dict(grid)}: expected lists of values of `learning_rate` and any "
            f"of {known[1:]}"
        )
    return [
        Settings(**dict(zip(grid, values, strict=True)))
        for values in itertools.product(*grid.values())
    ]


def _of_synthesizers(grid: Mapping[str, Sequence[float]]) -> list[SynthesizerSettings]:
    """All settings of a grid of synthesizers.

    Raises:
      UserError: a field is unknown or missing, or a start no share of the base model's training.
    """
    rest = {name: values for name, values in grid.items() if name != "start"}
    starts = grid.get("start", (1.0,))
    if not (isinstance(starts, Sequence) and len(starts) and all(0 < one <= 1 for one in starts)):
        raise UserError(
            f"experiment.synthesizer_grid['start'] = {starts!r}: expected a list of shares of the "
            "base model's training, above 0 and up to 1"
        )
    return [
        SynthesizerSettings(start, settings) for start in starts for settings in _combinations(rest)
    ]
