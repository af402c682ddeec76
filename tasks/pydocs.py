"""pydocs: documentation that every installation already carries, as SeqIO tasks.

What: the docstrings, of 400 characters or more, of Python's standard library and of the packages
that this project depends on (numpy, scipy, jax, tensorflow, keras, …): some 21,000 documents and
28 MB of English prose about related things. They are real documents with real relations
(`numpy.cumsum`, `jax.numpy.cumsum`, `tf.math.cumsum`) and real near-duplicates.
Source: the installed files, read with `ast`; nothing is downloaded, nothing is imported.
Licence: each package's own, mostly BSD, Apache-2.0 or the PSF licence. The text stays on this
machine; look at those licences before passing a prepared data set on.
Prepare: `python -m tasks.pydocs` (half a minute on two cores; the tasks do it when they must)
prints the size of each split. It lies where TFDS keeps its data sets (`TFDS_DATA_DIR`), under a
name that hashes Python, all packages with their versions and files, the settings and this code:
another environment gives another data set.

With `Settings.text = 'functions'` documents are functions by their source (tasks/pyfunctions.py).

Splits: `oracle` is the full pool, `train` (D_pretrain) a small share of the oracle's documents,
`dev` and `heldout` are neither. Near-duplicates (containment of 13-word shingles, taken
transitively) always fall on the same side.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import inspect
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

import seqio
import tensorflow_datasets as tfds
from absl import logging

from sbp_jax.errors import UserError
from sbp_jax.text import near_duplicates, shingles, splits
from tasks import installed
from tasks.installed import TEXTS, Document, Wanted

SPLITS = ("train", "oracle", "dev", "heldout")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the documents and their splits, beside the environment.

    Attributes:
      text: `docstrings` or `functions`, which are documents here too, by their source.
      min_characters: the shortest document.
      max_characters: the longest.
      package: the only one whose files are read, as on the package index; "" for all.
      threshold: containment of 13-word shingles from which two documents are near-duplicates.
      heldout_share: of the clusters, to `heldout`; each share must be enough for a document.
      dev_share: of the clusters, to `dev`.
      train_share: of the oracle's documents, to `train`. A larger share holds a smaller one.
      project: the distribution whose requirements are read.
    """

    text: str = "docstrings"
    min_characters: int = 400
    max_characters: int = 1_000_000
    package: str = ""
    threshold: float = 0.5
    heldout_share: float = 0.03
    dev_share: float = 0.01
    train_share: float = 0.008
    project: str = installed.PROJECT

    def __post_init__(self):
        if self.text not in TEXTS:
            raise UserError(f"pydocs: text {self.text!r}: expected one of {', '.join(TEXTS)}")
        if self.min_characters > self.max_characters:
            raise UserError(
                f"pydocs: no document has at least {self.min_characters} and at most "
                f"{self.max_characters} characters"
            )
        shares = (self.heldout_share, self.dev_share, self.train_share)
        if min(shares) < 0 or self.heldout_share + self.dev_share >= 1 or self.train_share > 1:
            raise UserError(
                f"pydocs: shares of heldout {self.heldout_share}, dev {self.dev_share} and train "
                f"{self.train_share} must be from 0 to 1 and leave something for the oracle"
            )
        if not 0 < self.threshold <= 1:
            raise UserError(f"pydocs: threshold {self.threshold} must be above 0 and at most 1")


@dataclasses.dataclass(eq=False)
class PydocsConfig(tfds.core.BuilderConfig):
    """TFDS' view of `Settings`; its name is the fingerprint of settings, environment and code."""

    settings: Settings = dataclasses.field(default_factory=Settings)


