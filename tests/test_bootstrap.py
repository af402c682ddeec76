"""A whole bootstrap on a hundred documents: killed, started again, and looked through."""

from __future__ import annotations

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import grain
import pytest

from sbp_jax import artifacts
from sbp_jax.bootstrap import STAGES
from sbp_jax.data import loader, mixture, rows
from sbp_jax.data.documents import Documents
from sbp_jax.pair.stage import PAIRS
from sbp_jax.text.shingles import containment, shingles

GIN = """
include 'models/tiny.gin'
include 'stages/bootstrap.gin'
include 'hardware/cpu.gin'
import tasks.folder

folder.directory = 'corpus'
folder.heldout_share = 0.15
folder.dev_share = 0.1
REAL_TASK = 'my_tasks:little'
ORACLE_TASK = 'my_tasks:all'
DEV_TASK = 'tasks.folder:dev'
HELDOUT_TASK = 'tasks.folder:heldout'

SEED = 0
VOCAB_SIZE = 400
ROW_LENGTH = 64
PAIR_LENGTH = 96
SEED_LENGTH = 40
TARGET_LENGTH = 54
STEPS = 30
BATCH_SIZE = 8
REAL_SHARE = 0.75
SYNTHETIC_SHARE = 0.25
SYNTHETIC_TOKENS = 5000
DecoderConfig.width = 32
DecoderConfig.layers = 2
DecoderConfig.head_size = 16
DecoderConfig.hidden = 64
OptimizerConfig.learning_rate = 1e-2
train.dropout = 0.1
train.checkpoint_every = 10
pair.alpha = 0.05
synthesize.slots = 32
synthesize.documents_per_shard = 32
FilterConfig.min_words = 3
tune/train.steps = 10
"""
# The user's own tasks, in the folder where the command is run: the corpus, and a part of it.
MY_TASKS = """
import seqio
import tensorflow as tf
from tasks.folder import folder


def register(name, documents, vocabulary):
    text = tf.TensorSpec([], tf.string)
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_generator(
            lambda: ({"id": i, "targets": t} for i, t in documents),
            output_signature={"id": text, "targets": text},
        ),
        splits=["train"],
    )
    seqio.TaskRegistry.remove(name)
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[seqio.preprocessors.tokenize],
        output_features={"targets": seqio.Feature(vocabulary, add_eos=True)},
    )


def all(vocabulary):
    return register("all", folder().documents["train"], vocabulary)


def little(vocabulary):
    return register("little", folder().documents["train"][:40], vocabulary)
"""


def corpus() -> list[dict[str, str]]:
    """A hundred documents about ten things, every fifth with a near-duplicate."""
    rng = random.Random(0)
    topics = [[f"{a}{b}{t}" for a in "bdgkm" for b in "aeiou"] for t in "lnrst"]
    found = []
    for i in range(80):
        text = " ".join(rng.choices(topics[i % 5], k=rng.randrange(20, 60)))
        found.append({"id": f"doc{i}", "text": text})
        if i % 4 == 0:
            found.append({"id": f"copy of {i}", "text": f"{text} once more"})
    return found


# One device: eight virtual ones on two cores only take longer. What the programs compute is tested
# elsewhere; here each runs a few times, and compiling it well takes far longer than running it.
CHILDREN = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def command(directory) -> list[str]:
    sbp = [sys.executable, "-m", "sbp_jax.cli", "bootstrap"]
    return [*sbp, "--gin_file=experiment.gin", f"--run_dir={directory}"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was killed in the middle of its first training and started again.

    Returns its directory, what the second attempt printed, and what the first had finished.
    """
    root = tmp_path_factory.mktemp("bootstrap")
    (root / "corpus").mkdir()
    lines = "\n".join(map(json.dumps, corpus()))
    (root / "corpus/documents.jsonl").write_text(lines)
    (root / "my_tasks.py").write_text(MY_TASKS)
    (root / "experiment.gin").write_text(GIN)
    repository = pathlib.Path(__file__).parent.parent
    environment = {**os.environ, **CHILDREN, "PYTHONPATH": str(repository)}
    options = {"cwd": root, "env": environment, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command(root / "run"), start_new_session=True, **options)
    deadline = time.monotonic() + 300
    checkpoints = root / "run/pretrain.partial/checkpoints"
    while not any(path.name.isdigit() for path in checkpoints.glob("*")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    finished = when(root / "run")
    second = subprocess.run(
        command(root / "run"), stderr=subprocess.PIPE, check=False, timeout=500, **options
    )
    assert second.returncode == 0, second.stderr[-3000:]
    return root / "run", second, finished


def when(directory) -> dict[str, int]:
    """When each finished stage was."""
    return {
        str(path.parent.relative_to(directory)): path.stat().st_mtime_ns
        for path in directory.rglob(artifacts.MANIFEST)
    }


def test_all_stages_finish_and_none_runs_twice(run):
    directory, second, finished = run
    assert {"vocab", "rows/real", "rows/dev", "rows/heldout"} <= set(finished)
    assert "pretrain" not in finished
    found = when(directory)
    assert set(found) == {call.scope for call in STAGES}
    assert {name: found[name] for name in finished} == finished
    assert re.search(r"goes on from step (10|20) of 30", second.stderr)
    assert not list(directory.rglob("*.partial"))


def test_a_stage_run_by_hand_finds_itself_finished(run):
    directory, _, _ = run
    before = when(directory)
    anew = (("train", "joint"), ("synthesize", "synthetic"), ("cache", "rows/synthetic"))
    for stage, scope in anew:
        arguments = [*command(directory), f"--scope={scope}"]
        arguments[3] = stage
        environment = {**os.environ, **CHILDREN, "PYTHONPATH": os.getcwd()}
        done = subprocess.run(
            arguments, cwd=directory.parent, env=environment, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        assert b"is finished already" in done.stderr
    assert when(directory) == before


def test_an_artefact_tells_its_own_settings_alone(run):
    """Also where one process has made several."""
    directory, _, _ = run
    for scope, other in (("rows/dev", "rows/real"), ("evaluate/oracle", "evaluate/sbp")):
        settings = (directory / scope / artifacts.OPERATIVE_CONFIG).read_text()
        assert f"{scope}/" in settings
        assert f"{other}/" not in settings


def test_the_summary_says_what_the_stages_found(run):
    directory, second, _ = run
    summary = json.loads((directory / "summary.json").read_text())
    assert summary == json.loads((directory / "report/summary.json").read_text())
    arms = summary["arms"]
    assert list(arms) == ["repetition", "sbp", "oracle"]
    for name, scope in (("repetition", "pretrain"), ("sbp", "joint"), ("oracle", "oracle")):
        counts = artifacts.read_manifest(directory / scope).counts
        scores = json.loads((directory / "evaluate" / name / "scores.json").read_text())
        assert arms[name] == {
            "heldout_loss": scores["loss"],
            "heldout_bits_per_byte": scores["bits_per_byte"],
            "train_tokens": counts["train_tokens"],
            "unique_tokens": counts["unique_tokens"],
            "synthetic_tokens": counts["synthetic_tokens"],
        }
        assert counts["train_tokens"] == 30 * 8 * 64
    assert arms["repetition"]["synthetic_tokens"] == arms["oracle"]["synthetic_tokens"] == 0
    assert arms["sbp"]["synthetic_tokens"] > 0
    assert arms["oracle"]["unique_tokens"] > 1.5 * arms["repetition"]["unique_tokens"]
    losses = {name: arm["heldout_loss"] for name, arm in arms.items()}
    gain = losses["repetition"] - losses["oracle"]
    if gain > 0:
        share = (losses["repetition"] - losses["sbp"]) / gain
        assert summary["oracle_gain_recovered"] == pytest.approx(share)
    last = second.stdout.strip().splitlines()[-5:]
    for line, name in zip(last, losses, strict=False):
        assert line.startswith(name)
        assert f"{losses[name]:.4f}" in line
    assert "share of the oracle's gain" in last[3]
    assert last[4] == f"report: {directory / 'report/report.html'}"


def test_the_report_stands_alone(run):
    page = (run[0] / "report/report.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:|//|file:)""", page)
    assert "joint" in page
    assert "oracle" in page


