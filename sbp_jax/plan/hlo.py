"""What the TPU compiler expects of a compiled program, read from its optimised HLO text.

The compiler notes `estimated_cycles` at each fusion. They are summed along the calls, the body of a
loop as often as it runs, of a conditional the dearer branch. Pallas kernels, sorts and what moves
between chips carry no such note: kernels are counted, collectives too, with the bytes of their
results, and of sorts the comparisons of a bitonic network (K. Batcher, "Sorting networks and their
applications", 1968).
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Mapping

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
_BITS = {"pred": 8, "bf16": 16}  # of the others the name says it: f32, s8, u4, f8e4m3fn

_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN = 2**62  # what the compiler notes where it cannot tell
_DIMENSION = re.compile(r"dimensions=\{(\d+)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LOOP = re.compile(r"condition=%([^,\s]+), body=%([^,\s]+)")
_BRANCHES = re.compile(
    r"branch_computations=\{.*?\}|true_computation=%[^,\s]+, false_computation=%[^,\s]+"
)
_CONSTANT = re.compile(r"[su]32\[\]\S* constant\((\d+)\)")
_CALLED = (
    re.compile(r" call\(.*to_apply=%([^,\s]+)"),
    re.compile(r" async-start\(.*calls=%([^,\s]+)"),
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """How often a kind of collective runs on a chip, and the bytes of its results."""

    count: int = 0
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The compiler's view of one run of a program on one chip.

    Attributes:
      cycles: of all fusions.
      collectives: by kind.
      kernels: how often each Pallas kernel runs.
      compared: elements times stages of all sorts.
    """

    cycles: int
    collectives: Mapping[str, Collective]
    kernels: Mapping[str, int]
    compared: int = 0


def estimate(text: str) -> Estimate:
    """Reads an optimised HLO module for a TPU."""
    computations, entry = _computations(text)
    total = _Total(computations)
    total.add(entry, 1)
    return Estimate(total.cycles, dict(total.collectives), dict(total.kernels), total.compared)


class _Total:
    def __init__(self, computations: Mapping[str, list[str]]):
        self.computations = computations
        self.cycles = 0
        self.compared = 0
        self.collectives: dict[str, Collective] = {}
        self.kernels: collections.Counter[str] = collections.Counter()

    def add(self, name: str, times: int) -> None:
        """Adds a computation that runs so many times."""
        for line in self.computations.get(name, ()):
            cycles = _CYCLES.search(line)
            if cycles and int(cycles[1]) < _UNKNOWN:
                self.cycles += times * int(cycles[1])
            if instruction := _INSTRUCTION.match(line):
                self._count(instruction, times)
            if loop := _LOOP.search(line):
                self.add(loop[2], times * self._trips(line, loop[1]))
            elif branches := _BRANCHES.search(line):
                self.add(max(re.findall(r"%([^,\s}]+)", branches[0]), key=self._cycles), times)
            else:
                for called in _CALLED:
                    if target := called.search(line):
                        self.add(target[1], times)

    def _cycles(self, name: str) -> int:
        """Of one run of a computation."""
        alone = _Total(self.computations)
        alone.add(name, 1)
        return alone.cycles

    def _count(self, instruction: re.Match[str], times: int) -> None:
        name, shape, kind = instruction.groups()
        kind = kind.removesuffix("-start")
        if kind in COLLECTIVES:
            before = self.collectives.get(kind, Collective())
            self.collectives[kind] = Collective(
                before.count + times, before.bytes + times * size_of(shape)
            )
        along_which = _DIMENSION.search(instruction.string, instruction.end())
        if kind == "sort" and (array := _ARRAY.search(shape)) and along_which:
            sizes = [int(size) for size in array[2].split(",")]
            along = sizes[int(along_which[1])]
            doublings = (along - 1).bit_length()
            padded = math.prod(sizes) // along << doublings
            self.compared += times * padded * doublings * (doublings + 1) // 2
        if kind == "custom-call" and "tpu_custom_call" in instruction.string:
            self.kernels[re.sub(r"[.\d]+$", "", name)] += times

    def _trips(self, line: str, condition: str) -> int:
        """How often a loop runs: as noted, or the constant that its condition compares with."""
        if known := _TRIPS.search(line):
            return int(known[1])
        found = [int(n) for n in _CONSTANT.findall("\n".join(self.computations[condition]))]
        return max(found, default=1) or 1


def size_of(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple, as HLO writes its shape."""
    total = 0
    for kind, dimensions in _ARRAY.findall(shape):
        bits = _BITS.get(kind) or int(re.sub(r"^[a-z]+", "", kind).split("e")[0] or 0)
        size = 1
        for dimension in filter(None, dimensions.split(",")):
            size *= int(dimension)
        total += size * bits // 8
    return total


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the first."""
    found: dict[str, list[str]] = {}
    entry = ""
    lines: list[str] = []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            lines = found.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("  "):
            lines.append(line)
    return found, entry
