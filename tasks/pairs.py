"""pairs: related documents d1 → d2 as a SeqIO task.

What: what `sbp pair` left in a run: `inputs` is d1, `targets` is d2, `id` names both.
Source: the run's own corpus, whose licence holds for the pairs too.
Size: up to `pair.max_per_seed` times the documents.
Prepare: `sbp pair`; the task is named `tasks.pairs:pairs@ARTEFACT`.
"""

from __future__ import annotations

import json
import os

import grain
import seqio
import tensorflow as tf

from sbp_jax.pair.stage import PAIRS


def pairs(vocabulary: seqio.Vocabulary, directory: os.PathLike) -> seqio.Task:
    """The pairs of an artefact, as the task `pairs` named after its directory."""
    records = grain.sources.ArrayRecordDataSource([os.path.join(directory, PAIRS)])

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del split, shuffle_files, seed  # there is one file, and its order is the seeds'

        def examples():
            for index in range(len(records)):
                record = json.loads(records[index])
                yield {name: record[name] for name in ("id", "inputs", "targets")}

        text = tf.TensorSpec([], tf.string)
        return tf.data.Dataset.from_generator(
            examples, output_signature={"id": text, "inputs": text, "targets": text}
        )

    name = os.path.basename(os.fspath(directory))
    seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            dataset_fn, splits=["train"], num_input_examples={"train": len(records)}
        ),
        preprocessors=[seqio.preprocessors.tokenize],
        output_features={
            "inputs": seqio.Feature(vocabulary, add_eos=False),
            "targets": seqio.Feature(vocabulary, add_eos=True),
        },
    )
