"""TFDS data sets that lie prepared: never a download in the middle of a stage, and unique ids."""

from __future__ import annotations

import os

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from sbp_jax.errors import UserError


class PreparedSource(seqio.TfdsDataSource):
    """SeqIO's source of a TFDS data set, whose examples have their place as `tfds_id` too.

    The only split is `train`. The place (`c4-train.tfrecord-00012-of-01024__54`) is the same for
    any slice and any shard.
    """

    def __init__(self, name: str, data_dir: str | None = None, split: str = "train"):
        """A source over a data set that lies on disk or in a bucket.

        Args:
          name: of the data set with its configuration, and a version if not the newest:
            `c4/en:3.1.0`.
          data_dir: where it lies; None for where TFDS keeps its data sets (`TFDS_DATA_DIR`).
          split: of the data set, or a slice of one, `train[1%:]`.

        Raises:
          UserError: it does not lie there, or has no such split.
        """
        where = data_dir or os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR
        try:
            builder = tfds.builder(name, data_dir=where)
        except (ValueError, AssertionError) as error:
            raise UserError(
                f"TFDS knows no data set {name!r} and none lies in {where}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        if not builder.is_prepared():
            raise UserError(
                f"the TFDS data set {builder.info.full_name} does not lie prepared in {where}: "
                f"name its data_dir or its version, or prepare it there with `tfds build {name}`"
            )
        try:
            builder.info.splits[split]
        except (KeyError, ValueError) as error:
            raise UserError(
                f"the TFDS data set {name} has no split {split!r}: it has "
                f"{', '.join(builder.info.splits)}"
            ) from error
        directory = os.fspath(builder.data_path)  # a name would have to hold the version
        super().__init__(tfds_data_dir=directory, splits={"train": split}, read_only=True)
        self._slice = split

    def get_dataset(
        self,
        split: str | None = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused,
    ) -> tf.data.Dataset:
        """The examples of a shard, with `tfds_id`; as SeqIO's otherwise."""
        del split, unused
        config = tfds.ReadConfig(add_tfds_id=True, shuffle_seed=seed, skip_prefetch=True)
        if shard_info:
            config.input_context = tf.distribute.InputContext(
                num_input_pipelines=shard_info.num_shards, input_pipeline_id=shard_info.index
            )
        return self.tfds_dataset.builder.as_dataset(
            split=self._slice, shuffle_files=shuffle, read_config=config
        )