class Pydocs(tfds.core.GeneratorBasedBuilder):
    """The corpus as a TFDS data set, with features id, text, name and package (all text)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 - TFDS' own convention

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Docstrings of the standard library and of installed packages.",
            features=tfds.features.FeaturesDict(
                {name: tfds.features.Text() for name in ("id", "text", "name", "package")}
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager  # nothing is downloaded
        settings = self.builder_config.settings
        wanted = Wanted(
            settings.text, settings.min_characters, settings.max_characters, settings.package
        )
        documents = installed.documents(wanted, settings.project)
        if not documents:
            raise UserError(
                f"pydocs: none of the {wanted.text} of what {settings.project} requires has "
                f"{wanted.min_characters:,} to {wanted.max_characters:,} characters"
            )
        dealt = split(documents, settings)
        if empty := [name for name in SPLITS if not dealt[name]]:
            raise UserError(
                f"pydocs: of {len(documents):,} documents none fell to {', '.join(empty)}: "
                "make its share larger, or min_characters smaller"
            )
        return {name: self._generate_examples(dealt[name]) for name in SPLITS}

    def _generate_examples(self, documents: Sequence[Document]):
        for document in documents:
            yield document.id, dataclasses.asdict(document)


def split(
    documents: Sequence[Document], settings: Settings | None = None
) -> dict[str, list[Document]]:
    """Deals documents to the splits, near-duplicates to the same; see `splits.deal`.

    No document of `dev` or `heldout` has a near-duplicate in any other split; `oracle` holds
    `train`.
    """
    settings = settings or Settings()
    dealt = splits.deal(
        [document.id for document in documents],
        [document.text for document in documents],
        heldout_share=settings.heldout_share,
        dev_share=settings.dev_share,
        threshold=settings.threshold,
    )
    found: dict[str, list[Document]] = {name: [] for name in SPLITS}
    for document, name in zip(documents, dealt, strict=True):
        if name != "train":
            found[name].append(document)
            continue
        found["oracle"].append(document)
        if splits.draw("train", document.id) < settings.train_share:
            found["train"].append(document)
    return found


def near_duplicates_across_splits(
    members: Mapping[str, Sequence[Document]], threshold: float
) -> int:
    """How many documents of `dev` or `heldout` have a near-duplicate in another split.

    Args:
      members: documents by the name of their split; names other than dev and heldout are training
        text.
      threshold: containment of 13-word shingles that makes a near-duplicate.
    """
    documents = [(name, d) for name, found in members.items() for d in found]
    sets = [shingles.shingles(document.text) for _, document in documents]
    found: set[int] = set()
    for i, j, _ in near_duplicates.near_duplicate_pairs(sets, threshold):
        if documents[i][0] != documents[j][0]:
            found.update(k for k in (i, j) if documents[k][0] in ("dev", "heldout"))
    return len(found)


def builder(settings: Settings | None = None) -> tfds.core.DatasetBuilder:
    """The data set of this environment, prepared if it is not there yet.

    Raises:
      UserError: the project's own metadata is not installed, or there are no documents.
    """
    settings = settings or Settings()
    made = _builder(settings)
    if made.is_prepared():
        return made
    logging.info("pydocs: reading the documentation of installed packages into %s", made.data_path)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download
            made.download_and_prepare()
    except OSError:
        # Another process may have prepared the same data set meanwhile, and renamed first.
        made = _builder(settings)
        if not made.is_prepared():
            raise
    return made


def _builder(settings: Settings) -> Pydocs:
    """The data set, prepared or not."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    config = PydocsConfig(name=fingerprint(settings), settings=settings)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of every configuration made at run time
    try:
        return Pydocs(data_dir=os.environ.get("TFDS_DATA_DIR"), config=config)
    finally:
        logging.set_verbosity(verbosity)


def fingerprint(settings: Settings) -> str:
    """16 hex digits of everything that decides the data set: environment, settings and code."""
    record = hashlib.sha256(installed.fingerprint(settings.project).encode())
    record.update(repr(settings).encode())
    for module in (installed, near_duplicates, shingles, splits, sys.modules[__name__]):
        record.update(inspect.getsource(module).encode())
    return record.hexdigest()[:16]


def documents(name: str, settings: Settings | None = None) -> Iterator[Document]:
    """The documents of a split, in the order of the data set."""
    for example in tfds.as_numpy(builder(settings).as_dataset(split=name)):
        yield Document(**{key: value.decode() for key, value in example.items()})


def register(
    name: str, tfds_split: str, vocabulary: seqio.Vocabulary, settings: Settings | None = None
) -> seqio.Task:
    """Registers a SeqIO task over a split or a slice of one (`oracle[:10%]`), replacing an older.

    The task's only split is `train`. Its examples hold `targets` (int32 [tokens], without EOS),
    and as text `targets_pretokenized`, `id`, `name` and `package`.
    """
    directory = os.fspath(builder(settings).data_path)
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(
        name,
        source=seqio.TfdsDataSource(
            tfds_data_dir=directory, splits={"train": tfds_split}, read_only=True
        ),
        preprocessors=[_text_to_targets, seqio.preprocessors.tokenize],
        output_features={"targets": seqio.Feature(vocabulary, add_eos=True)},
    )


def train(vocabulary: seqio.Vocabulary, settings: Settings | None = None) -> seqio.Task:
    """D_pretrain: a small share of the oracle's documents."""
    return register("pydocs_train", "train", vocabulary, settings)


def oracle(vocabulary: seqio.Vocabulary, settings: Settings | None = None) -> seqio.Task:
    """The full pool, D_pretrain included."""
    return register("pydocs_oracle", "oracle", vocabulary, settings)


def dev(vocabulary: seqio.Vocabulary, settings: Settings | None = None) -> seqio.Task:
    """For choosing settings; no near-duplicate of it is in another split."""
    return register("pydocs_dev", "dev", vocabulary, settings)


def heldout(vocabulary: seqio.Vocabulary, settings: Settings | None = None) -> seqio.Task:
    """For the final score; no near-duplicate of it is in another split."""
    return register("pydocs_heldout", "heldout", vocabulary, settings)


@seqio.map_over_dataset
def _text_to_targets(example):
    return {"targets": example["text"], **{key: example[key] for key in ("id", "name", "package")}}


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares the data set and prints the size of each split."""
    parser = argparse.ArgumentParser(prog="python -m tasks.pydocs", description=__doc__)
    for field in dataclasses.fields(Settings):
        parser.add_argument(
            f"--{field.name}", type=type(field.default), default=field.default, help="%(default)s"
        )
    settings = Settings(**vars(parser.parse_args(argv)))
    print(builder(settings).data_path)
    for name in SPLITS:
        found = list(documents(name, settings))
        size = sum(len(document.text.encode()) for document in found)
        packages = collections.Counter(document.package for document in found).most_common(4)
        largest = ", ".join(f"{package} {count:,}" for package, count in packages)
        print(f"{name:8} {len(found):7,} documents {size / 1e6:8.3f} MB  ({largest}, …)")


if __name__ == "__main__":
    main()
