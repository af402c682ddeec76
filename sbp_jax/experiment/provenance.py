"""What a result's figures hang on beside its settings: the machine, and the command that was given.

An experiment leaves them in `provenance.json` when it ends; `result.json` stays free of them.
"""

from __future__ import annotations

import collections
import os
import pathlib
import shlex
from collections.abc import Sequence
from typing import NamedTuple

import jax

FILE = "provenance.json"
STAGE = "experiment"
CPUINFO = pathlib.Path("/proc/cpuinfo")
PLACES = ("run_dir", "gin_search_path", "verbosity")  # flags that differ from one place to another


class Provenance(NamedTuple):
    """Where a result comes from.

    Attributes:
      name: of the gin experiment: `experiments/NAME.gin`.
      machine: that it ran on, in words.
      command: by which it is made again.
    """

    name: str
    machine: str
    command: str


def provenance(scope: str, directory: str, arguments: Sequence[str]) -> Provenance:
    """Of the run that goes on in this process.

    Args:
      scope: of the experiment.
      directory: the run's name, which an experiment has that is configured without a file.
      arguments: the flags that configured it.
    """
    files = [
        pathlib.PurePath(a.partition("=")[2]) for a in arguments if a.startswith("--gin_file=")
    ]
    experiments = [path for path in files if path.parent.name == "experiments"]
    name = (experiments or files or [pathlib.PurePath(directory)])[0].stem
    kept = [a for a in arguments if a.partition("=")[0].removeprefix("--") not in PLACES]
    if scope != STAGE:
        kept.append(f"--scope={scope}")
        name = f"{name}-{scope.replace('/', '-')}"
    return Provenance(name, machine(), shlex.join(["sbp", STAGE, *kept]))


def machine() -> str:
    """This one: `NVIDIA H100 80GB HBM3; Intel(R) Xeon(R), 16 cores, 128 GiB of memory`."""
    kinds = collections.Counter(device.device_kind for device in jax.local_devices())
    devices = [
        kind if count == 1 else f"{count} × {kind}"
        for kind, count in kinds.items()
        if kind != "cpu"
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    host = f"{_cpu_model()}, {cores} core{'s' if cores != 1 else ''}, {memory:.0f} GiB of memory"
    return "; ".join([*devices, host])


def _cpu_model() -> str:
    if CPUINFO.exists():
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return os.uname().machine
