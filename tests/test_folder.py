"""A corpus of the user's own files: read whole, split without tearing near-duplicates."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import gin
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


def test_what_cannot_be_used_is_counted_in_train_alone(directory, monkeypatch):
    before = read(directory)
    (directory / "latin.txt").write_bytes("ärger".encode("latin-1"))
    (directory / "a.jsonl").write_bytes(b'{"text": "fine"}\n{"txt": 1}\n{"text": 7}\nno\n[1]\n')
    folder._read.cache_clear()
    corpus = read(directory)
    assert corpus.rejected == [
        ("a.jsonl:2", "no text under 'text'"),
        ("a.jsonl:3", "text is not a string"),
        ("a.jsonl:4", "not JSON"),
        ("a.jsonl:5", "not a JSON object"),
        ("latin.txt", "not UTF-8"),
    ]
    assert sum(map(len, corpus.documents.values())) == 64 + 1
    assert corpus.fingerprint != before.fingerprint
    monkeypatch.setattr(folder, "folder", lambda: corpus)
    for split in ("train", "dev", "heldout"):
        task = getattr(folder, split)(seqio.ByteVocabulary())
        examples = list(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
        assert len(examples) == task.num_input_examples("train")
        found = [(e["id"].decode(), e["rejected"].decode()) for e in examples if e["rejected"]]
        assert found == (corpus.rejected if split == "train" else [])
        assert all(e["targets_pretokenized"] == b"" for e in examples if e["rejected"])


def test_two_documents_of_one_id_are_refused(directory):
    (directory / "a.jsonl").write_text('{"text": "x", "id": "mine3"}')
    with pytest.raises(UserError, match=r"two documents of .* have the id 'mine3'"):
        read(directory)


def test_a_stream_has_every_document_in_one_split_whatever_else_is_there(directory, monkeypatch):
    def dealt():
        found = {}
        for split in ("train", "dev", "heldout"):
            task = getattr(folder, split)(seqio.ByteVocabulary())
            assert task.num_input_examples("train") is None
            for example in task.get_dataset(None, "train", shuffle=False).as_numpy_iterator():
                name = example["id"].decode()
                assert name not in found
                text = example["targets_pretokenized"].decode()
                found[name] = (split, text, example["rejected"].decode())
        return found

    monkeypatch.setattr(folder, "deal", lambda *_, **__: pytest.fail("held in memory"))
    settings = {"near_duplicates": False, "heldout_share": 0.3, "dev_share": 0.2}
    for name, value in {**settings, "directory": os.fspath(directory)}.items():
        gin.bind_parameter(f"folder.{name}", value)
    before = dealt()
    assert len(before) == 64
    assert before["mine3"][1] == text(103)
    counts = [sum(split == name for split, *_ in before.values()) for name in ("heldout", "dev")]
    assert 10 <= counts[0] <= 30
    assert 5 <= counts[1] <= 22
    (directory / "0a.jsonl").write_text('{"text": "new"}\n{"no": 1}\n')
    after = dealt()
    assert {name: after[name] for name in before} == before
    assert after["0a.jsonl:2"] == ("train", "", "no text under 'text'")
    # Equal texts are on one side, and on the same one when read from elsewhere.
    (directory / "again").mkdir()
    lines = [{"text": found, "id": f"again {name}"} for name, (_, found, _) in before.items()]
    (directory / "again" / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    again = dealt()
    assert all(again[name][0] == again[f"again {name}"][0] for name in before)
    gin.bind_parameter("folder.directory", os.fspath(directory / "again"))
    assert dealt() == {f"again {name}": found for name, found in before.items()}


def test_mistakes_are_named(directory, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    for wrong, changes, message in (
        (directory / "none", {}, "is no folder"),
        (empty, {}, "holds no file that ends in"),
        (directory, {"heldout_share": 0.0}, "must be above 0"),
        (directory, {"threshold": 0.0}, "threshold"),
        (directory, {"dev_share": 1e-9}, "none fell to dev"),
        (directory, {"max_bytes": 0}, "folder.max_bytes = 0"),
        (directory, {"max_bytes": 5}, r"of the 0 documents of .* \(64 more .*longer than 5 bytes"),
    ):
        with pytest.raises(UserError, match=message):
            read(wrong, **changes)


def test_gin_can_load_it_where_there_is_no_tensorflow():
    code = "import sys, tasks.folder; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
