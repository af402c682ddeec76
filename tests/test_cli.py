"""The command line: what a user gets wrong is told in one line, with the right exit code."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys
import types

import gin
import pytest
from made_rows import sentences, write_rows_artefact

from sbp_jax import artifacts, cli

pytestmark = pytest.mark.usefixtures("compiled_quickly")

TRAIN = """
train.rows = 'rows/real'
train.model = @DecoderConfig()
train.optimizer = @OptimizerConfig()
train.steps = 2
train.batch_size = 8
DecoderConfig.vocab_size = 64
DecoderConfig.width = 16
DecoderConfig.layers = 1
DecoderConfig.heads = 2
DecoderConfig.kv_heads = 1
DecoderConfig.head_size = 8
DecoderConfig.hidden = 16
DecoderConfig.dtype = 'float32'
OptimizerConfig.learning_rate = 1e-3
evaluate.checkpoint = 'pretrain'
evaluate.rows = 'rows/real'
"""


@pytest.fixture
def run_directory(tmp_path, monkeypatch):
    """A run with rows, a gin file, and the current folder there."""
    monkeypatch.chdir(tmp_path)
    write_rows_artefact(tmp_path / "run", "rows/real", {"real": list(sentences(60, 64, 0))})
    (tmp_path / "train.gin").write_text(TRAIN)
    return tmp_path / "run"


def sbp(*arguments: str) -> int:
    gin.clear_config()
    return cli.main([*arguments])


def error_of(capfd) -> str:
    """The last line on stderr; the only one that is not a log line."""
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("sbp ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown stage 'trian': did you mean train?"),
        (["nonsense"], "expected one of vocab, cache, train"),
        (["train", "--gin_file=absent.gin"], "absent.gin"),
        (["train", "--gin_file=train.gin", "--gin.train.stpes=3"], "stpes"),
        (["train", "--gin_file=train.gin", "--gin.trian.steps=3"], "trian"),
        (["train", "--gin_file=train.gin", "--gin.train.steps=[3"], "gin:"),
        (
            ["train", "--gin_file=train.gin", "--gin.train.steps='3'"],
            "train.steps = '3': expected int",
        ),
        (["train", "--gin_file=train.gin", "--gin.train.mesh=1"], "train.mesh = 1: expected"),
        (
            ["train", "--gin_file=train.gin", "--gin.DecoderConfig.width=1.5"],
            "DecoderConfig.width = 1.5: expected int",
        ),
        (["train", "--gin_file=train.gin", "--gin.train.steps=%gin.REQUIRED"], "train.steps"),
        (["train", "--gin_file=train.gin", "--gin.train.steps=%NOWHERE"], "NOWHERE"),
        (["train", "--gin_file=train.gin", "--gin.train.rows='rows/none'"], "rows/none holds no"),
        (["train", "--gin_file=train.gin", "--gin.train.batch_size=12"], "no multiple of 8"),
        (["train", "--gin_file=train.gin", "--gin.train.start_from='absent'"], "absent holds no"),
        (["train", "--gin_file=train.gin", "--gin.DecoderConfig.heads=3"], "MeshConfig|heads"),
        (["train", "--gin_file=train.gin", "--gin.DecoderConfig.vocab_size=9"], "vocab_size is 9"),
        (["train", "--gin_file=train.gin", "--scope=../train"], "--scope=../train: expected"),
        (["train", "--gin_file=train.gin", "--scope=a", "--like=b/"], "--like=b/: expected"),
        (["train", "--gin_file=train.gin", "--like=pretrain"], "give one --scope"),
        (["train", "--gin_file=train.gin", "--process_id=1"], "need --coordinator"),
        (["train", "--gin_file=train.gin", "--coordinator=localhost:1"], "needs --num_processes"),
        (["train", "--gin_file=train.gin", "--json"], "takes no --json"),
        (["train", "--gin_file=train.gin", "--runner=DirectRunner"], "takes no --runner"),
        (["train", "--gin_file=train.gin", "--html=page.html"], "takes no --html"),
        (["show"], "needs a path"),
        (["show", "rows/none", "--scope=x"], "takes no --scope"),
        (["train", "elsewhere", "--gin_file=train.gin"], "takes no path, and got elsewhere"),
        (["plan", "--gin_file=train.gin"], "takes no --run_dir"),
        (["evaluate", "--gin_file=train.gin"], "run/pretrain holds no finished artefact"),
        (["bootstrap", "--gin_file=train.gin", "--coordinator=auto"], "one host"),
        (
            ["bootstrap", "--gin_file=train.gin", "--gin.bootstrap.arms=('sbp',)"],
            "expected `repetition` and any of",
        ),
    ],
)
def test_a_mistake_is_one_line_and_two(run_directory, capfd, arguments, message):
    if message == "MeshConfig|heads":
        arguments, message = [*arguments, "--gin.DecoderConfig.kv_heads=2"], "no multiple of"
    assert sbp(*arguments, f"--run_dir={run_directory}") == 2
    assert message in error_of(capfd)
    assert sorted(p.name for p in run_directory.iterdir()) == ["rows"]


def test_runner_and_its_options_reach_the_cache(run_directory, capfd):
    arguments = ["cache", f"--run_dir={run_directory}", "--runner=FlinkRunner", "--", "--a=b", "-c"]
    assert sbp(*arguments) == 2
    assert "Required bindings" in error_of(capfd)
    assert gin.query_parameter("cache.runner") == "FlinkRunner"
    assert gin.query_parameter("cache.runner_options") == ("--a=b", "-c")
    arguments = ["train", "--gin_file=train.gin", f"--run_dir={run_directory}", "--", "--a=b"]
    assert sbp(*arguments) == 2
    assert "takes no options behind --" in error_of(capfd)


def test_without_a_run_directory(run_directory, capfd):
    assert sbp("train", "--gin_file=train.gin") == 2
    assert "--run_dir=DIR" in error_of(capfd)


def test_a_missing_value_is_named(run_directory, capfd):
    pathlib.Path("train.gin").write_text(TRAIN.replace("train.steps = 2", ""))
    assert sbp("train", "--gin_file=train.gin", f"--run_dir={run_directory}") == 2
    assert "['steps']" in error_of(capfd)


def test_several_files_overrides_scopes_and_search_paths(run_directory):
    pathlib.Path("more").mkdir()
    pathlib.Path("more/steps.gin").write_text("pretrain/train.steps = 3\ntrain.log_every = 1\n")
    arguments = [
        "train",
        "--gin_file=train.gin",
        "--gin_file=steps.gin",
        "--gin_search_path=more",
        "--gin.train.batch_size=16",
        "--scope=pretrain",
        f"--run_dir={run_directory}",
    ]
    assert sbp(*arguments) == 0
    manifest = artifacts.read_manifest(run_directory / "pretrain")
    assert manifest.config["steps"] == 3
    assert manifest.config["batch_size"] == 16
    operative = (run_directory / "pretrain/config.gin").read_text()
    assert "pretrain/train.steps = 3" in operative
    assert "OptimizerConfig.learning_rate = 0.001" in operative


def test_a_stage_is_done_again_elsewhere_with_settings_of_another(run_directory):
    settings = "pretrain/train.steps = 3\npretrain/OptimizerConfig.learning_rate = 0.5\n"
    pathlib.Path("more.gin").write_text(settings + "pretrain/again/train.seed = 7\n")
    files = ["--gin_file=train.gin", "--gin_file=more.gin", f"--run_dir={run_directory}"]
    assert sbp("train", *files, "--scope=pretrain_2", "--like=pretrain/again") == 0
    manifest = artifacts.read_manifest(run_directory / "pretrain_2")
    assert manifest.scope == "pretrain_2"
    assert (manifest.config["steps"], manifest.config["seed"]) == (3, 7)
    assert manifest.config["optimizer"]["learning_rate"] == 0.5
    assert not (run_directory / "pretrain").exists()


def test_a_directory_of_another_configuration_is_refused(run_directory, capfd):
    arguments = ["train", "--gin_file=train.gin", f"--run_dir={run_directory}"]
    assert sbp(*arguments) == 0
    before = artifacts.read_manifest(run_directory / "train")
    capfd.readouterr()
    assert sbp(*arguments) == 0
    assert sbp(*arguments, "--gin.train.steps=3") == 2
    line = error_of(capfd)
    assert before.identity in line
    assert "steps was 2, now 3" in line
    assert artifacts.read_manifest(run_directory / "train") == before


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"), "metrics.jsonl"),
        # As Orbax and ArrayRecord say it.
        (ValueError("RESOURCE_EXHAUSTED: [errno 28] No space left on device"), "no space left"),
    ],
)
def test_no_space_left(run_directory, capfd, monkeypatch, error, told):
    def full(*_):
        raise error

    arguments = ["train", "--gin_file=train.gin", f"--run_dir={run_directory}"]
    with monkeypatch.context() as patch:
        patch.setattr("sbp_jax.train.metrics.MetricsWriter.write", full)
        assert sbp(*arguments) == 1
    line = error_of(capfd)
    assert "no space left" in line
    assert told in line
    assert not (run_directory / "train").exists()
    assert sbp(*arguments) == 0


def test_a_place_that_cannot_be_written_is_named(run_directory, capfd, tmp_path):
    (tmp_path / "file").write_text("kept")
    for number in (errno.EACCES, errno.EROFS, errno.ENOTDIR):
        error = OSError(number, os.strerror(number), "runs/x")
        assert cli._explain(error, "train", debug=False) == 2
        assert "sbp train: runs/x: " in error_of(capfd)
    assert sbp("train", "--gin_file=train.gin", f"--run_dir={tmp_path / 'file' / 'x'}") == 2
    assert str(tmp_path / "file") in error_of(capfd)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_stage_of_one_process_is_not_run_by_several(run_directory, capfd, monkeypatch):
    monkeypatch.setattr(cli.jax, "process_count", lambda: 2)
    assert sbp("report", "--gin_file=train.gin", f"--run_dir={run_directory}") == 2
    assert "start it on one host, without --coordinator" in error_of(capfd)


def test_a_failure_is_one_and_says_what(run_directory, capfd, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("the device is on fire")

    monkeypatch.setattr("sbp_jax.train.stage.make_layout", broken)
    assert sbp("train", "--gin_file=train.gin", f"--run_dir={run_directory}") == 1
    assert "the device is on fire" in error_of(capfd)


def test_a_bootstrap_ends_as_its_stage_did(run_directory, capfd, monkeypatch):
    arguments = ["bootstrap", "--gin_file=train.gin", f"--run_dir={run_directory}"]
    assert sbp(*arguments, "--gin.vocab.task='nowhere:none'", "--gin.vocab.size=300") == 2
    assert "nowhere" in error_of(capfd)

    def killed(_):
        return subprocess.Popen(["sh", "-c", "kill -9 $$"])

    monkeypatch.setattr(cli.bootstrap, "subprocess", types.SimpleNamespace(Popen=killed))
    assert sbp(*arguments) == 1
    assert "sbp vocab --scope=vocab was ended by signal 9" in error_of(capfd)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--help"], 0, ""),
        (["train", "--no_such_flag=1"], 2, "--no_such_flag=1"),
        ([], 2, "required: stage"),
    ],
)
def test_help_and_unknown_flags(arguments, code, told):
    done = subprocess.run(
        [sys.executable, "-m", "sbp_jax.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == (1 if told else 0)
