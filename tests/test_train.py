"""The trainer: meshes, accumulation, processes and interruptions do not change what is learnt."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from made_rows import sentences, uneven_weights, write_rows_artefact

from sbp_jax import artifacts
from sbp_jax.checkpoints import load_parameters
from sbp_jax.data import loader, mixture, rows
from sbp_jax.errors import Stopped, UserError
from sbp_jax.model.decoder import DecoderConfig
from sbp_jax.parallel.mesh import MeshConfig, make_layout
from sbp_jax.train import log, loop, metrics
from sbp_jax.train.optimizer import OptimizerConfig, decayed, make_optimizer, schedule
from sbp_jax.train.stage import train
from sbp_jax.train.step import init_state, make_train_step

pytestmark = pytest.mark.usefixtures("compiled_quickly")

MODEL = DecoderConfig(
    vocab_size=64,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_size=8,
    hidden=32,
    dtype="float32",
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2)
ONE_DEVICE = MeshConfig(data=1)


@pytest.fixture
def run_directory(tmp_path):
    write_rows_artefact(tmp_path, "rows/real", {"real": list(sentences(200, 64, 0))})
    write_rows_artefact(tmp_path, "rows/dev", {"dev": list(sentences(40, 64, 1))})
    return epath.Path(tmp_path)


def call(directory, scope="pretrain", **changes):
    options = {
        "rows": "rows/real",
        "model": MODEL,
        "optimizer": OPTIMIZER,
        "steps": 12,
        "batch_size": 8,
        "dev_rows": "rows/dev",
        "checkpoint_every": 4,
        "log_every": 1,
        "rms_every": 6,
        "dropout": 0.1,
    }
    train(artifacts.Run(directory, scope), **{**options, **changes})
    return directory / scope


def same_parameters(first, second):
    for a, b in zip(
        jax.tree.leaves(load_parameters(first)[0]),
        jax.tree.leaves(load_parameters(second)[0]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def one_step(directory, mesh: MeshConfig, devices: int, accumulation_steps: int = 1):
    layout = make_layout(mesh, jax.devices()[:devices])
    optimizer = make_optimizer(OPTIMIZER, 10)
    state = init_state(MODEL, optimizer, layout, seed=0)
    step = make_train_step(
        MODEL, optimizer, layout, dropout=0.2, accumulation_steps=accumulation_steps
    )
    (batch,) = loader.batches(order(directory, 1, 16), np.arange(16), 0, 1, loader.BadRows(0))
    placed = jax.device_put(batch, layout.sharding("batch"))
    after, found = step(state, placed, jax.random.key(0), 1)
    # What a step gives must be what it takes, or the second compiles again.
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (new.aval, new.weak_type) == (old.aval, old.weak_type)
        assert new.sharding.is_equivalent_to(old.sharding, old.ndim)
    _clip, adam, *_ = after.optimizer
    return jax.device_get((adam.mu, found))


def test_loss_and_update_do_not_depend_on_mesh_or_accumulation(run_directory, monkeypatch):
    uneven_weights(monkeypatch)
    gradients, found = one_step(run_directory, MeshConfig(data=8), 8)
    assert found.loss > 3
    layouts = [
        (MeshConfig(slices=2, data=1, fsdp=2, tensor=2), 8, 2),
        (ONE_DEVICE, 1, 16),
    ]
    for mesh, devices, accumulation_steps in layouts:
        other, other_found = one_step(run_directory, mesh, devices, accumulation_steps)
        np.testing.assert_allclose(other_found.loss, found.loss, rtol=1e-6)
        np.testing.assert_allclose(other_found.gradient_norm, found.gradient_norm, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(gradients), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_training_learns_and_reports(run_directory):
    out = call(run_directory, steps=40, checkpoint_every=20)
    lines = metrics.read_metrics(out)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 40
    assert losses[-1] < losses[0] - 0.5
    last = [line for line in lines if "loss" in line][-1]
    assert last["tokens"] == 40 * 8 * 32
    assert last["source_tokens"] == {"real": 40 * 8 * 32}
    assert last["learning_rate"] < 1e-4
    assert last["gradient_norm"] > 0
    assert 0 < last["mfu"] < 1.5
    counts = artifacts.read_manifest(out).counts
    dev = [line["dev_loss"] for line in lines if "dev_loss" in line]
    assert [line["step"] for line in lines if "dev_loss" in line] == [20, 40]
    assert counts["dev_loss"] == dev[-1]
    assert counts["best_dev_loss"] == min(dev)
    assert counts["train_tokens"] == 40 * 8 * 32
    assert counts["skipped_steps"] == 0
    assert counts["sources"]["real"]["rows"] == 320
    assert list((out / "tensorboard").iterdir())
    best, info = load_parameters(out, step="best")
    assert info.step == counts["best_step"]
    assert jax.tree.leaves(best)[0].dtype == np.float32


def test_loss_tokens_are_those_of_the_rows_read(run_directory):
    out = call(run_directory, steps=12)
    read = order(run_directory, 12)
    source = read.sources[0]
    records = source.open()
    expected = sum(
        int(source.read(records, read[slot][1]).loss_weights.sum()) for slot in range(96)
    )
    assert artifacts.read_manifest(out).counts["loss_tokens"] == expected


def timeless(directory) -> list[dict]:
    """The lines of a run's metrics, without what depends on the clock."""
    clock = ("tokens_per_second", "mfu", "goodput")
    return [
        {name: value for name, value in line.items() if name not in clock}
        for line in metrics.read_metrics(directory)
    ]


