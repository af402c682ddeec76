"""Artefacts: whole or not at all, found finished, refused when different, followed back."""

from __future__ import annotations

import json
import os
import pathlib
import re

import pytest
from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import UserError


def begin(directory, scope="stage", *, config=None, inputs=None, **options):
    return artifacts.begin(
        artifacts.Run(epath.Path(directory), scope),
        "cache",
        config={"length": 8} if config is None else config,
        inputs=inputs or {},
        code=("sbp_jax.errors",),
        **options,
    )


def make(directory, scope="stage", text="content", **options):
    stage = begin(directory, scope, **options)
    if not stage.finished:
        (stage.work / "file").write_text(text)
        stage.commit({"rows": len(text)})
    return directory / scope


def test_it_is_there_only_when_it_is_finished(tmp_path):
    stage = begin(tmp_path)
    (stage.work / "file").write_text("half")
    assert not artifacts.is_finished(tmp_path / "stage")
    with pytest.raises(UserError, match="interrupted: run that again first"):
        artifacts.read_manifest(tmp_path / "stage")
    stage.commit({"rows": 1})
    assert (tmp_path / "stage/file").read_text() == "half"
    assert not (tmp_path / "stage.partial").exists()
    manifest = artifacts.read_manifest(tmp_path / "stage")
    assert (manifest.counts, manifest.stage, manifest.scope) == ({"rows": 1}, "cache", "stage")
    assert (tmp_path / "stage/config.gin").exists()


def test_a_finished_stage_is_not_run_again(tmp_path):
    out = make(tmp_path)
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.iterdir()}
    assert begin(tmp_path).finished
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.iterdir()} == before


@pytest.mark.parametrize("finished", [True, False])
def test_another_configuration_is_refused_with_both_hashes(tmp_path, finished):
    if finished:
        make(tmp_path, config={"length": 8, "model": {"width": 1}})
    else:
        stage = begin(tmp_path, config={"length": 8, "model": {"width": 1}}, resumable=True)
        (stage.work / "part").write_text("half")
    with pytest.raises(UserError) as caught:
        begin(tmp_path, config={"length": 8, "model": {"width": 2}}, resumable=True)
    assert "model.width was 1, now 2" in caught.value.message
    assert len(set(re.findall(r"\b[0-9a-f]{16}\b", caught.value.message))) == 2
    if finished:
        assert (tmp_path / "stage/file").read_text() == "content"


def test_an_attempt_that_wrote_nothing_is_in_nobodys_way(tmp_path):
    begin(tmp_path, config={"length": 8}, resumable=True)
    begin(tmp_path, config={"length": 9}, resumable=True).commit({})
    assert artifacts.read_manifest(tmp_path / "stage").config == {"length": 9}


def test_other_inputs_and_other_code_are_refused(tmp_path, monkeypatch):
    one, two = make(tmp_path, "one"), make(tmp_path, "two", text="other")
    make(tmp_path, inputs={"rows": one})
    with pytest.raises(UserError, match=r"input rows was [0-9a-f]{16}, now [0-9a-f]{16}"):
        begin(tmp_path, inputs={"rows": two})
    monkeypatch.setattr(artifacts, "code_hash", lambda modules: "0" * 16)
    with pytest.raises(UserError, match="the code has changed"):
        begin(tmp_path, inputs={"rows": one})


def test_what_was_interrupted_goes_on_or_begins_anew(tmp_path):
    for resumable in (True, False):
        stage = begin(tmp_path, f"s{resumable}", resumable=resumable)
        (stage.work / "part").write_text("half")
        again = begin(tmp_path, f"s{resumable}", resumable=resumable)
        assert again.resumed == resumable
        assert (again.work / "part").exists() == resumable


