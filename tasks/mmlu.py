"""MMLU: multiple-choice questions of 57 subjects, as SeqIO tasks on the right answer's text.

What: `inputs` is a question with its four choices and "Answer:", `targets` the text of the right
one, so that the loss is on the answer alone, with `cache.join = ' '` for `sbp cache`. A question
is a row of a CSV file without header: question, A, B, C, D, letter of the answer.
Source: https://people.eecs.berkeley.edu/~hendrycks/data.tar; Hendrycks et al. 2021, arXiv
2009.03300.
Licence: MIT.
Size: 14,042 questions in `test`, some 1,500 in `val`, 285 in `dev`; 160 MB.
Prepare: `curl -O https://people.eecs.berkeley.edu/~hendrycks/data.tar && tar xf data.tar`, then in
gin, after `import tasks.mmlu`, `mmlu.directory = 'data'`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import gin

from sbp_jax.data import corpora, formats
from sbp_jax.errors import UserError
from sbp_jax.settings import configurable

if TYPE_CHECKING:
    import seqio  # imported where it is used: gin loads this module in every stage

LETTERS = "ABCD"
FEATURES = ("id", "subject", "inputs", "targets", "rejected")


@configurable
def mmlu(*, directory: str = gin.REQUIRED) -> str:
    """The unpacked release: a folder with `dev/`, `val/` and `test/`, local or `gs://`."""
    return directory


def _task(split: str, folder: str, vocabulary: seqio.Vocabulary) -> seqio.Task:
    from sbp_jax.data.files import FilesSource

    files = formats.find(f"{mmlu()}/{folder}", "mmlu.directory", (f"_{folder}.csv",))
    source = FilesSource(files, questions, features=FEATURES)
    return corpora.register(f"mmlu_{split}", source, vocabulary, [], inputs=True)


def test(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For the final score."""
    return _task("test", "test", vocabulary)


def validation(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """For choosing settings."""
    return _task("validation", "val", vocabulary)


def dev(vocabulary: seqio.Vocabulary) -> seqio.Task:
    """Five questions a subject, which others show a model as examples."""
    return _task("dev", "dev", vocabulary)


def questions(file: formats.File) -> Iterator[dict[str, str]]:
    """The questions of a CSV file; the id is `file:row`, from 1.

    Raises:
      UserError: it is no CSV file.
    """
    subject = file.name.rpartition("/")[2].rpartition("_")[0]
    with formats.opened(file) as stream:
        # Bytes that are no UTF-8 spoil their own row and no other.
        lines = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(lines, strict=True)
        try:
            for number, row in enumerate(reader, start=1):
                found = {"id": f"{file.name}:{number}", "subject": subject}
                reason = _unusable(row)
                if reason:
                    yield {**found, "inputs": "", "targets": "", "rejected": reason}
                    continue
                question, *choices, letter = (field.strip() for field in row)
                options = [f"{a}. {b}" for a, b in zip(LETTERS, choices, strict=True)]
                yield {
                    **found,
                    "inputs": "\n".join([question, *options, "Answer:"]),
                    "targets": choices[LETTERS.index(letter)],
                    "rejected": "",
                }
        except csv.Error as error:
            raise UserError(
                f"{file.path}, line {reader.line_num}: {error}: expected CSV as MMLU's release has "
                "it, so unpack it again"
            ) from error


def _unusable(row: list[str]) -> str:
    if len(row) != 6:
        return "not six columns"
    try:
        "".join(row).encode()
    except UnicodeEncodeError:
        return "not UTF-8"
    if row[-1] not in tuple(LETTERS):
        return "the answer is not A, B, C or D"
    return "" if all(field.strip() for field in row) else "empty"
