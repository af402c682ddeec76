"""The command `sbp plan`: memory, time and cost of an experiment before it is paid for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import gin
from absl import logging
from etils import epath

from sbp_jax.data import loader
from sbp_jax.errors import UserError
from sbp_jax.model.compute import ComputeConfig
from sbp_jax.model.decoder import DecoderConfig, parameter_count
from sbp_jax.pair.exact import ExactSearch
from sbp_jax.pair.scann_search import ScannSearch
from sbp_jax.parallel.mesh import MeshConfig, make_layout
from sbp_jax.plan import searches
from sbp_jax.plan import topology as topologies
from sbp_jax.plan.programs import Program, TrainStep, compile_sampler, compile_train_step
from sbp_jax.plan.topology import Topology
from sbp_jax.settings import configurable
from sbp_jax.synthesize.sampler import SamplerConfig
from sbp_jax.train.optimizer import OptimizerConfig

DOES_NOT_FIT = 3
TRAININGS = ("pretrain", "tune", "joint", "oracle")


@configurable
@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What a plan cannot read from the settings of the stages; each may differ by scope.

    Attributes:
      length: tokens a row.
      rows_per_chip: where `train.batch_size` is not set.
      price: of a chip and hour, in dollars; None leaves the costs out.
      prompt_length: of the sampler, where `synthesize` is not set.
      max_length: the same.
      slots: the same.
      tokens: to be synthesized, where `synthesize.tokens` is not set.
      documents: whose neighbours are to be found; None leaves the searches out.
      dimensions: of their vectors.
      host_gigabytes: memory of a machine that searches on its CPUs.
    """

    length: int = 4096
    rows_per_chip: int = 4
    price: float | None = None
    prompt_length: int = 1024
    max_length: int = 1024
    slots: int = 64
    tokens: int = 75_000_000_000
    documents: int | None = None
    dimensions: int = 1024
    host_gigabytes: float = 256.0

    def __post_init__(self):
        for name in ("documents", "dimensions", "host_gigabytes"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise UserError(f"PlanConfig.{name} = {value}: expected at least 1")


@dataclasses.dataclass(frozen=True)
class Training:
    """A stage that trains: its step, and how many of them it takes (None: not set)."""

    step: TrainStep
    steps: int | None


def plan(slice_name: str, slices: int, as_json: bool, hlo_directory: str | None) -> int:
    """Compiles what the stages run for a slice, and prints what it needs.

    Args:
      slice_name: as `v5p:4x4x4`.
      slices: how many of them.
      as_json: print one JSON object instead of a table.
      hlo_directory: gets the optimised HLO of each program.

    Returns:
      The exit code: 0, or 3 if a program does not fit the chips' memory.

    Raises:
      UserError: the settings and the slice do not go together.
    """
    topology = topologies.parse(slice_name, slices)
    trainings = _trainings(topology)
    for name, training in trainings.items():
        _check(name, training.step, topology)
    compiled: dict[TrainStep, Program] = {}
    for name, training in trainings.items():
        if training.step not in compiled:
            logging.info("%s: compiling its step for %s", name, topology)
            compiled[training.step] = compile_train_step(training.step, topology)
    programs = {name: compiled[training.step] for name, training in trainings.items()}
    logging.info("compiling the sampler for one chip of it")
    first = next(iter(trainings.values())).step
    programs |= compile_sampler(first.model, _sampler(), topology)
    found: dict[str, Any] = {}
    if PlanConfig().documents:
        found, programs_of_search = _searches(topology)
        programs |= programs_of_search
    if hlo_directory:
        _keep(epath.Path(hlo_directory), programs)
    result = _result(topology, trainings, programs) | {"searches": found}
    print(json.dumps(result, indent=2) if as_json else _table(result))
    return 0 if result["fits"] else DOES_NOT_FIT


def _trainings(topology: Topology) -> dict[str, Training]:
    """Of an experiment those of its scopes that train; of a model alone, its pretraining."""
    scopes = [scope for scope in TRAININGS if _bound(scope, "train").get("rows")]
    return {scope: _training(scope, topology) for scope in scopes or TRAININGS[:1]}


def _bound(scope: str, name: str) -> dict[str, Any]:
    with gin.config_scope(scope):
        return gin.get_bindings(name)


def _training(scope: str, topology: Topology) -> Training:
    bound = _bound(scope, "train")
    with gin.config_scope(scope):
        settings = PlanConfig()
        mesh = bound.get("mesh") or MeshConfig(data=1, fsdp=-1)
        step = TrainStep(
            model=bound.get("model") or DecoderConfig(),
            optimizer=bound.get("optimizer") or OptimizerConfig(learning_rate=1e-3),
            mesh=dataclasses.replace(mesh, slices=topology.slices, rules=_frozen(mesh.rules)),
            compute=bound.get("compute") or ComputeConfig(),
            batch_size=bound.get("batch_size") or settings.rows_per_chip * topology.chips,
            length=settings.length,
            **{
                name: bound[name]
                for name in ("accumulation_steps", "dropout", "z_loss")
                if name in bound
            },
        )
    compute = dataclasses.replace(
        step.compute, save=tuple(step.compute.save), offload=tuple(step.compute.offload)
    )
    steps, rows = bound.get("steps"), bound.get("rows")
    if steps is None and isinstance(rows, Mapping):  # tokens of each artefact
        steps = int(sum(rows.values()) / (step.batch_size * step.length))
    return Training(dataclasses.replace(step, compute=compute), steps)


def _frozen(rules):
    return tuple((name, tuple(axes)) for name, axes in rules)


def _check(name: str, step: TrainStep, topology: Topology) -> None:
    layout = make_layout(step.mesh, topology.devices())
    try:
        loader.check_batch(step.batch_size, layout.batch_shards, step.accumulation_steps)
    except UserError as error:
        raise UserError(f"{name} on {topology}: {error.message}") from error


def _sampler() -> SamplerConfig:
    bound = _bound("synthesize", "synthesize")
    settings = PlanConfig()
    slots = bound.get("slots", settings.slots)
    seed_length = bound.get("seed_length")
    sampling = ("block", "chunk", "top_k", "min_length", "stop_repeats", "stop_period")
    names = (*sampling, "weight_dtype", "cache_dtype")
    others = {name: bound[name] for name in names if name in bound}
    return SamplerConfig(
        prompt_length=seed_length + 2 if seed_length else settings.prompt_length,
        max_length=bound.get("max_length", settings.max_length),
        temperature=bound.get("temperature", 1.0),
        top_p=bound.get("top_p", 0.9),
        eos=1,
        never=(0,),
        slots=slots,
        prefill_rows=min(bound.get("prefill_rows", 4), slots),
        **others,
    )


def _searches(topology: Topology) -> tuple[dict[str, Any], dict[str, Program]]:
    """What it takes to find the neighbours of all documents, by each kind of search."""
    settings = PlanConfig()
    assert settings.documents is not None
    neighbours = _bound("pairs", "pair").get("neighbours", 200)
    corpus = searches.Corpus(settings.documents, settings.dimensions, neighbours + 1)
    with gin.config_scope("pairs"):
        scann, exact = ScannSearch(), ExactSearch()
    found, program = searches.exactly(corpus, exact, topology)
    if settings.price is not None and found["chip_hours"] is not None:
        found["dollars"] = found["chip_hours"] * settings.price
    host_bytes = int(1e9 * settings.host_gigabytes)
    return {
        "exact": found,
        "scann": searches.by_scann(corpus, scann, host_bytes),
    }, {"search": program}


def _keep(directory: epath.Path, programs: dict[str, Program]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, program in programs.items():
        if program.hlo:
            file = {"pretrain": "train_step", "tune": "tune_step"}.get(name, name)
            (directory / f"{file}.hlo").write_text(program.hlo)


def _result(
    topology: Topology, trainings: dict[str, Training], programs: dict[str, Program]
) -> dict[str, Any]:
    """What is printed, as JSON: the pretraining step at the top level, everything below it."""

    def described(program: Program) -> dict[str, Any]:
        fields = dataclasses.asdict(program)
        del fields["hlo"]
        seconds = fields.pop("seconds")
        return {"step_seconds": seconds, **fields}

    first_name, first = next(iter(trainings.items()))
    stages = {
        name: _budget(training, programs[name], topology)
        for name, training in trainings.items()
        if training.steps
    }
    return {
        "topology": str(topology),
        "chips": topology.chips,
        "parameters": parameter_count(first.step.model),
        "batch_size": first.step.batch_size,
        "length": first.step.length,
        **described(programs[first_name]),
        "fits": all(program.fits for program in programs.values()),
        "programs": {name: described(program) for name, program in programs.items()},
        "stages": stages,
        "synthesize": _synthesis(programs),
        "remedies": _remedies(programs),
    }


def _budget(training: Training, program: Program, topology: Topology) -> dict[str, Any]:
    """Tokens, time and cost of a whole stage."""
    assert training.steps is not None
    tokens = training.steps * training.step.batch_size * training.step.length
    if program.seconds is None:
        return {"steps": training.steps, "tokens": tokens}
    hours = training.steps * program.seconds / 3600
    price = PlanConfig().price
    return {
        "steps": training.steps,
        "tokens": tokens,
        "hours": hours,
        "chip_hours": hours * topology.chips,
        "dollars": hours * topology.chips * price if price is not None else None,
    }


def _synthesis(programs: dict[str, Program]) -> dict[str, Any] | None:
    """What writing the corpus takes, of full documents for each of which a prompt is read."""
    prefill, decode = programs["prefill"], programs["decode"]
    if prefill.seconds is None or decode.seconds is None or decode.bound_seconds is None:
        return None
    bound = _bound("synthesize", "synthesize")
    settings = PlanConfig()
    config = _sampler()
    tokens = bound.get("tokens", settings.tokens)
    of_document = (
        config.max_length * decode.seconds / config.slots + prefill.seconds / config.prefill_rows
    )
    rate = config.max_length / of_document
    chip_hours = tokens / rate / 3600
    return {
        "tokens": tokens,
        "slots": config.slots,
        "step_seconds": decode.seconds,
        "of_memory_bound": decode.seconds / decode.bound_seconds,
        "tokens_per_s_chip": rate,
        "chip_hours": chip_hours,
        "dollars": chip_hours * settings.price if settings.price is not None else None,
    }


def _remedies(programs: dict[str, Program]) -> list[str]:
    """What to change for what does not fit."""
    found = []
    for name, program in programs.items():
        if not program.fits and name in TRAININGS:
            found.append(
                f"{name}: take ComputeConfig.remat = 'minimal' or 'full', fewer rows a chip "
                "(train.accumulation_steps), a smaller ComputeConfig.loss_block, or more chips"
            )
        elif name == "search" and not program.fits:
            found.append("search: take more chips, or fewer PlanConfig.documents")
        elif not program.fits:
            found.append(
                f"{name}: take fewer synthesize.slots or prefill_rows, or a shorter max_length"
            )
    return found


def _table(result: dict[str, Any]) -> str:
    """What is printed for people."""
    lines = [
        f"{result['parameters'] / 1e9:.3g} billion parameters on {result['topology']}, "
        f"{result['chips']} chips; {result['batch_size']} rows × {result['length']} tokens a step",
        "",
        _row("program", "GiB a chip", "of", "fits", "ms", "MFU")
        + "  GB a chip moved by collectives",
    ]
    for name, program in result["programs"].items():
        seconds, mfu = program["step_seconds"], program["mfu"]
        lines.append(
            _row(
                name,
                f"{program['bytes_per_chip'] / 2**30:.1f}",
                f"{program['hbm_bytes'] / 2**30:.0f}",
                "yes" if program["fits"] else "NO",
                "" if seconds is None else f"{1e3 * seconds:.1f}",
                f"{100 * mfu:.0f}%" if mfu else "",
            )
            + "  "
            + ", ".join(
                f"{kind} {found['bytes'] / 1e9:.2f} in {found['count']}"
                for kind, found in program["collectives"].items()
            )
        )
    if result["stages"]:
        lines += ["", _row("stage", "steps", "tokens", "hours", "chip-hours", "dollars")]
    for name, stage in result["stages"].items():
        hours, chip_hours, dollars = (stage.get(k) for k in ("hours", "chip_hours", "dollars"))
        lines.append(
            _row(
                name,
                f"{stage['steps']:,}",
                f"{stage['tokens']:,}",
                "" if hours is None else f"{hours:,.1f}",
                "" if chip_hours is None else f"{chip_hours:,.1f}",
                "" if dollars is None else f"{dollars:,.0f}",
            )
        )
    if found := result["synthesize"]:
        lines += ["", _row("synthesize", "slots", "tokens", "tokens/s", "chip-hours", "of bound")]
        lines.append(
            _row(
                "a chip",
                f"{found['slots']:,}",
                f"{found['tokens']:,}",
                f"{found['tokens_per_s_chip']:,.0f}",
                f"{found['chip_hours']:,.0f}",
                f"{found['of_memory_bound']:.2f}",
            )
        )
    if found := result["searches"]:
        lines += ["", _row("search", "shards", "GB each", "hours", "chip-hours", "core-hours")]
        exact, scann = found["exact"], found["scann"]
        hours, chip_hours = exact["hours"], exact["chip_hours"]
        lines += [
            _row(
                "exact",
                f"{exact['shards']:,}",
                f"{result['chips'] * exact['bytes_per_chip'] / 1e9:,.0f}",
                "" if hours is None else f"{hours:,.1f}",
                "" if hours is None else f"{chip_hours:,.1f}",
                "",
            ),
            _row(
                "scann",
                f"{scann['shards']:,}",
                f"{scann['bytes_per_shard'] / 1e9:,.0f}",
                "",
                "",
                f"{scann['core_hours']:,.1f}",
            ),
        ]
    lines += [
        "",
        "Times are the TPU compiler's estimates, with attention kernels taken to reach half of the",
        "peak, and all that moves between chips taken to hide behind them.",
    ]
    return "\n".join([*lines, *result["remedies"]])


def _row(name: str, *cells: str) -> str:
    return f"{name:<10}" + "".join(f"{cell:>12}" for cell in cells)
