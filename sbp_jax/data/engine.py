"""Apache Beam as an engine: one function over many items, on the cores here or on a cluster.

The items are independent, and what the function leaves lies in files: nothing is shuffled and
nothing comes back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import logging

from sbp_jax.errors import Stopped, UserError

LOCAL = "DirectRunner"
INLINE = "inline"


def run_all(
    function: Callable[[Any], None], items: Sequence[Any], runner: str, options: Sequence[str]
) -> None:
    """Calls a function once for each item; on a cluster it may be called again where it failed.

    Args:
      function: of a module; must bear to be repeated.
      items: can be sent to other processes.
      runner: name of a Beam runner. `DirectRunner` takes a process a core, `inline` no other
        process and no Beam.
      options: for that runner, as `--project=mine`.

    Raises:
      UserError: Beam knows no such runner.
      Stopped: a local worker was lost.
    """
    workers = min(len(items), os.cpu_count() or 1)
    if runner == INLINE or (runner == LOCAL and workers <= 1):
        for item in items:
            function(item)
        return
    # Imported here: it takes seconds, and one item needs no engine.
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    if runner == LOCAL:
        options = [
            f"--direct_num_workers={workers}",
            "--direct_running_mode=multi_processing",
            "--default_sdk_harness_log_level=ERROR",
            *options,
        ]
    try:
        made = apache_beam.runners.create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(
            f"--runner={runner}: Beam has no such runner: expected {LOCAL}, DataflowRunner, "
            "FlinkRunner, SparkRunner or another of Beam's"
        ) from error
    with (
        _lost_workers_end_it(),
        apache_beam.Pipeline(runner=made, options=PipelineOptions(list(options))) as pipeline,
    ):
        _ = (
            pipeline
            | "Items" >> apache_beam.Create(items)
            | "Spread" >> apache_beam.Reshuffle()
            | "Work" >> apache_beam.Map(function)
        )


class _WorkerLost(BaseException):
    """Ends what the main thread waits for; no library that waits may catch it."""


@contextlib.contextmanager
def _lost_workers_end_it() -> Iterator[None]:
    """Ends the run when a local worker is lost, for whose answer Beam would wait for ever."""
    import grpc

    lost: list[str] = []
    main = threading.get_ident()
    report = threading.excepthook

    def notice(raised) -> None:
        if isinstance(raised.exc_value, grpc.RpcError):  # the threads that listened to a worker
            logging.debug("%s", raised.exc_value)
        elif "Worker subprocess exited" not in str(raised.exc_value):
            report(raised)
        else:  # the thread that watches over a worker's process
            lost.append(str(raised.exc_value))
            # A signal of the system's: Python's own would not wake a thread that waits.
            signal.pthread_kill(main, signal.SIGUSR2)

    def interrupt(*_) -> None:
        raise _WorkerLost

    threading.excepthook = notice
    before = signal.signal(signal.SIGUSR2, interrupt)
    try:
        yield
    except _WorkerLost:
        raise Stopped(
            f"a worker was lost ({lost[0]}; 137 and -9 mean that it was killed, as for lack of "
            "memory): the same command goes on from the shards that are finished"
        ) from None
    finally:
        threading.excepthook = report
        signal.signal(signal.SIGUSR2, before)