def test_several_processes_begin_one_stage(tmp_path, monkeypatch):
    first = begin(tmp_path, resumable=True)
    descriptor = os.open(first.work, os.O_RDONLY)  # so that no new folder gets its number
    second = begin(tmp_path, resumable=True)
    assert os.stat(second.work).st_ino == os.fstat(descriptor).st_ino
    os.close(descriptor)
    first.commit({})
    # A third looked just before the first had committed, and began to work just after.
    real, answers = artifacts.is_finished, [False]
    monkeypatch.setattr(
        artifacts, "is_finished", lambda path: answers.pop() if answers else real(path)
    )
    assert begin(tmp_path, resumable=True).finished
    assert not answers
    assert not first.work.exists()


def test_time_adds_up_over_attempts(tmp_path):
    stage = begin(tmp_path, resumable=True)
    (stage.work / "part").write_text("half")
    stage._started -= 5
    stage.save_time()
    stage._started -= 3  # lost: the process is killed before it saves
    again = begin(tmp_path, resumable=True)
    again._started -= 2
    assert again.commit({}).seconds == pytest.approx(7, abs=0.5)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"rows": 7', '"rows": 8'),
        lambda text: text.replace('"length": 8', '"length": 9'),
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "more": 1}),
    ],
)
def test_an_edited_or_damaged_manifest_is_not_believed(tmp_path, change):
    file = make(tmp_path) / "manifest.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError, match=r"was edited or damaged|is not a manifest"):
        artifacts.read_manifest(tmp_path / "stage")


def test_a_strangers_directory_is_left_alone(tmp_path):
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no artefact of this project"):
        begin(tmp_path)
    assert (tmp_path / "stage/thesis.tex").read_text() == "years of work"


def test_a_scope_may_stand_inside_another(tmp_path):
    make(tmp_path, "rows/real")
    make(tmp_path, "rows/deep/er")
    begin(tmp_path, "rows")


def test_lineage_follows_inputs_and_notices_what_was_made_anew(tmp_path):
    one = make(tmp_path, "one")
    outside = tmp_path / "vocab.model"
    outside.write_bytes(b"pieces")
    two = make(tmp_path, "deep/two", inputs={"rows": one, "vocab": outside})
    three = make(tmp_path, "three", inputs={"rows": two, "more": one})
    found = artifacts.ancestry(three)
    assert {m.scope for m in found.values()} == {"one", "deep/two", "three"}
    moved = epath.Path(tmp_path).rename(tmp_path.parent / "moved")
    assert len(artifacts.ancestry(moved / "three")) == 3
    (moved / "vocab.model").write_bytes(b"others")
    with pytest.raises(UserError, match="made anew"):
        artifacts.ancestry(moved / "three")


def test_an_atomic_write_leaves_the_old_or_the_new(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    artifacts.write_atomic(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifacts.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            artifacts.write_atomic(path, "new")
    assert path.read_text() == "old"
    artifacts.write_atomic(path, "new")
    assert path.read_text() == "new"


def test_code_hash_changes_with_any_file_of_a_package(tmp_path, monkeypatch):
    package = tmp_path / "made_up_package"
    (package / "deep").mkdir(parents=True)
    for name in ("__init__.py", "deep/__init__.py", "deep/module.py"):
        (package / name).write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = artifacts.code_hash(["made_up_package"])
    assert artifacts.code_hash(["made_up_package"]) == before
    (package / "deep/module.py").write_text("x = 2\n")
    assert artifacts.code_hash(["made_up_package"]) != before
    with pytest.raises(UserError, match="'no_such_module' was not found"):
        artifacts.code_hash(["no_such_module"])


def test_nothing_is_unpickled():
    """A file from outside must not run code."""
    root = pathlib.Path(__file__).parent.parent
    for path in [*(root / "sbp_jax").rglob("*.py"), *(root / "tasks").rglob("*.py")]:
        text = path.read_text().replace("allow_pickle=False", "")
        for word in ("pickle", "joblib", "allow_pickle=True", "eval(", "exec(", "yaml.load("):
            assert word not in text, f"{path} has {word}"
