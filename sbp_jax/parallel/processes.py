"""Process start-up: joins the processes of one job, on a pod or on one machine."""

from __future__ import annotations

import ctypes
import os
import pathlib
import signal
import sys

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from sbp_jax.errors import UserError

# A missing host makes the others wait; past this many seconds they say so and stop.
START_TIMEOUT_SECONDS = 300
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_compiled_programs() -> None:
    """Keeps compiled programs under the user's cache directory, unless JAX was told otherwise."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        directory = pathlib.Path(base) / "sbp_jax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(directory))


def reuse_freed_memory() -> None:
    """Tells glibc to keep freed memory for what is asked for next; does nothing without glibc.

    On a CPU a training step takes and frees the same tens of megabytes each time. By default they
    go back to the system, which clears every page before it gives it out again: a quarter to a
    third of a small model's step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def make_cpu_devices(count: int) -> None:
    """Makes so many devices of the CPU, unless XLA_FLAGS say how many there are.

    To be called before JAX is asked for any device.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", count)


def start(
    coordinator: str | None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins a job of several processes; does nothing when no coordinator is named.

    Args:
      coordinator: `HOST:PORT` of process 0; `auto` where JAX can find out (Cloud TPU, Slurm).
      num_processes: how many there are; with `auto`, found out.
      process_id: which of them this is, from 0; with `auto`, found out.

    Raises:
      UserError: the three do not go together, or not all processes came in time.
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise UserError("--num_processes and --process_id need --coordinator=HOST:PORT")
        return
    if coordinator != "auto" and (num_processes is None or process_id is None):
        raise UserError(
            f"--coordinator={coordinator} needs --num_processes=N and --process_id=I "
            "(only --coordinator=auto finds them out)"
        )
    try:
        jax.distributed.initialize(
            coordinator_address=None if coordinator == "auto" else coordinator,
            num_processes=num_processes,
            process_id=process_id,
            initialization_timeout=START_TIMEOUT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes did not come together at {coordinator} within "
            f"{START_TIMEOUT_SECONDS} s ({str(error).splitlines()[0]}): are all "
            f"{num_processes or ''} started, and can they reach it?"
        ) from error
    logging.info("process %d of %d", jax.process_index(), jax.process_count())


class Termination:
    """Whether the job was asked to end (SIGTERM), as a cloud does before it takes a machine back.

    Several processes get the same answer at the same step, whichever of them was asked. To be used
    as a context manager, in the main thread.
    """

    def __enter__(self) -> Termination:
        self.asked = False
        self.alone = jax.process_count() == 1
        if self.alone:
            self.before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *exception) -> None:
        if self.alone:
            signal.signal(signal.SIGTERM, self.before)

    def _ask(self, *_) -> None:
        self.asked = True

    def at(self, step: int) -> bool:
        """To be asked once after each step, by all processes."""
        if self.alone:
            return self.asked
        return multihost_utils.reached_preemption_sync_point(step)


def is_writer() -> bool:
    """Whether this process writes what is written once for all."""
    return jax.process_index() == 0


def all_of(mine: bool) -> bool:
    """Whether it is so on every process of the job; each must ask."""
    if jax.process_count() == 1:
        return mine
    return bool(np.all(multihost_utils.process_allgather(np.array(mine))))


def wait_for_all(name: str) -> None:
    """Returns when every process of the job has called it with this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