def order(directory, steps: int, batch_size: int = 8) -> loader.RowOrder:
    """Of the rows of `steps` steps."""
    artefacts = {"real": rows.open_rows(directory / "rows/real")}
    return loader.RowOrder(mixture.plan(artefacts, {"real": 1}, steps, batch_size), 0)


KILLED = """
import os, signal, sys
from etils import epath
sys.path.insert(0, {tests!r})
import test_train
from sbp_jax.train import log
flush = log.Log.flush
def dying(self):
    flush(self)
    if self.record["step"] == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
log.Log.flush = dying
test_train.call(epath.Path({directory!r}), "killed")
"""


@pytest.mark.parametrize("step", [2, 7, 12])
def test_killed_and_started_again_it_is_as_if_it_never_was(run_directory, step):
    code = KILLED.format(
        tests=str(pathlib.Path(__file__).parent), step=step, directory=str(run_directory)
    )
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert not (run_directory / "killed").exists()
    call(run_directory, "killed")
    call(run_directory, "whole")
    same_parameters(run_directory / "killed", run_directory / "whole")
    assert timeless(run_directory / "killed") == timeless(run_directory / "whole")
    counts = [artifacts.read_manifest(run_directory / n).counts for n in ("killed", "whole")]
    assert counts[0] == counts[1]


