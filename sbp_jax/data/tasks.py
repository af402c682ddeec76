"""SeqIO tasks by name: from `module:attribute@artefact` to a task or mixture.

The attribute is either the name of a registered task or mixture, or a task factory: a function of
the run's vocabulary (and, with `@artefact`, of that artefact's directory) that registers a task
and returns it. This module loads SeqIO, and so TensorFlow.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import seqio
import tensorflow as tf
from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import UserError

# TensorFlow reads and tokenises here; the accelerators are JAX's.
for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)


@dataclasses.dataclass(frozen=True)
class ResolvedTask:
    """A task or mixture, ready to read.

    Attributes:
      tasks: its tasks, in the mixture's order; a task alone is the only one.
      rates: of each task in the mixture; 1 alone.
      code: the modules that define it.
      synthetic: of each task, whether it reads what `sbp synthesize` wrote.
      inputs: artefacts that it reads, by name.
    """

    tasks: tuple[seqio.Task, ...]
    rates: tuple[float, ...]
    synthetic: tuple[bool, ...]
    code: tuple[str, ...]
    inputs: dict[str, epath.Path]


def resolve(
    spec: str | Mapping[str, float], vocabulary: seqio.Vocabulary, run: artifacts.Run
) -> ResolvedTask:
    """Finds a task or mixture.

    Args:
      spec: `module:attribute` or `module:attribute@artefact`; or such specs with their rates,
        which makes a SeqIO mixture of them.
      vocabulary: handed to task factories.
      run: where artefacts are looked for.

    Raises:
      UserError: module, attribute, task or artefact is not there.
    """
    if isinstance(spec, str):
        return _resolve_one(spec, vocabulary, run)
    parts = [_resolve_one(name, vocabulary, run) for name in spec]
    for name, part in zip(spec, parts, strict=True):
        if len(part.tasks) != 1:
            raise UserError(f"task {name!r} is a mixture, which cannot stand inside a mixture")
    names = [part.tasks[0].name for part in parts]
    if len(set(names)) != len(names):
        raise UserError(f"a mixture names a task twice: {names}")
    mixture_name = "_and_".join(names)
    seqio.MixtureRegistry.remove(mixture_name)
    mixture = seqio.MixtureRegistry.add(
        mixture_name, list(zip(names, [float(rate) for rate in spec.values()], strict=True))
    )
    return ResolvedTask(
        tasks=tuple(part.tasks[0] for part in parts),
        rates=tuple(float(mixture.get_rate(part.tasks[0])) for part in parts),
        synthetic=tuple(part.synthetic[0] for part in parts),
        code=tuple(module for part in parts for module in part.code),
        inputs={name: path for part in parts for name, path in part.inputs.items()},
    )


def _resolve_one(spec: str, vocabulary: seqio.Vocabulary, run: artifacts.Run) -> ResolvedTask:
    module_name, _, rest = spec.partition(":")
    attribute, at, artefact = rest.partition("@")
    is_module = all(part.isidentifier() for part in module_name.split("."))
    if not is_module or not attribute or (at and not artefact):
        raise UserError(
            f"task {spec!r}: expected module:attribute or module:attribute@artefact, "
            "e.g. tasks.pydocs:train"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise UserError(
                f"unknown task {spec!r}: no module {error.name!r} in the current folder or the "
                "environment"
            ) from error
        raise
    made: Any = getattr(module, attribute, None)
    inputs: dict[str, epath.Path] = {}
    if callable(made):
        if at:
            inputs[artefact] = run.path(artefact)
            artifacts.read_manifest(inputs[artefact])
            made = made(vocabulary, inputs[artefact])
        else:
            made = made(vocabulary)
    else:
        name = made if isinstance(made, str) else attribute
        try:
            made = seqio.get_mixture_or_task(name)
        except ValueError as error:
            raise UserError(
                f"unknown task {spec!r}: {module_name} has no task factory {attribute!r} and "
                f"registers no task or mixture {name!r}"
            ) from error
    return _resolved(made, code=(module_name,), inputs=inputs)


def _resolved(made: Any, code: tuple[str, ...], inputs: dict[str, epath.Path]) -> ResolvedTask:
    if not isinstance(made, seqio.Task | seqio.Mixture):
        raise UserError(f"{code[0]}: a task factory returned {made!r}, expected a seqio.Task")
    synthetic = any(artifacts.read_manifest(path).stage == "synthesize" for path in inputs.values())
    if isinstance(made, seqio.Task):
        return ResolvedTask((made,), (1.0,), (synthetic,), code, inputs)
    rates = tuple(float(made.get_rate(task)) for task in made.tasks)
    return ResolvedTask(tuple(made.tasks), rates, (synthetic,) * len(rates), code, inputs)


def examples(task: seqio.Task, split: str) -> Iterator[dict[str, Any]]:
    """The examples of a task in its own order, as numpy.

    Raises:
      UserError: the task has no such split.
    """
    if split not in task.splits:
        raise UserError(f"task {task.name} has no split {split!r}: expected one of {task.splits}")
    dataset = task.get_dataset(
        sequence_length=None, split=split, shuffle=False, num_epochs=1, try_in_mem_cache=False
    )
    yield from dataset.as_numpy_iterator()


def fingerprint(task: seqio.Task) -> dict[str, Any]:
    """What is known of a task's content before it is read: its data set, version and sizes.

    A source may carry an attribute `fingerprint`, text that changes with its content.
    """
    source = task.source
    found: dict[str, Any] = {"task": task.name}
    try:
        found["examples"] = {split: source.num_input_examples(split) for split in source.splits}
    except (NotImplementedError, ValueError, TypeError):
        found["examples"] = None
    builder = getattr(source, "tfds_dataset", None)
    if builder is not None:
        found["dataset"] = str(builder.builder.info.full_name)
    if hasattr(source, "fingerprint"):
        found["content"] = source.fingerprint
    return found


def text_of(example: Mapping[str, Any]) -> str:
    """The text of an example before it was tokenised.

    Raises:
      UserError: the example does not carry it.
    """
    for feature in ("targets_pretokenized", "text", "targets"):
        value = example.get(feature)
        if isinstance(value, bytes):
            return value.decode("utf-8", errors="replace")
    raise UserError(
        "the task's examples carry no text: tokenise with seqio.preprocessors.tokenize, "
        "which keeps it as targets_pretokenized"
    )


def texts(resolved: ResolvedTask, split: str = "train") -> Iterator[str]:
    """The text of every document of a task or mixture."""
    for task in resolved.tasks:
        for example in examples(task, split):
            yield text_of(example)
