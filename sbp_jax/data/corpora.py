"""What corpora share on their way to a SeqIO task: splits by hash, preprocessors, registering.

It lies here and not beside them in `tasks/`, so that the hash of a stage's code holds it. Gin loads
this module in every stage, so SeqIO is imported where it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sbp_jax.data import formats
from sbp_jax.errors import UserError
from sbp_jax.text.splits import draw

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf

    from sbp_jax.data.files import FilesSource


@dataclasses.dataclass(frozen=True)
class Streamed:
    """Documents in files that are read as a stream, and how they are dealt to splits.

    Attributes:
      setting: where the user says where they lie, e.g. `dclm.files`.
      place: a folder, file or glob, local or in a bucket.
      schema: what of a record makes a document.
      suffixes: of the files that are read.
      heldout_share: of the documents, to `heldout`; none when it is 0.
      dev_share: of the documents, to `dev`.
      settings: what decides the examples beside all this, for the fingerprint.
    """

    setting: str
    place: str
    schema: formats.Schema = dataclasses.field(default_factory=formats.Schema)
    suffixes: Sequence[str] = formats.TEXT + formats.LINES + formats.PARQUET
    heldout_share: float = 0.0
    dev_share: float = 0.0
    settings: tuple[Any, ...] = ()

    def __post_init__(self):
        if self.schema.max_bytes < 1:
            name = self.setting.partition(".")[0]
            raise UserError(f"{name}.max_bytes = {self.schema.max_bytes} must be at least 1")

    def split(self, text: str) -> str:
        """Where a document belongs: `heldout`, `dev` or `train`, by its text alone.

        Not by its id: the same text is then on one side however often it is there, and on the
        same one in a larger corpus, or read from another folder.
        """
        drawn = draw("split", text)
        if drawn < self.heldout_share:
            return "heldout"
        return "dev" if drawn < self.heldout_share + self.dev_share else "train"


def check_shares(name: str, heldout_share: float, dev_share: float) -> None:
    """Shares of both splits must be there, and leave something to train on.

    Raises:
      UserError: they do not.
    """
    if min(heldout_share, dev_share) <= 0 or heldout_share + dev_share >= 1:
        raise UserError(
            f"{name}: heldout_share {heldout_share} and dev_share {dev_share} must be above 0 and "
            "leave something to train on"
        )


def from_files(corpus: Streamed, split: str | None = None) -> FilesSource:
    """The documents of a split, or all, as a source whose only split is `train`.

    What cannot be used goes with `train`, or with all.

    Raises:
      UserError: no file is there.
    """
    from sbp_jax.data.files import FEATURES, FilesSource

    schema = corpus.schema

    def read(file: formats.File) -> Iterator[dict[str, str]]:
        for example in formats.read(file, schema):
            belongs = "train" if example["rejected"] else corpus.split(example["text"])
            if split in (None, belongs):
                yield example

    settings = [
        *(getattr(schema, key) for key in ("text", "id", "fields", "max_bytes")),
        *(split, corpus.heldout_share, corpus.dev_share, *corpus.settings),
    ]
    return FilesSource(
        formats.find(corpus.place, corpus.setting, corpus.suffixes),
        read,
        features=(*FEATURES, *schema.fields),
        settings=settings,
    )


def from_memory(
    features: Sequence[str],
    examples: Callable[[], Iterable[Mapping[str, str]]],
    count: int | None,
    fingerprint: str,
) -> seqio.DataSource:
    """Examples that are at hand, as a source whose only split is `train`.

    Args:
      features: of each of them.
      examples: gives them anew.
      count: of them; None if that is not known before.
      fingerprint: changes with any of them.
    """
    import seqio
    import tensorflow as tf

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del split, shuffle_files, seed
        return tf.data.Dataset.from_generator(
            examples, output_signature=dict.fromkeys(features, tf.TensorSpec([], tf.string))
        )

    source = seqio.FunctionDataSource(
        dataset_fn,
        splits=["train"],
        num_input_examples=None if count is None else {"train": count},
    )
    source.fingerprint = fingerprint
    return source


def from_tfds(text: str = "text", named_by: str | None = None) -> Callable:
    """A preprocessor: from an example of `PreparedSource` to `id`, `text` and `rejected`.

    Args:
      text: the feature that holds the text.
      named_by: the feature that names a document. Its place in the data set follows, which makes
        the id unique: `https://… train:00012:54`.
    """
    import tensorflow as tf

    def document(example):
        place = tf.strings.regex_replace(
            example["tfds_id"], r"^.*-(\w+)\.\w+-(\d+)-of-\d+__", r"\1:\2:"
        )
        empty = tf.strings.length(tf.strings.strip(example[text])) == 0
        return {
            "id": tf.strings.join([example[named_by], place], " ") if named_by else place,
            "text": tf.where(empty, "", example[text]),
            "rejected": tf.where(empty, "empty", ""),
        }

    return lambda dataset: dataset.map(document)


def register(
    name: str,
    source: seqio.DataSource,
    vocabulary: seqio.Vocabulary,
    preprocessors: Sequence[Callable],
    inputs: bool = False,
) -> seqio.Task:
    """Registers a task, replacing an older of its name; its last step is tokenising.

    Args:
      name: of the task.
      source: of its examples.
      vocabulary: of the run.
      preprocessors: end with the text `targets`, and `inputs` if there are any.
      inputs: whether the loss is on `targets` alone, which follow `inputs`.
    """
    import seqio

    features = {"targets": seqio.Feature(vocabulary, add_eos=True)}
    if inputs:
        features["inputs"] = seqio.Feature(vocabulary, add_eos=False)
    seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[*preprocessors, seqio.preprocessors.tokenize],
        output_features=features,
    )


def text_to_targets(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Renames `text` to `targets`, what SeqIO tokenises; all else stays."""
    return dataset.map(
        lambda example: {
            "targets" if key == "text" else key: value for key, value in example.items()
        }
    )