def texts_trained_on(directory) -> dict[str, list[str]]:
    """Every real text that training, pairing or sampling could see."""
    pairs = grain.sources.ArrayRecordDataSource([str(directory / "pairs" / PAIRS)])
    found = [json.loads(pairs[i]) for i in range(len(pairs))]
    pieces = load_vocabulary(directory)
    oracle = rows.open_rows(directory / "rows/oracle").sources["all"]
    return {
        "seeds": [d.text for d in Documents(directory / "rows/real")],
        "pairs": [p[side] for p in found for side in ("inputs", "targets")],
        "oracle": [pieces.decode(tokens) for tokens in segments(oracle)],
    }


def load_vocabulary(directory):
    from sbp_jax.data.vocabularies import load

    return load(directory / "vocab")


def segments(source):
    records = source.open()
    for index in range(source.rows):
        row = source.read(records, index)
        for segment in range(1, int(row.segment_ids.max()) + 1):
            yield row.targets[row.segment_ids == segment].tolist()


def test_nothing_held_out_is_trained_on(run):
    directory, _, _ = run
    pieces = load_vocabulary(directory)
    heldout = rows.open_rows(directory / "rows/heldout").sources["folder_heldout"]
    held = [shingles(pieces.decode(tokens)) for tokens in segments(heldout)]
    assert len(held) >= 8
    for where, texts in texts_trained_on(directory).items():
        assert len(texts) > 20
        for text in texts:
            near = max(containment(shingles(text), other) for other in held)
            assert near < 0.5, f"{where}: {text}"


def test_no_synthetic_document_is_seen_twice(run):
    directory, _, _ = run
    artefacts = {name: rows.open_rows(directory / name) for name in ("rows/real", "rows/synthetic")}
    synthetic = artefacts["rows/synthetic"].sources["synthetic"]
    corpus = artifacts.read_manifest(directory / "synthetic").counts
    assert synthetic.synthetic
    assert synthetic.documents == corpus["documents"]
    shares = {"rows/real": 0.75, "rows/synthetic": 0.25}
    mixed = mixture.plan(artefacts, shares, 30, 8)
    assert [share.slots for share in mixed.shares] == [180, 60]
    order = loader.RowOrder(mixed, 0)
    taken = [order[slot] for slot in range(len(order))]
    synthetic = [row for source, row in taken if source == 1]
    assert len(set(synthetic)) == len(synthetic) == 60
    real = [row for source, row in taken if source == 0]
    passes = mixed.shares[0].passes
    assert all(int(passes) <= real.count(row) <= int(passes) + 1 for row in set(real))


def test_lineage_leads_from_the_joint_model_to_the_corpus(run):
    directory, _, _ = run
    found = {m.scope: m for m in artifacts.ancestry(directory / "joint").values()}
    assert set(found) == {
        *("joint", "rows/synthetic", "synthetic", "tune", "rows/pairs", "rows/pairs_dev", "pairs"),
        *("pairs_dev", "embed", "pretrain", "rows/real", "rows/dev", "vocab"),
    }
    assert found["synthetic"].config["temperature"] == 1.0
    assert found["tune"].inputs["start_from"]["hash"] == found["pretrain"].hash
