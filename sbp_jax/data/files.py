"""Files as a SeqIO source: any shard of a corpus, in order, in flat memory, and no loss unsaid.

What cannot be used comes as an example too, with the reason in `rejected`, so that whoever caches
counts and names it. What `formats` refuses is kept in `failure`, since tf.data wraps exceptions of
Python into its own.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from sbp_jax.data.formats import File

# Small enough to spread over workers, large enough that a million small files are few shards.
SHARD_BYTES = 64 * 10**6
BLOCK = 256  # examples, and bytes of them, that are handed to TensorFlow at once
BLOCK_BYTES = 2**20
FEATURES = ("id", "text", "rejected")


class FilesSource(seqio.DataSource):
    """Examples that a function reads from files; the only split is `train`.

    Its shards are files, or runs of small ones, and parts of the corpus are runs of shards, so that
    all parts after one another are the corpus in its order. Of more parts than it has shards SeqIO
    gives each every n-th example.

    Attributes:
      failure: what stopped the last reading, or None.
      fingerprint: 16 hex digits that change when a file's name, size or time of change does, or
        what was given as settings.
    """

    def __init__(
        self,
        files: Sequence[File],
        read: Callable[[File], Iterator[Mapping[str, str]]],
        *,
        features: Sequence[str] = FEATURES,
        settings: Sequence[Any] = (),
        shard_bytes: int = SHARD_BYTES,
    ):
        """A source over files.

        Args:
          files: in the order of the corpus.
          read: gives a file's examples, whose features are all text.
          features: their names.
          settings: what else decides the examples, for the fingerprint; must go into JSON.
          shard_bytes: files are put together up to this size.
        """
        # How many examples there are is not known before all has been read: SeqIO then takes None.
        super().__init__(splits=("train",))
        self.failure: BaseException | None = None
        self._read = read
        self._features = tuple(features)
        self._shards = shards(files, shard_bytes)
        listing = [[file.name, file.size, file.modified] for file in files]
        record = json.dumps([listing, list(settings)])
        self.fingerprint = hashlib.sha256(record.encode()).hexdigest()[:16]

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> list[str]:
        """Names of the shards: their file, or the first and the last of several."""
        self._check(split)
        return [
            part[0].name if len(part) == 1 else f"{part[0].name} … {part[-1].name}"
            for part in self._shards
        ]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused,
    ) -> tf.data.Dataset:
        """The examples of a shard.

        Args:
          split: `train`.
          shuffle: whether shards are read in another order; the examples of one stay in theirs.
          seed: for that order.
          shard_info: which of how many shards; None for the whole.
        """
        del unused  # those of other providers, which SeqIO passes to none of its sources
        self._check(split)
        count = len(self._shards)
        index, of = (shard_info.index, shard_info.num_shards) if shard_info else (0, 1)
        chosen = self._shards[index * count // of : (index + 1) * count // of]
        if shuffle:
            chosen = random.Random(None if seed is None else int(seed)).sample(chosen, len(chosen))
        text = tf.TensorSpec([None], tf.string)
        return tf.data.Dataset.from_generator(
            lambda: self._blocks(chosen), output_signature=dict.fromkeys(self._features, text)
        ).unbatch()

    def _blocks(self, chosen: Sequence[Sequence[File]]) -> Iterator[dict[str, list[bytes]]]:
        """Some examples at once: one by one TensorFlow takes half a millisecond for each."""
        self.failure = None
        block: dict[str, list[bytes]] = {name: [] for name in self._features}
        count = size = 0
        try:
            for example in (one for part in chosen for file in part for one in self._read(file)):
                for name, values in block.items():
                    values.append(example[name].encode())
                    size += len(values[-1])
                count += 1
                if count == BLOCK or size >= BLOCK_BYTES:
                    yield block
                    block = {name: [] for name in self._features}
                    count = size = 0
            yield block
        except Exception as error:
            self.failure = error
            raise

    def _check(self, split: str) -> None:
        if split not in self.splits:
            raise ValueError(f"there is no split {split!r}: expected one of {self.splits}")


def shards(files: Sequence[File], shard_bytes: int) -> list[list[File]]:
    """Runs of files of at most so many bytes, or of one larger file, in the files' order."""
    found: list[list[File]] = []
    total = 0
    for file in files:
        if not found or total + file.size > shard_bytes:
            found.append([])
            total = 0
        found[-1].append(file)
        total += file.size
    return found
