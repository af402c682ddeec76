"""Tasks of lm-evaluation-harness in `sbp evaluate`: which they are, and what they give.

Nothing here imports the harness at its top: it is an extra, and takes seconds to start.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sbp_jax.errors import UserError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from sbp_jax.evaluate.harness_model import HarnessModel

BOOTSTRAPS = 1000  # resamples of a score that has no formula for its error
SHOWN = 3  # names near one that is unknown
REFUSED = {"UNSAFE_CODE": "runs the programs that a model writes", "MULTIMODAL": "shows pictures"}


def version() -> str:
    """The harness' version, which decides what its tasks are.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.metadata.version("lm-eval")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "evaluate.tasks needs lm-evaluation-harness, which is not installed: "
            "pip install 'lm-eval>=0.4.13', or, in the project's folder, pip install -e '.[eval]'"
        ) from None


def find(tasks: Sequence[str], include_path: str | None) -> tuple[TaskManager, list[str]]:
    """The harness' index of tasks, and the names that are asked for.

    Args:
      tasks: names of tasks, groups or tags, or patterns such as `arc_*`.
      include_path: folder of YAML files of further tasks; one that has all that is asked for is
        looked into alone, because the harness reads thousands of files to know its own.

    Raises:
      UserError: a name is unknown.
    """
    from lm_eval.tasks import TaskManager as Tasks

    manager = None
    if include_path is not None:
        manager = Tasks(include_path=include_path, include_defaults=False)
    if manager is None or any(not manager.match_tasks([name]) for name in tasks):
        manager = Tasks(include_path=include_path)
    names: dict[str, None] = {}
    for name in tasks:
        if not (found := manager.match_tasks([name])):
            near = difflib.get_close_matches(name, manager.all_tasks, SHOWN)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise UserError(f"evaluate.tasks: the harness knows no task {name!r}: {hint}")
        names |= dict.fromkeys(found)
    return manager, list(names)


def file_hashes(include_path: str | None) -> dict[str, str]:
    """Of each file of a folder of tasks, its data among them, the hash of its content, by name.

    Raises:
      UserError: it is no folder.
    """
    if include_path is None:
        return {}
    folder = pathlib.Path(include_path)
    if not folder.is_dir():
        raise UserError(
            f"evaluate.include_path = {include_path!r}: expected a folder of YAML files, on disk"
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in files
        if "__pycache__" not in path.parts
    }


def load(manager: TaskManager, names: Sequence[str]) -> list[Any]:
    """The tasks and groups of these names, with their data; a task once, though in a group too.

    Raises:
      UserError: a task or its data cannot be loaded, two groups share a task, or one is about
        pictures or runs what the model writes.
    """
    groups: dict[str, Any] = {}
    tasks: dict[str, Any] = {}
    for name in names:
        try:
            loaded = manager.load([name])
        except Exception as error:  # the libraries of tasks and data sets raise anything
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(
                f"task {name} cannot be loaded ({reason}): is its data set there or the network, "
                "and is its YAML file right?"
            ) from error
        found = loaded.get("groups", {})
        if name in found:
            groups[name] = found[name]
        else:
            tasks |= loaded["tasks"]
        for one, task in loaded["tasks"].items():
            for mark, what in REFUSED.items():
                if getattr(task, mark, False):
                    raise UserError(f"task {one} {what}, which is not done here: leave it out")
    owners: dict[str, str] = {}
    for name, group in groups.items():
        for task in group.get_all_tasks():
            if (other := owners.setdefault(task.task_name, name)) != name:
                raise UserError(
                    f"evaluate.tasks: the groups {other} and {name} share the task "
                    f"{task.task_name}: evaluate them one after the other, in scopes of their own"
                )
    return [*groups.values(), *(task for name, task in tasks.items() if name not in owners)]


def scores(
    manager: TaskManager,
    tasks: Sequence[Any],
    model: HarnessModel,
    *,
    num_fewshot: int | None,
    limit: int | None,
) -> dict[str, dict[str, Any]]:
    """What the harness finds, by task and by group of tasks.

    Args:
      manager: of the tasks.
      tasks: tasks and groups, as `load` gives them.
      model: that is asked.
      num_fewshot: examples before each question; None for as many as each task has.
      limit: so many questions of each task, its first; None for all.

    Returns:
      Of each `metrics` (name → value; that of an error ends in `_stderr`; None where there is
      none), `version`, `num_fewshot` and `samples`, which a group has only where it says so.
    """
    from lm_eval import evaluator

    with _alone(), _enough_examples(num_fewshot):
        found = evaluator.simple_evaluate(
            model=model,
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            batch_size=model.batch_size,
            bootstrap_iters=BOOTSTRAPS,
            task_manager=manager,
            log_samples=False,
        )
    assert found is not None
    every = {**found["results"], **found.get("groups", {})}
    return {
        name: {
            "metrics": _metrics(values),
            "version": found["versions"].get(name),
            "num_fewshot": found["n-shot"].get(name),
            "samples": found["n-samples"].get(name, {}).get("effective"),
        }
        for name, values in every.items()
    }


@contextlib.contextmanager
def _enough_examples(num_fewshot: int | None) -> Iterator[None]:
    """Says in the user's words what the harness' samplers say of too few examples."""
    try:
        yield
    except (ValueError, AssertionError) as error:
        if num_fewshot and re.search("larger than population|fewshot samples", str(error)):
            raise UserError(
                f"evaluate.num_fewshot = {num_fewshot}: a task has fewer examples: expected a "
                "smaller number, or None for as many as each task has"
            ) from error
        raise


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keeps the harness from forking, which a process with JAX's threads does not survive.

    And from believing a launcher that this is one of several that share the requests.
    """
    mine = {"DISABLE_MULTIPROC": "1", "LOCAL_RANK": "0"}
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _metrics(values: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers among what the harness says of a task; `acc,none` is called `acc`."""
    found: dict[str, float | None] = {}
    for key, value in values.items():
        if "," not in key:  # its name and the like
            continue
        usable = isinstance(value, int | float) and math.isfinite(value)
        found[key.removesuffix(",none")] = float(value) if usable else None
    return found


def error_of(metric: str) -> str:
    """The name under which a metric's standard error stands: `acc,f` has `acc_stderr,f`."""
    name, comma, filter_ = metric.partition(",")
    return f"{name}_stderr{comma}{filter_}"
