"""SBP again from the jointly trained model: which stages, and with which settings."""

from __future__ import annotations

import json
import pathlib

import gin
import pytest
from etils import epath

from sbp_jax import artifacts, bootstrap, cli
from sbp_jax.bootstrap import ARMS, STAGES, StageCall, stages
from sbp_jax.errors import UserError

EXPERIMENT = "experiments/pydocs.gin"


@pytest.fixture(autouse=True)
def _stages_known(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parent.parent)
    for target in cli.STAGES.values():
        cli._load(target)
    cli.configure([EXPERIMENT], [])


def settings(call: StageCall, *bindings: str) -> dict:
    """What the child process of a call would read from gin, and of the optimizer too."""
    cli.configure([EXPERIMENT], [*bindings, *call.bindings])
    with gin.config_scope(call.like or call.scope):
        return {**gin.get_bindings("OptimizerConfig"), **gin.get_bindings(call.command)}


def test_a_later_round_goes_on_from_the_joint_model():
    calls = stages(ARMS, 3)
    by_scope = {call.scope: call for call in calls}
    assert len(by_scope) == len(calls)
    round_of = {
        number: [f"{scope}_{number}" for scope in ("tune", "synthetic", "rows/synthetic", "joint")]
        for number in (2, 3)
    }
    expected = [call.scope for call in STAGES[:-1]]
    for number in (2, 3):
        expected += [*round_of[number], f"evaluate/sbp_{number}"]
    assert list(by_scope) == [*expected, "report_3"]

    first = {call.scope: settings(call) for call in STAGES}
    own = {
        "tune_2": {"start_from": "joint"},
        "tune_3": {"start_from": "joint_2"},
        "synthetic_3": {"checkpoint": "tune_3"},
        "rows/synthetic_3": {"task": "tasks.synthetic:synthetic@synthetic_3"},
        "joint_3": {"rows": {"rows/real": 0.7, "rows/synthetic_3": 0.3}},
        "evaluate/sbp_3": {"checkpoint": "joint_3"},
    }
    for scope, changed in own.items():
        assert settings(by_scope[scope]) == {**first[scope[:-2]], **changed}
    assert first["tune"]["learning_rate"] != first["joint"]["learning_rate"]  # scopes hold inside
    arms = settings(by_scope["report_3"])["arms"]
    assert list(arms) == ["repetition", "sbp", "sbp_2", "sbp_3", "oracle"]
    assert arms["sbp_3"] == {"train": "joint_3", "scores": "evaluate/sbp_3"}
    assert {name: arms[name] for name in first["report"]["arms"]} == first["report"]["arms"]


def test_one_round_may_have_settings_of_its_own():
    by_scope = {call.scope: call for call in stages(ARMS, 3)}
    steps = {
        scope: settings(by_scope[scope], "tune/round_2/train.steps = 7")["steps"]
        for scope in ("tune", "tune_2", "tune_3")
    }
    assert steps == {"tune": 40, "tune_2": 7, "tune_3": 40}


def test_one_round_is_as_it_was():
    assert stages(ARMS, 1) == list(STAGES)
    assert all(call.flags == [f"--scope={call.scope}"] for call in STAGES)


def test_each_stage_is_a_process_with_its_own_settings(tmp_path, monkeypatch, capsys):
    run = artifacts.Run(epath.Path(tmp_path), "bootstrap", ("--gin_file=my.gin",))
    started = []

    def child(command, arguments):
        assert arguments == run.arguments
        started.append(command)
        if command[0] == "report":
            arms = {"repetition": 3.0, "sbp": 2.9, "sbp_2": 2.8}
            scores = {
                name: {"heldout_loss": loss, "heldout_bits_per_byte": 1.0}
                for name, loss in arms.items()
            }
            (tmp_path / "report_2").mkdir()
            (tmp_path / "report_2/summary.json").write_text(json.dumps({"arms": scores}))

    monkeypatch.setattr(bootstrap, "_run", child)
    bootstrap.bootstrap(run, arms=("repetition", "sbp"), rounds=2)
    tune = next(command for command in started if "--scope=tune_2" in command)
    assert tune == [
        *("train", "--scope=tune_2", "--like=tune/round_2"),
        "--gin.tune/round_2/train.start_from='joint'",
    ]
    assert [command[:2] for command in started[-3:]] == [
        ["train", "--scope=joint_2"],
        ["evaluate", "--scope=evaluate/sbp_2"],
        ["report", "--scope=report_2"],
    ]
    assert not any("oracle" in part for command in started[:-1] for part in command)
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].startswith("sbp_2        held-out loss 2.8000")
    assert printed[-1].endswith("report_2/report.html")
    assert json.loads((tmp_path / "summary.json").read_text())["arms"]["sbp_2"]


@pytest.mark.parametrize(
    ("arms", "rounds", "binding", "message"),
    [
        (ARMS, 0, "", "bootstrap.rounds = 0: expected 1, or more"),
        (("repetition", "oracle"), 2, "", "bootstrap.rounds = 2: .* with `sbp`"),
        (ARMS, 2, "joint/train.rows = 'rows/mixed'", "joint/train.rows = 'rows/mixed' does not"),
        (ARMS, 2, "rows/synthetic/cache.task = 'my:task'", "'my:task' does not name synthetic"),
        (ARMS, 2, "report.arms = {'x': {}}", "report.arms = {'x': {}} has no `sbp`"),
    ],
)
def test_what_no_round_could_go_on_from_is_refused(
    tmp_path, monkeypatch, arms, rounds, binding, message
):
    monkeypatch.setattr(bootstrap, "_run", lambda *_: pytest.fail("a stage was begun"))
    cli.configure([EXPERIMENT], [binding] if binding else [])
    with pytest.raises(UserError, match=message):
        bootstrap.bootstrap(
            artifacts.Run(epath.Path(tmp_path), "bootstrap"), arms=arms, rounds=rounds
        )
