"""The programs that stages run, compiled for a slice that is not here."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from sbp_jax.data.rows import Row
from sbp_jax.model.compute import ComputeConfig
from sbp_jax.model.decoder import DecoderConfig, train_flops_per_token
from sbp_jax.parallel.mesh import MeshConfig, make_layout
from sbp_jax.plan import hlo
from sbp_jax.plan.topology import Topology
from sbp_jax.synthesize.sampler import Programs, Prompts, SamplerConfig, decoding_weights
from sbp_jax.train.optimizer import OptimizerConfig, make_optimizer
from sbp_jax.train.step import abstract_state, make_train_step

# The compiler gives no estimate for attention kernels: they are taken to reach half of the peak.
KERNEL_EFFICIENCY = 0.5
# Those that read the sampler's cache, to move its bytes at this share of the bandwidth.
KERNEL_BANDWIDTH = 0.8
# Nor for sorts: of each two keys and what goes with them the smaller and the larger are chosen.
OPERATIONS_OF_A_COMPARISON = 8


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """What decides the compiled step; the fields are arguments of `sbp train`."""

    model: DecoderConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    compute: ComputeConfig
    batch_size: int
    length: int
    accumulation_steps: int = 1
    dropout: float = 0.0
    z_loss: float = 0.0


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program on one chip, as the compiler sees it.

    Attributes:
      fits: whether it fits the chip's memory.
      bytes_per_chip: all that the compiler sets aside, arguments included, and the program.
      hbm_bytes: the chip's memory.
      seconds: of one run: the three below; None if it does not fit.
      compiler_seconds: the compiler's estimate, all but kernels.
      kernel_seconds: of attention kernels, at half of the chip's peak, or four fifths of its
        bandwidth where they read the sampler's cache.
      sort_seconds: of sorts, counted as networks of comparisons.
      compiler_cycles: `compiler_seconds` in cycles of the chip.
      flops: model FLOPs of one run, of all chips together.
      mfu: model FLOPs per second over the chips' peak.
      temporary_bytes: of `bytes_per_chip` those that neither come in nor go out.
      bound_seconds: of the sampler's step, to read weights and cache once at the full bandwidth.
      collectives: by kind, `count` and `bytes` a chip.
      hlo: the optimised program, empty if it does not fit.
    """

    fits: bool
    bytes_per_chip: int
    hbm_bytes: int
    seconds: float | None = None
    compiler_seconds: float | None = None
    kernel_seconds: float | None = None
    sort_seconds: float | None = None
    compiler_cycles: int | None = None
    flops: float | None = None
    mfu: float | None = None
    temporary_bytes: int | None = None
    bound_seconds: float | None = None
    collectives: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    hlo: str = dataclasses.field(default="", repr=False)


def compile_train_step(step: TrainStep, topology: Topology) -> Program:
    """The trainer's own step.

    Raises:
      UserError: mesh, batch or model cannot be divided among the chips.
    """
    layout = make_layout(step.mesh, topology.devices())
    optimizer = make_optimizer(step.optimizer, 1000, step.model.width_ratio)
    function = make_train_step(
        step.model,
        optimizer,
        layout,
        compute=step.compute,
        dropout=step.dropout,
        z_loss=step.z_loss,
        accumulation_steps=step.accumulation_steps,
    )
    shape, rows = (step.batch_size, step.length), layout.sharding("batch", None)
    batch = Row(
        **{
            name: jax.ShapeDtypeStruct(
                shape, jnp.float32 if name == "loss_weights" else jnp.int32, sharding=rows
            )
            for name in Row._fields
        }
    )
    everywhere = layout.sharding()
    key = jax.eval_shape(lambda: jax.random.key(0))
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    state = abstract_state(step.model, optimizer, layout)
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)
    tokens = step.batch_size * step.length
    flops = tokens * train_flops_per_token(step.model, step.length)
    c = step.model
    attention = 6.0 * c.layers * step.length * c.heads * c.head_size * tokens
    return compile_program(
        lambda: function.lower(state, batch, key, scalar), topology, flops, attention
    )


