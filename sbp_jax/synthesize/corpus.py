"""The corpus as a TFDS dataset: a folder that `tfds.builder_from_directory` and SeqIO read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from sbp_jax.synthesize.shards import Record

NAME = "synthetic"
SPLIT = "train"
RECORDS_PER_FILE = 100_000

FEATURES = {
    "id": tf.string,
    "text": tf.string,
    "seed_id": tf.string,
    "sample_index": tf.int64,
    "key": tf.string,
    "checkpoint": tf.string,
    "finish_reason": tf.string,
    "tokens": tf.int64,
    "mean_log_probability": tf.float32,
    "repetition": tf.float32,
    "seed_copy": tf.float32,
}


def write(directory: epath.Path, records: Sequence[Record], checkpoint: str) -> None:
    """Writes TFRecord files and the metadata that make `directory` a TFDS dataset.

    Args:
      directory: gets the files.
      records: those that were kept, in order.
      checkpoint: hash of the synthesizer's parameters, a feature of every document.
    """
    features = tfds.features.FeaturesDict(
        {
            name: tfds.features.Text() if dtype == tf.string else tfds.features.Scalar(dtype)
            for name, dtype in FEATURES.items()
        }
    )
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=NAME, split=SPLIT, filetype_suffix="tfrecord"
    )
    files = max(1, -(-len(records) // RECORDS_PER_FILE))
    lengths, size = [], 0
    for number in range(files):
        part = records[number * RECORDS_PER_FILE : (number + 1) * RECORDS_PER_FILE]
        file = template.sharded_filepath(shard_index=number, num_shards=files)
        with tf.io.TFRecordWriter(str(file)) as writer:
            for record in part:
                example = {**dataclasses.asdict(record), "checkpoint": checkpoint}
                del example["rejected_by"]
                serialized = features.serialize_example(features.encode_example(example))
                # A protocol buffer's map has another order in every process unless told.
                parsed = tf.train.Example.FromString(serialized)
                serialized = parsed.SerializeToString(deterministic=True)
                writer.write(serialized)
                size += len(serialized)
        lengths.append(len(part))
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features,
        split_infos=[
            tfds.core.SplitInfo(
                name=SPLIT, shard_lengths=lengths, num_bytes=size, filename_template=template
            )
        ],
        check_data=False,
        description="Documents that a synthesizer wrote, each from a seed document.",
    )
