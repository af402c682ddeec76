"""The engine: every item is worked on, and a worker that is lost does not leave the run waiting."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from sbp_jax.data import engine
from sbp_jax.errors import UserError

WORK = """
import os, signal, sys
from sbp_jax.data import engine
from sbp_jax.errors import Stopped


def work(item):
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    import work as module  # by a name that a worker can import

    try:
        engine.run_all(module.work, [0, 1], engine.LOCAL, ())
    except Stopped as error:
        sys.exit(error.message)
"""


def test_a_lost_worker_ends_the_run(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    root = pathlib.Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "work.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{root}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,  # without an end of its own it would wait for ever
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("a worker was lost (Worker subprocess exited with return code 137")


def test_inline_works_in_this_process():
    seen: list[int] = []
    engine.run_all(seen.append, [3, 1, 2], engine.INLINE, ())
    assert seen == [3, 1, 2]


def test_a_runner_that_beam_has_not():
    with pytest.raises(UserError, match=r"--runner=NoRunner: Beam has no such runner"):
        engine.run_all(print, [1, 2], "NoRunner", ())
