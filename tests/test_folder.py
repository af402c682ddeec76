"""A corpus of the user's own files: read whole, split without tearing near-duplicates."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest
import seqio

from sbp_jax.data import tasks as task_registry
from sbp_jax.errors import UserError
from tasks import folder

WORDS = [a + b for a in "bcdfgklm" for b in ("ora", "ine", "ust", "elo")]


def text(seed: int, size: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=size))


@pytest.fixture
def directory(tmp_path):
    """40 files, one of them with 10 lines of documents; every third file has a near-duplicate."""
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    for i in range(40):
        place = tmp_path / ("deep/deeper" if i % 2 else "")
        (place / f"{i}.{'md' if i % 4 else 'txt'}").write_text(text(i))
        if i % 3 == 0:
            (tmp_path / f"copy_of_{i}.txt").write_text(text(i) + " and a little more")
    lines = [{"text": text(100 + i), "id": f"mine{i}"} for i in range(9)] + [{"text": text(109)}]
    (tmp_path / "deep" / "more.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    (tmp_path / "ignored.pdf").write_bytes(b"\xff\x00")
    return tmp_path


def read(directory, **changes) -> folder.Corpus:
    options = {"heldout_share": 0.3, "dev_share": 0.2}
    return folder.folder(directory=os.fspath(directory), **{**options, **changes})


def test_every_document_is_in_one_split_and_copies_stay_together(directory):
    corpus = read(directory)
    where = {name: split for split, found in corpus.documents.items() for name, _ in found}
    assert sum(map(len, corpus.documents.values())) == len(where) == 40 + 14 + 10
    assert {"mine3", "deep/more.jsonl:10", "deep/deeper/1.md"} <= set(where)
    for i in range(0, 40, 3):
        original = f"deep/deeper/{i}.md" if i % 2 else f"{i}.{'md' if i % 4 else 'txt'}"
        assert where[original] == where[f"copy_of_{i}.txt"]
    texts = {name: t for found in corpus.documents.values() for name, t in found}
    assert texts["mine3"] == text(103)


def test_a_changed_letter_changes_the_fingerprint(directory):
    before = read(directory).fingerprint
    folder._read.cache_clear()
    assert read(directory).fingerprint == before
    (directory / "0.txt").write_text(text(0) + ".")
    folder._read.cache_clear()
    assert read(directory).fingerprint != before


def test_seqio_reads_a_split(directory, monkeypatch):
    corpus = read(directory)
    monkeypatch.setattr(folder, "folder", lambda: corpus)
    task = folder.heldout(seqio.ByteVocabulary())
    examples = list(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
    found = [(e["id"].decode(), e["targets_pretokenized"].decode()) for e in examples]
    assert found == corpus.documents["heldout"]
    assert task_registry.fingerprint(task)["content"] == corpus.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", "ärger".encode("latin-1"), r"latin.txt is not UTF-8 \(byte 0\)"),
        ("a.jsonl", b'{"text": "fine"}\n{"txt": 1}', "a.jsonl, line 2: expected a JSON object"),
        ("a.jsonl", b'{"text": 7}', "line 1"),
        ("a.jsonl", b"[1]", "line 1"),
        ("a.jsonl", b'{"text": "x", "id": "mine3"}', "two documents of .* have the id 'mine3'"),
    ],
)
def test_a_bad_file_is_named(directory, name, content, message):
    (directory / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(directory)


def test_mistakes_are_named(directory, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for wrong, changes, message in (
        (directory / "none", {}, "is no folder"),
        (empty, {}, "holds no file that ends in"),
        (directory, {"heldout_share": 0.0}, "must be above 0"),
        (directory, {"threshold": 0.0}, "threshold"),
        (directory, {"dev_share": 1e-9}, "none fell to dev"),
    ):
        with pytest.raises(UserError, match=message):
            read(wrong, **changes)


def test_gin_can_load_it_where_there_is_no_tensorflow():
    code = "import sys, tasks.folder; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
