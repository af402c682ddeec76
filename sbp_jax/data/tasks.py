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

EXAMPLES_AT_ONCE = 32

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


def resolve(spec: str, vocabulary: seqio.Vocabulary, run: artifacts.Run) -> ResolvedTask:
    """Finds a task or mixture.

    Args:
      spec: `module:attribute` or `module:attribute@artefact`.
      vocabulary: handed to task factories.
      run: where artefacts are looked for.

    Raises:
      UserError: module, attribute, task or artefact is not there.
    """
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


def source_shards(task: seqio.Task, split: str) -> int:
    """How many parts a task's source is made of, at least 1.

    Raises:
      UserError: the task has no such split.
    """
    _check_split(task, split)
    return max(1, len(task.source.list_shards(split)))


def examples(
    task: seqio.Task, split: str, shard: tuple[int, int] = (0, 1), tokenised: bool = True
) -> Iterator[dict[str, Any]]:
    """The examples of a task in its own order, as NumPy.

    A source may carry an attribute `failure`, the exception of its own that stopped a reading: it
    is raised in the place of TensorFlow's, which only quotes it.

    Args:
      task: of SeqIO.
      split: of the task.
      shard: which part of the split, of how many. Where the source has at least so many files the
        parts are files, elsewhere every n-th example.
      tokenised: False to leave out SeqIO's `tokenize`, and what appends EOS, where these are the
        task's last steps: its features are then texts.

    Raises:
      UserError: the task has no such split, or its source refuses a file.
    """
    _check_split(task, split)
    chosen = task if tokenised else _without_tokens(task)
    dataset = chosen.get_dataset(
        sequence_length=None,
        split=split,
        shuffle=False,
        num_epochs=1,
        shard_info=seqio.ShardInfo(*shard) if shard[1] > 1 else None,
        try_in_mem_cache=False,
    )
    try:
        yield from _one_by_one(dataset)
    except tf.errors.OpError as error:
        failure = getattr(task.source, "failure", None)
        if failure is None:
            raise
        raise failure from error


def _one_by_one(dataset: tf.data.Dataset) -> Iterator[dict[str, Any]]:
    """The examples of a data set; scalars in batches, since each step of TensorFlow takes time."""
    if any(spec.shape.rank != 0 for spec in tf.nest.flatten(dataset.element_spec)):
        yield from dataset.as_numpy_iterator()
        return
    for batch in dataset.batch(EXAMPLES_AT_ONCE).as_numpy_iterator():
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _check_split(task: seqio.Task, split: str) -> None:
    if split not in task.splits:
        raise UserError(f"task {task.name} has no split {split!r}: expected one of {task.splits}")


def _without_tokens(task: seqio.Task) -> seqio.Task:
    """The task without its tokenisation, if that comes last; else the task itself."""
    steps = list(task.preprocessors)
    after = (seqio.preprocessors.append_eos, seqio.preprocessors.append_eos_after_trim)
    while steps and (steps[-1] in after or isinstance(steps[-1], seqio.CacheDatasetPlaceholder)):
        steps.pop()
    if not steps or steps[-1] is not seqio.preprocessors.tokenize:
        return task
    text = seqio.Feature(
        seqio.PassThroughVocabulary(size=1), add_eos=False, dtype=tf.string, rank=0
    )
    return seqio.Task(
        task.name,
        source=task.source,
        output_features=dict.fromkeys(task.output_features, text),
        preprocessors=steps[:-1],
    )


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


def id_of(example: Mapping[str, Any]) -> str | None:
    """The id that an example brings, if it does."""
    value = example.get("id")
    return decode(value)[0] or None if isinstance(value, bytes) else None


def rejection(example: Mapping[str, Any]) -> str:
    """Why an example is no document, in the words of its source; empty if it is one."""
    value = example.get("rejected")
    return decode(value)[0] if isinstance(value, bytes) else ""


def text_of(example: Mapping[str, Any], feature: str = "targets") -> tuple[str, bool]:
    """The text of an example before it was tokenised, and whether wrong bytes were replaced in it.

    Raises:
      UserError: the example does not carry it.
    """
    for name in (f"{feature}_pretokenized", feature, "text"):
        value = example.get(name)
        if isinstance(value, bytes):
            return decode(value)
    raise UserError(
        "the task's examples carry no text: tokenise with seqio.preprocessors.tokenize, "
        "which keeps it as targets_pretokenized"
    )


def decode(value: bytes) -> tuple[str, bool]:
    """Bytes as text, and whether some were no UTF-8, which U+FFFD stands for."""
    try:
        return value.decode(), False
    except UnicodeDecodeError:
        return value.decode(errors="replace"), True


def texts(resolved: ResolvedTask, split: str = "train") -> Iterator[str]:
    """The text of every document of a task or mixture."""
    for task in resolved.tasks:
        for example in examples(task, split, tokenised=False):
            if not rejection(example):
                yield text_of(example)[0]
