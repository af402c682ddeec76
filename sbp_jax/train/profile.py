"""Profiles on demand: `kill -USR1 PID` traces the next steps of a running trainer."""

from __future__ import annotations

import os
import signal

import jax
from absl import logging
from etils import epath

STEPS = 5


class Profiler:
    """Traces a few steps when it is asked to with SIGUSR1.

    The trace of the steps after step N lies under `DIRECTORY/step_N`, for XProf or Perfetto. To be
    used as a context manager, in the main thread.

    Args:
      directory: of the traces.
    """

    def __init__(self, directory: epath.PathLike):
        self.directory = epath.Path(directory)
        self.asked = False
        self.last: int | None = None

    def __enter__(self) -> Profiler:
        self.before = signal.signal(signal.SIGUSR1, self._ask)
        logging.info("kill -USR1 %d traces the next %d steps", os.getpid(), STEPS)
        return self

    def __exit__(self, *exception) -> None:
        signal.signal(signal.SIGUSR1, self.before)
        if self.last is not None:
            jax.profiler.stop_trace()

    def _ask(self, *_) -> None:
        self.asked = True

    def after(self, step: int) -> None:
        """To be told of each step that was dispatched."""
        if self.last is not None and step >= self.last:
            jax.profiler.stop_trace()
            logging.info("traced until step %d", step)
            self.last = None
        if self.asked and self.last is None:
            self.asked = False
            self.last = step + STEPS
            jax.profiler.start_trace(str(self.directory / f"step_{step}"))
