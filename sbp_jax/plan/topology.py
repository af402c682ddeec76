"""TPU slices that are not here: their chips, and devices of theirs to compile for."""

from __future__ import annotations

import dataclasses
import math
import re

import jax
from jax.experimental import topologies

from sbp_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, by its maker's data sheet.

    Attributes:
      name: as in a topology.
      hbm_bytes: of memory.
      peak_flops: dense bf16, per second.
      bandwidth: of the memory, bytes per second.
      clock: of the matrix units, Hz; peak_flops over what one cycle can do.
      cores: of a chip.
      dimensions: of a slice.
      pod: sizes of the largest slice.
    """

    name: str
    hbm_bytes: int
    peak_flops: float
    bandwidth: float
    clock: float
    cores: int
    dimensions: int
    pod: tuple[int, ...]

    @property
    def vector_flops(self) -> float:
        """Operations per second of the vector units: four a lane, of 8 × 128 lanes a core."""
        return 4 * 8 * 128 * self.cores * self.clock


_GIB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 32 * _GIB, 275e12, 1.228e12, 1.05e9, 2, 3, (16, 16, 16)),
        Chip("v5e", 16 * _GIB, 197e12, 0.819e12, 1.5e9, 1, 2, (16, 16)),
        Chip("v5p", 95 * _GIB, 459e12, 2.765e12, 1.75e9, 2, 3, (16, 16, 24)),
        Chip("v6e", 32 * _GIB, 918e12, 1.64e12, 1.75e9, 1, 2, (16, 16)),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Equal slices of one kind of chip.

    Attributes:
      chip: of which kind.
      shape: chips along each dimension of a slice.
      slices: how many slices.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    def __str__(self) -> str:
        text = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return text if self.slices == 1 else f"{self.slices} × {text}"

    def devices(self) -> list[jax.Device]:
        """One a chip, to build a mesh on and compile for; nothing can run on them.

        Raises:
          UserError: the TPU compiler is not installed, or knows no such slice.
        """
        jax.config.update("jax_platforms", "cpu")
        three = (*self.shape, 1)[:3]
        # Two cores act as one device. The ends of a row are joined where cubes of 4 × 4 × 4 are
        # whole, or, with two dimensions, in a whole pod.
        options = {"chip_config_name": "megacore"} if self.chip.dimensions == 3 else {}
        wrap = tuple(
            size % 4 == 0 if self.chip.dimensions == 3 else self.shape == self.chip.pod
            for size in self.shape
        )
        try:
            return topologies.get_topology_desc(
                f"{self.chip.name}:{'x'.join(map(str, self.shape))}",
                platform="tpu",
                num_slices=self.slices,
                chips_per_host_bounds=tuple(
                    min(a, b) for a, b in zip(three, (2, 2, 1), strict=True)
                ),
                wrap=(*wrap, False)[:3],
                **options,
            ).devices
        except (RuntimeError, ImportError) as error:
            message = str(error).splitlines()[0]
            raise UserError(
                f"--topology={self}: the TPU compiler gave no such slice ({message}): install it "
                "with the extra [tpu], and choose a size that Cloud TPU offers"
            ) from error


def parse(text: str, slices: int = 1) -> Topology:
    """Reads `v5p:4x4x4`.

    Raises:
      UserError: no such chip, or a shape that its slices cannot have.
    """
    match = re.fullmatch(r"(v\w+):(\d+(?:x\d+)+)", text)
    chip = CHIPS.get(match[1]) if match else None
    shape = tuple(int(size) for size in match[2].split("x")) if match else ()
    if chip is None or len(shape) != chip.dimensions or not all(shape):
        known = ", ".join(
            f"{c.name}:{'x'.join('ABC'[: c.dimensions])} up to {'x'.join(map(str, c.pod))}"
            for c in CHIPS.values()
        )
        raise UserError(f"--topology={text}: unknown: expected one of {known}")
    if any(size > most for size, most in zip(sorted(shape), sorted(chip.pod), strict=True)):
        raise UserError(
            f"--topology={text}: larger than a pod of {chip.name}, "
            f"{'x'.join(map(str, chip.pod))}: take several slices with --slices"
        )
    if slices < 1:
        raise UserError(f"--slices={slices}: expected at least 1")
    return Topology(chip, shape, slices)
