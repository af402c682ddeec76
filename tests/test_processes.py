"""Two processes on loopback pretrain, evaluate, embed and synthesize, as two hosts would."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import made_tasks
import numpy as np
import pytest
from made_rows import write_text_run

from sbp_jax import artifacts
from sbp_jax.train import metrics

GIN = """
train.rows = 'rows/real'
train.model = @DecoderConfig()
train.optimizer = @OptimizerConfig()
train.steps = 30
train.batch_size = 8
train.dropout = 0.1
train.log_every = 1
train.checkpoint_every = 10
DecoderConfig.vocab_size = 320
DecoderConfig.width = 16
DecoderConfig.layers = 2
DecoderConfig.heads = 4
DecoderConfig.kv_heads = 2
DecoderConfig.head_size = 8
DecoderConfig.hidden = 32
DecoderConfig.dtype = 'float32'
OptimizerConfig.learning_rate = 3e-2
synthesize.tokens = 1500
synthesize.seed_length = 10
synthesize.max_length = 24
synthesize.slots = 4
synthesize.prefill_rows = 4
synthesize.documents_per_shard = 5
synthesize.checkpoint = 'several'
synthesize.any_checkpoint = True
synthesize.lease_seconds = 4.0
evaluate.checkpoint = 'several'
evaluate.rows = 'rows/real'
evaluate.batch_size = 8
FilterConfig.min_words = 3
embed.embedder = @ActivationEmbedder()
embed.documents = {'train': 'rows/real'}
embed.shard_documents = 5
ActivationEmbedder.checkpoint = 'one'
ActivationEmbedder.max_length = 32
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = write_text_run(tmp_path_factory.mktemp("run"))
    (directory / "run.gin").write_text(GIN)
    return directory


def start(directory, *arguments: str, processes: int) -> list[subprocess.Popen]:
    """Starts a stage in so many processes, of two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sbp_jax.cli", *arguments, f"--run_dir={directory}"]
    command.append(f"--gin_file={directory / 'run.gin'}")
    job = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"]
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(pathlib.Path(__file__).parent.parent),
        # What is compared is compiled alike; compiling it well takes longer than running it.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "HF_HOME": str(directory / "datasets"),
        "HF_HUB_OFFLINE": "1",
    }
    return [
        subprocess.Popen(
            [*command, *([*job, f"--process_id={index}"] if processes > 1 else [])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for index in range(processes)
    ]


def sbp(directory, *arguments: str, processes: int) -> str:
    """Runs a stage in so many processes to its end; returns what they said."""
    children = start(directory, *arguments, processes=processes)
    deadline = time.monotonic() + 200
    try:
        outputs = [child.communicate(timeout=deadline - time.monotonic())[0] for child in children]
    finally:
        for child in children:
            child.kill()
    said = b"\n".join(outputs).decode()
    assert not any(child.returncode for child in children), said
    return said


def losses(directory) -> list[float]:
    return [line["loss"] for line in metrics.read_metrics(directory) if "loss" in line]


@pytest.fixture(scope="module")
def one(run):
    """What one process learns."""
    sbp(run, "train", "--scope=one", processes=1)
    return run / "one"


def test_what_two_processes_began_one_ends(run, one):
    """Killed after a checkpoint; the rest of the steps read the same rows on one host."""
    children = start(run, "train", "--scope=moved", processes=2)
    try:
        deadline = time.monotonic() + 200
        while not (run / "moved.partial/checkpoints/10").exists():
            assert all(child.poll() is None for child in children)
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert not (run / "moved").exists()
    assert "goes on from step" in sbp(run, "train", "--scope=moved", processes=1)
    assert len(losses(run / "moved")) == 30
    np.testing.assert_allclose(losses(run / "moved"), losses(one), rtol=1e-4)


def test_two_processes_learn_and_write_what_one_does(run, one):
    sbp(run, "train", "--scope=several", processes=2)
    assert len(losses(one)) == 30
    np.testing.assert_allclose(losses(run / "several"), losses(one), rtol=1e-5)
    tasks = ()
    if importlib.util.find_spec("lm_eval"):
        made_tasks.write(run / "tasks")
        tasks = (
            "--tasks=local_text,local_answer",
            f"--gin.evaluate.include_path='{run / 'tasks'}'",
        )
    for count, scope in ((2, "scores_of_several"), (1, "scores_of_one")):
        sbp(run, "evaluate", f"--scope={scope}", *tasks, processes=count)
    scores = [
        json.loads((run / scope / "scores.json").read_text())
        for scope in ("scores_of_several", "scores_of_one")
    ]
    assert scores[0]["tokens"] == scores[1]["tokens"]
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-6)
    for name, found in scores[0].get("tasks", {}).items():
        alone = scores[1]["tasks"][name]["metrics"]
        assert found["metrics"] == {k: v and pytest.approx(v, 1e-4) for k, v in alone.items()}
    sbp(run, "synthesize", "--scope=by_several", processes=2)
    sbp(run, "synthesize", "--scope=by_one", processes=1)
    several, alone = (
        {
            path.name: path.read_bytes()
            for path in (run / scope).iterdir()
            if path.name not in (artifacts.MANIFEST, artifacts.OPERATIVE_CONFIG)
        }
        for scope in ("by_several", "by_one")
    )
    assert several == alone
    assert artifacts.read_manifest(run / "by_several").counts["tokens"] >= 1500


def test_two_processes_embed_what_one_does(run, one):
    """Each other shards, and the same."""
    said = sbp(run, "embed", "--scope=embed_by_several", processes=2)
    assert said.count(" of 13 documents") == 3
    sbp(run, "embed", "--scope=embed_by_one", processes=1)
    several, alone = (
        {path.name: path.read_bytes() for path in (run / scope / "train").iterdir()}
        for scope in ("embed_by_several", "embed_by_one")
    )
    assert len(alone) == 9
    assert several == alone
