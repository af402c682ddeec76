"""The corpus as a TFDS dataset: a folder that `tfds.builder_from_directory` and SeqIO read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from sbp_jax.errors import UserError
from sbp_jax.synthesize.shards import Record

NAME = "synthetic"
SPLIT = "train"
RECORDS_PER_FILE = 100_000

# TensorFlow reads and writes here; the accelerators are JAX's.
for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)


class Feature(NamedTuple):
    """What a feature of a document is: its type, and in words."""

    dtype: tf.DType
    description: str


FEATURES = {
    "id": Feature(tf.string, "of the document: its seed's id and the sample's index"),
    "text": Feature(tf.string, "the document"),
    "seed_id": Feature(tf.string, "id of the document that it was written from"),
    "sample_index": Feature(tf.int64, "which of that seed's samples it is, from 0"),
    "key": Feature(tf.string, "data of its random key, hexadecimal"),
    "checkpoint": Feature(tf.string, "hash of the synthesizer's checkpoint"),
    "finish_reason": Feature(tf.string, "`stop` at its end, `length` where it was cut"),
    "tokens": Feature(tf.int64, "how many were sampled, its end among them"),
    "mean_log_probability": Feature(tf.float32, "nats per token under the synthesizer"),
    "repetition": Feature(tf.float32, "share of 4-word runs that repeat earlier ones"),
    "compression": Feature(tf.float32, "bytes of the text over those when compressed"),
    "language": Feature(tf.string, "code of the most probable one; empty if not looked at"),
    "seed_copy": Feature(tf.float32, "containment of 13-word runs with the seed"),
    "corpus_copy": Feature(
        tf.float32,
        "largest containment with a document of the seeds' corpus; no number if not looked at",
    ),
}
_REJECTS_ONLY = ("rejected_by", "alike")


def write(directory: epath.Path, records: Sequence[Record], checkpoint: str) -> None:
    """Writes TFRecord files and the metadata that make `directory` a TFDS dataset.

    Args:
      directory: gets the files.
      records: those that were kept, in order.
      checkpoint: hash of the synthesizer's parameters, a feature of every document.
    """
    features = tfds.features.FeaturesDict(
        {
            name: (
                tfds.features.Text()
                if feature.dtype == tf.string
                else tfds.features.Scalar(feature.dtype)
            )
            for name, feature in FEATURES.items()
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
                for name in _REJECTS_ONLY:
                    del example[name]
                if example["corpus_copy"] is None:
                    example["corpus_copy"] = math.nan
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


def read(directory: epath.Path, fields: Collection[str] = tuple(FEATURES)) -> Iterator[dict]:
    """The documents in their order: of each the fields by name, as Python's own values.

    Args:
      directory: of the artefact.
      fields: names of features.

    Raises:
      UserError: (when the first is read) it is no dataset that `write` wrote, or lacks a field.
    """
    try:
        builder = tfds.builder_from_directory(str(directory))
        dataset = builder.as_dataset(
            split=SPLIT,
            shuffle_files=False,
            # One file after the other, or the order would be another.
            read_config=tfds.ReadConfig(interleave_cycle_length=1),
        )
    except (tfds.core.DatasetNotFoundError, FileNotFoundError, ValueError) as error:
        raise UserError(
            f"{directory} is no TFDS dataset with a split `{SPLIT}` "
            f"({str(error).splitlines()[0]}): delete it and run sbp synthesize again"
        ) from error
    if missing := set(fields) - set(builder.info.features or {}):
        raise UserError(
            f"{directory} lacks the features {', '.join(sorted(missing))}: "
            "delete it and run sbp synthesize again"
        )
    for example in tfds.as_numpy(dataset):
        yield {name: _python(example[name]) for name in fields}


def _python(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value.item()
