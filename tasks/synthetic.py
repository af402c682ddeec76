"""synthetic: what a synthesizer wrote, as a SeqIO task.

What: what `sbp synthesize` left in a run: `text`, with the seed's id, the sample's index and key,
the synthesizer's checkpoint and scores as features.
Source: sampled from a model that was trained on the run's own corpus.
Licence: to be decided by whoever owns the corpus.
Size: `synthesize.tokens`.
Prepare: `sbp synthesize`; the task is named `tasks.synthetic:synthetic@ARTEFACT`.
"""

from __future__ import annotations

import os

import seqio


def synthetic(vocabulary: seqio.Vocabulary, directory: os.PathLike) -> seqio.Task:
    """The corpus of an artefact, as a task named after its directory."""
    name = os.path.basename(os.fspath(directory))
    seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(
        name,
        source=seqio.TfdsDataSource(
            tfds_data_dir=os.fspath(directory), splits={"train": "train"}, read_only=True
        ),
        preprocessors=[_text_to_targets, seqio.preprocessors.tokenize],
        output_features={"targets": seqio.Feature(vocabulary, add_eos=True)},
    )


@seqio.map_over_dataset
def _text_to_targets(example):
    return {"targets": example["text"], **{key: example[key] for key in ("id", "seed_id")}}
