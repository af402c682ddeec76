"""What finding neighbours takes: by ScaNN on CPUs, and exactly on the chips of a slice."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sbp_jax.errors import UserError
from sbp_jax.pair import cost, exact, memory, scann_search
from sbp_jax.plan.programs import Program, compile_program
from sbp_jax.plan.topology import Topology

FULL = 0.9  # of a chip's memory: the rest is for products


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents, each of which is asked for its neighbours among all.

    Attributes:
      documents: N.
      dimensions: D of their vectors.
      neighbours: of each.
    """

    documents: int
    dimensions: int
    neighbours: int


def by_scann(corpus: Corpus, search: scann_search.ScannSearch, host_bytes: int) -> dict[str, Any]:
    """Shards for machines with so much memory, and an estimate of core-hours.

    Raises:
      UserError: no number of shards fits.
    """

    def need(each: int, shards: int) -> int:
        return memory.RUNTIME + memory.forecast(
            each,
            corpus.dimensions,
            search.name,
            neighbours=corpus.neighbours,
            plan=search.plan(each, corpus.neighbours),
        )

    shards = memory.shards_that_fit(need, corpus.documents, host_bytes)
    if shards is None:
        raise UserError(
            f"PlanConfig.host_gigabytes = {host_bytes / 1e9:g}: no search fits into that: expected "
            "more"
        )
    each = math.ceil(corpus.documents / shards)
    plan = search.plan(each, corpus.neighbours)
    one = cost.core_seconds(each, corpus.dimensions, corpus.documents, plan)
    return {
        "shards": shards,
        "bytes_per_shard": need(each, shards),
        "fits": True,
        "build_core_hours": shards * one.build / 3600,
        "core_hours": shards * (one.build + one.search) / 3600,
    }


def exactly(
    corpus: Corpus, search: exact.ExactSearch, topology: Topology
) -> tuple[dict[str, Any], Program]:
    """Shards that one after the other lie on the slice, and the compiler's estimate of hours."""
    room = (
        FULL
        * topology.chip.hbm_bytes
        * topology.chips
        / (exact.SIZES[search.dtype] * corpus.dimensions)
    )
    shards = math.ceil(corpus.documents / room)
    each = math.ceil(corpus.documents / shards)
    logging.info("compiling exact search for %s", topology)
    program = _compile(each, corpus, search, topology)
    calls = shards * math.ceil(corpus.documents / exact.QUERIES)
    hours = None if program.seconds is None else calls * program.seconds / 3600
    return {
        "shards": shards,
        "bytes_per_chip": program.bytes_per_chip,
        "fits": program.fits,
        "hours": hours,
        "chip_hours": None if hours is None else hours * topology.chips,
    }, program


def _compile(
    vectors: int, corpus: Corpus, search: exact.ExactSearch, topology: Topology
) -> Program:
    mesh = Mesh(np.array(topology.devices()), (exact.AXIS,))
    shape = *exact.runs_of(vectors, mesh.size), exact.BLOCK, corpus.dimensions

    def lower():
        return exact.nearest.lower(
            jax.ShapeDtypeStruct(
                shape, search.dtype, sharding=NamedSharding(mesh, PartitionSpec(exact.AXIS))
            ),
            jax.ShapeDtypeStruct(
                (exact.QUERIES, corpus.dimensions),
                search.dtype,
                sharding=NamedSharding(mesh, PartitionSpec()),
            ),
            vectors,
            mesh=mesh,
            count=min(corpus.neighbours, vectors),
            expected_recall=search.expected_recall,
        )

    return compile_program(lower, topology)
