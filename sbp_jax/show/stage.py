"""The command `sbp show`: examples of a task, of rows, pairs or a synthetic corpus, to be read.

It leaves no artefact: it prints, or writes a page.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator

from etils import epath

from sbp_jax import artifacts
from sbp_jax.data import vocabularies
from sbp_jax.errors import UserError
from sbp_jax.settings import configurable
from sbp_jax.show import examples, page, terminal

# Stages whose artefacts are SeqIO tasks, and the task of each.
TASKS = {"pair": "tasks.pairs:pairs", "synthesize": "tasks.synthetic:synthetic"}


@configurable
def show(
    what: str,
    html: str | None = None,
    run_dir: str | None = None,
    *,
    count: int = 5,
    start: int = 0,
    split: str = "train",
    vocab: str | None = None,
) -> None:
    """Shows examples.

    Args:
      what: a task, `module:attribute[@artefact]`, or the folder of an artefact: rows, pairs or a
        synthetic corpus.
      html: a file to write a page to; None prints.
      run_dir: where artefacts of that name, and `vocab`, are looked for.
      count: how many.
      start: how many are passed over first.
      split: of a task.
      vocab: the vocabulary by which a task's text is shown as tokens; None for the run's, if there
        is one. Rows have their own.

    Raises:
      UserError: there is no such thing, or nothing in it.
    """
    if count < 1 or start < 0:
        raise UserError(f"show: count = {count} must be at least 1 and start = {start} at least 0")
    run = artifacts.Run(epath.Path(run_dir or "."), "show")
    found = list(itertools.islice(_examples(run, what, start, split, vocab), count))
    if not found:
        raise UserError(f"show: {what} has no example from number {start} on")
    if html is None:
        coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(terminal.render(found, coloured))
        return
    artifacts.write_atomic(epath.Path(html), page.render(what, found))
    print(html)


def _examples(
    run: artifacts.Run, what: str, start: int, split: str, vocab: str | None
) -> Iterator[examples.Example]:
    if ":" not in what or "://" in what:
        directory = run.path(what)
        manifest = artifacts.read_manifest(directory)
        if manifest.stage == "cache":
            vocabulary = vocabularies.load(vocab or examples.vocabulary_path(directory))
            return examples.of_rows(directory, vocabulary, start)
        if manifest.stage not in TASKS:
            raise UserError(
                f"show: {directory} was made by `sbp {manifest.stage}`: expected rows, pairs, a "
                "synthetic corpus, or a task as module:attribute"
            )
        what = f"{TASKS[manifest.stage]}@{os.path.abspath(directory)}"
    # SeqIO brings TensorFlow, which rows do not need.
    from sbp_jax.data import tasks
    from sbp_jax.data.seqio_vocabularies import seqio_vocabulary

    path = run.path(vocab) if vocab else run.path("vocab")
    chosen = vocabularies.load(path) if vocab or artifacts.is_finished(path) else None
    resolved = tasks.resolve(what, seqio_vocabulary(chosen or vocabularies.Bytes()), run)
    every = (examples.of_task(task, split, chosen) for task in resolved.tasks)
    return itertools.islice(itertools.chain.from_iterable(every), start, None)