def test_resumed_on_another_mesh_it_reads_the_same_rows(run_directory):
    call(run_directory, "whole", mesh=ONE_DEVICE if jax.device_count() == 1 else MeshConfig())
    interrupt_at_8(run_directory, "moved")
    call(run_directory, "moved", mesh=MeshConfig(data=2, fsdp=2, tensor=2), accumulation_steps=2)
    losses = [
        [line["loss"] for line in metrics.read_metrics(run_directory / name) if "loss" in line]
        for name in ("whole", "moved")
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_the_synthesizer_starts_from_another_run(run_directory):
    base = call(run_directory)
    tuned = call(
        run_directory,
        "tune",
        start_from="pretrain",
        optimizer=OptimizerConfig(learning_rate=1e-9, warmup=0.0, weight_decay=0.0),
        steps=1,
    )
    for a, b in zip(
        jax.tree.leaves(load_parameters(base)[0]),
        jax.tree.leaves(load_parameters(tuned)[0]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-7)
    assert "start_from" in artifacts.read_manifest(tuned).inputs
    with pytest.raises(
        UserError, match=r"mlp.down has shape \(2, 32, 16\), this model's has \(2, 48, 16\)"
    ):
        call(
            run_directory,
            "other",
            start_from="pretrain",
            model=dataclasses.replace(MODEL, hidden=48),
        )
    with pytest.raises(UserError, match=r"no checkpoint 5: expected one of \[.*12\]"):
        call(run_directory, "third", start_from="pretrain", start_from_step=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "batch_size = 12 is no multiple of 8"),
        ({"rows": "rows/none"}, "rows/none holds no finished artefact"),
        ({"start_from": "absent"}, "absent holds no finished artefact"),
        ({"start_from": "rows/real"}, "made by `sbp cache`: expected the directory of `sbp train`"),
        ({"rows": "pretrain0"}, "pretrain0 holds no finished artefact"),
        (
            {
                "model": dataclasses.replace(MODEL, heads=3, kv_heads=3),
                "mesh": MeshConfig(tensor=2),
            },
            r"cannot be divided among 2 devices \(tensor\)",
        ),
        ({"mesh": MeshConfig(data=3)}, "does not fit 8 device"),
        ({"mesh": MeshConfig(data=-1, fsdp=-1)}, "at most one is -1"),
        ({"mesh": MeshConfig(rules=(("batch", ("rows",)),))}, "no mesh axis"),
        ({"dropout": 1.0}, "dropout"),
        ({"steps": 0}, "steps"),
    ],
)
def test_a_users_mistake_is_one_line(run_directory, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        call(run_directory, **changes)
    assert "\n" not in caught.value.message
    assert not (run_directory / "pretrain").exists()


def test_rows_of_another_vocabulary_are_refused(run_directory):
    with pytest.raises(UserError, match="vocabulary of 64, the model's vocab_size is 100"):
        call(run_directory, model=dataclasses.replace(MODEL, vocab_size=100))


def test_updates_without_numbers_are_left_out_and_too_many_stop_the_run(run_directory, monkeypatch):
    uneven_weights(monkeypatch, np.nan)
    with pytest.raises(Stopped, match=r"3 updates in a row .* step 3 .* rows real \d+") as stopped:
        call(run_directory, stop_after_skipped=3)
    assert stopped.value.exit_code == 1
    lines = metrics.read_metrics(run_directory / "pretrain.partial")
    skipped = [line for line in lines if "skipped" in line]
    assert [line["step"] for line in skipped] == [1, 2, 3]
    read = [order(run_directory, 12)[slot][1] for slot in range(8)]
    assert skipped[0]["skipped"]["rows"] == f"real {' '.join(map(str, read))}"


def test_a_step_of_exploding_gradients_changes_nothing(run_directory):
    careful = dataclasses.replace(OPTIMIZER, skip_norm=1e-9)
    still = call(run_directory, "still", optimizer=careful, stop_after_skipped=13, seed=0)
    assert artifacts.read_manifest(still).counts["skipped_steps"] == 12
    layout = make_layout(ONE_DEVICE, jax.devices()[:1])
    fresh = init_state(MODEL, make_optimizer(OPTIMIZER, 12), layout, seed=0)
    for a, b in zip(
        jax.tree.leaves(load_parameters(still)[0]),
        jax.tree.leaves(fresh.parameters),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_sigterm_saves_the_step_and_the_run_goes_on_bit_by_bit(run_directory, monkeypatch):
    write = log.Log._write

    def terminate(self, step, norm):
        write(self, step, norm)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(log.Log, "_write", terminate)
        with pytest.raises(Stopped, match=r"ended by SIGTERM; step \d of 12 is saved") as stopped:
            call(run_directory, "ended", log_every=3)
    assert stopped.value.exit_code == 143
    saved = run_directory / "ended.partial/checkpoints"
    assert {"7"} <= {path.name for path in saved.iterdir()}
    call(run_directory, "ended", log_every=3)
    call(run_directory, "whole", log_every=3)
    same_parameters(run_directory / "ended", run_directory / "whole")
    assert timeless(run_directory / "ended") == timeless(run_directory / "whole")


def interrupt_at_8(directory, scope: str) -> None:
    """A run that ends after its checkpoint of step 8, the second of three."""
    save = loop.Trainer.save

    def interrupted(self, step, *arguments, **options):
        save(self, step, *arguments, **options)
        if step == 8:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call(directory, scope)


def damage(path: pathlib.Path, how: str) -> None:
    """Cuts or changes all files of data under a folder: some hold what was written again."""
    files = list(path.rglob("d/*"))
    assert files
    for file in files:
        data = file.read_bytes()
        middle = len(data) // 2
        rest = b"" if how == "truncated" else bytes(64) + data[middle + 64 :]
        file.write_bytes(data[:middle] + rest)


@pytest.mark.parametrize("how", ["truncated", "overwritten"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(run_directory, caplog, how):
    interrupt_at_8(run_directory, "hurt")
    checkpoints = pathlib.Path(run_directory / "hurt.partial/checkpoints")
    damage(checkpoints / "8/parameters", how)
    caplog.set_level("INFO")
    call(run_directory, "hurt")
    assert "checkpoint 8" in caplog.text
    assert "goes on from step 4 of 12" in caplog.text
    call(run_directory, "whole")
    same_parameters(run_directory / "hurt", run_directory / "whole")
    assert (run_directory / "hurt/checkpoints/8.damaged").exists()


def test_if_no_checkpoint_can_be_read_none_is_touched(run_directory):
    interrupt_at_8(run_directory, "hurt")
    checkpoints = pathlib.Path(run_directory / "hurt.partial/checkpoints")
    damage(checkpoints / "4/parameters", "truncated")
    damage(checkpoints / "8/parameters", "truncated")
    before = sorted(path.name for path in checkpoints.iterdir())
    with pytest.raises(Stopped, match=r"none of the checkpoints \[4, 8\] of .* can be read"):
        call(run_directory, "hurt")
    assert sorted(path.name for path in checkpoints.iterdir()) == before


def test_every_so_many_steps_a_checkpoint_is_kept_for_good(run_directory):
    out = call(run_directory, steps=12, checkpoint_every=2, keep_every=4, dev_rows=None)
    kept = {path.name for path in (out / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {"4", "8", "10", "12"}


def test_sizes_of_gradients_and_updates_are_told_by_group(run_directory):
    out = call(run_directory)
    found = {line["step"]: line["rms"] for line in metrics.read_metrics(out) if "rms" in line}
    assert list(found) == [1, 7]
    for sizes in found[7].values():
        assert set(sizes) == {"embedding", "final_norm"} | {
            f"blocks.{name}" for name in ("attention", "mlp", "attention_norm", "mlp_norm")
        }
        assert all(len(sizes[g]) == 2 for g in sizes if g.startswith("blocks"))
        assert all(np.min(size) > 0 for size in sizes.values())
    # Adam's updates are of the size of the learning rate, whatever the gradient's.
    assert 1e-3 < np.mean(found[7]["update"]["blocks.mlp"]) < 1e-2
    assert found[7]["gradient"]["blocks.mlp"] != found[7]["update"]["blocks.mlp"]


def test_a_profile_is_taken_on_demand(run_directory, monkeypatch):
    write = log.Log._write

    def ask(self, step, norm):
        write(self, step, norm)
        if step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(log.Log, "_write", ask)
    out = call(run_directory)
    (folder,) = (out / "profile").iterdir()
    assert folder.name == "step_3"
    assert list(pathlib.Path(folder).rglob("*.xplane.pb"))


def test_schedule_and_decay_mask():
    rate = schedule(OptimizerConfig(learning_rate=2.0, final_learning_rate=0.5, warmup=0.1), 100)
    assert float(rate(0)) == 0
    assert float(rate(5)) == 1.0
    assert float(rate(10)) == 2.0
    assert float(rate(55)) == pytest.approx(1.25)
    assert float(rate(100)) == pytest.approx(0.5)
    mask = decayed({"mlp": {"up": 1}, "norm": {"scale": 1}})
    assert mask == {"mlp": {"up": True}, "norm": {"scale": False}}
