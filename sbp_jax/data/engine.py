"""Apache Beam as an engine: one function over many items, on the cores here or on a cluster.

The items are independent, and what the function leaves lies in files: nothing is shuffled and
nothing comes back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from sbp_jax.errors import UserError

LOCAL = "DirectRunner"
INLINE = "inline"


def run_all(
    function: Callable[[Any], None], items: Sequence[Any], runner: str, options: Sequence[str]
) -> None:
    """Calls a function once for each item; on a cluster it may be called again where it failed.

    Args:
      function: of a module; must bear to be repeated.
      items: can be pickled.
      runner: name of a Beam runner. `DirectRunner` takes a process a core, `inline` no other
        process and no Beam.
      options: for that runner, as `--project=mine`.

    Raises:
      UserError: Beam knows no such runner.
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
    with apache_beam.Pipeline(runner=made, options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | "Items" >> apache_beam.Create(items)
            | "Spread" >> apache_beam.Reshuffle()
            | "Work" >> apache_beam.Map(function)
        )
