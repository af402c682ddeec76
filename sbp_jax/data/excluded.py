"""Excluded texts: documents and evaluation tasks that what is trained on must not contain."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from sbp_jax import artifacts
from sbp_jax.data import vocabularies
from sbp_jax.data.documents import Documents


@dataclasses.dataclass(frozen=True)
class Excluded:
    """Texts to be kept out.

    Attributes:
      documents: artefacts with documents, by name.
      tasks: resolved SeqIO tasks.
    """

    documents: Mapping[str, epath.Path]
    tasks: Sequence[Any]

    @property
    def inputs(self) -> dict[str, epath.Path]:
        """What a stage reads of them, by role."""
        documents = {f"exclude/{name}": path for name, path in self.documents.items()}
        return documents | {name: path for one in self.tasks for name, path in one.inputs.items()}

    @property
    def code(self) -> tuple[str, ...]:
        """Modules that decide the texts."""
        return tuple(module for one in self.tasks for module in one.code)

    @property
    def fingerprints(self) -> list[dict]:
        """What is known of the tasks' content before they are read."""
        if not self.tasks:
            return []
        from sbp_jax.data import tasks  # loads SeqIO

        return [tasks.fingerprint(task) for one in self.tasks for task in one.tasks]

    def texts(self) -> Iterator[tuple[str, str]]:
        """Name and text of each."""
        for name, path in self.documents.items():
            yield from ((f"{name} {one.id}", one.text) for one in Documents(path))
        for one in self.tasks:
            for task in one.tasks:
                yield from texts_of(task)


def find(run: artifacts.Run, names: Sequence[str], documents: Mapping[str, epath.Path]) -> Excluded:
    """Resolves names.

    Args:
      run: where a task's artefacts are looked for.
      names: of `documents`, or else SeqIO tasks, `module:attribute`, with all their splits.
      documents: artefacts with documents, by name.

    Raises:
      UserError: there is no such task.
    """
    specs = [name for name in names if name not in documents]
    resolved = []
    if specs:
        # SeqIO brings TensorFlow, which only those who name a task need.
        from sbp_jax.data import tasks
        from sbp_jax.data.seqio_vocabularies import seqio_vocabulary

        vocabulary = seqio_vocabulary(vocabularies.Bytes())  # the texts are what is compared
        resolved = [tasks.resolve(spec, vocabulary, run) for spec in specs]
    return Excluded({name: documents[name] for name in names if name in documents}, resolved)


def texts_of(task: Any) -> Iterator[tuple[str, str]]:
    """Name and text of each example of a SeqIO task, of all its splits and all its features."""
    from sbp_jax.data import tasks  # loads SeqIO

    for split in task.splits:
        for number, example in enumerate(tasks.examples(task, split, tokenised=False)):
            name = tasks.id_of(example) or f"{split}-{number}"
            parts = [tasks.text_of(example, key)[0] for key in task.output_features]
            yield f"{task.name} {name}", " ".join(parts)