def compile_sampler(
    model: DecoderConfig, config: SamplerConfig, topology: Topology
) -> dict[str, Program]:
    """The sampler's prefill and one decode step, of a replica on one chip."""
    first = topology.devices()[0]
    programs = Programs(model, config, first)
    device = jax.sharding.SingleDeviceSharding(first)

    def place(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)

    layout = make_layout(MeshConfig(), topology.devices()[:1])
    parameters = abstract_state(model, make_optimizer(OptimizerConfig(1.0), 1), layout).parameters
    weights = place(
        jax.eval_shape(lambda p: decoding_weights(model, p, config.weight_dtype), parameters)
    )
    state = place(jax.eval_shape(programs.empty))
    rows = config.prefill_rows

    def integers(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    prompts = place(
        Prompts(
            tokens_RP=integers(rows, config.prompt_length),
            length_R=integers(rows),
            slot_R=integers(rows),
            last_E=integers(2 * rows),
            length_E=integers(2 * rows),
            slot_E=integers(2 * rows),
            source_E=integers(2 * rows),
            keys_E2=integers(2 * rows, 2, dtype=jnp.uint32),
        )
    )
    if config.cache_dtype is not None:
        scales = jax.eval_shape(programs.ranges, weights, prompts.tokens_RP, prompts.length_R)
        weights = weights._replace(scales=place(scales))
    one_chip = dataclasses.replace(topology, shape=(1,) * len(topology.shape), slices=1)

    def lower(function: Callable, *arguments: Any):
        return lambda: jax.jit(function, donate_argnums=1).lower(weights, *arguments)

    weight_bytes, cache_bytes = (
        sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
        for tree in (weights, state.cache)
    )
    step = compile_program(lower(programs.step, state), one_chip, kernel_bytes=cache_bytes)
    bound = (weight_bytes + cache_bytes) / topology.chip.bandwidth
    return {
        "prefill": compile_program(lower(programs.prefill, state, prompts), one_chip),
        "decode": dataclasses.replace(step, bound_seconds=bound),
    }


def compile_program(
    lower: Callable[[], Any],
    topology: Topology,
    flops: float = 0.0,
    kernel_flops: float = 0.0,
    kernel_bytes: float = 0.0,
) -> Program:
    """Compiles what `lower` lowers and reads the result; out of memory is one."""
    chip, started = topology.chip, time.monotonic()
    lowered = lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or "hbm" not in str(error).lower():
            raise
        return Program(False, _needed(str(error), chip.hbm_bytes), chip.hbm_bytes)
    text, memory = compiled.as_text(), compiled.memory_analysis()
    logging.info("compiled in %.0f s", time.monotonic() - started)
    found = hlo.estimate(text)
    # The sizes of arguments and of temporaries count twice what a loop hands on to another.
    size = memory.total_allocation_bytes + memory.generated_code_size_in_bytes
    peak = chip.peak_flops * topology.chips
    kernels = 0.0
    if found.kernels:
        kernels += kernel_flops / (KERNEL_EFFICIENCY * peak)
        kernels += kernel_bytes / (KERNEL_BANDWIDTH * chip.bandwidth)
    sorts = found.compared * OPERATIONS_OF_A_COMPARISON / chip.vector_flops
    seconds = found.cycles / chip.clock + kernels + sorts
    return Program(
        fits=size <= chip.hbm_bytes,
        bytes_per_chip=size,
        hbm_bytes=chip.hbm_bytes,
        seconds=seconds,
        compiler_seconds=found.cycles / chip.clock,
        kernel_seconds=kernels,
        sort_seconds=sorts,
        compiler_cycles=found.cycles,
        flops=flops,
        mfu=flops / (seconds * peak) if flops else None,
        temporary_bytes=memory.temp_size_in_bytes,
        collectives={kind: dataclasses.asdict(c) for kind, c in found.collectives.items()},
        hlo=text,
    )


def _needed(message: str, hbm_bytes: int) -> int:
    """The bytes that the compiler asked for; one more than there are where it does not say."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    size = r"([\d.]+)([KMGT])"
    for pattern in (rf"Used {size} of [\d.]+[KMGT] hbm", rf"\({size}\) exceeds available HBM"):
        if match := re.search(pattern, message):
            return int(float(match[1]) * units[match[2]])
    return hbm_bytes + 1
