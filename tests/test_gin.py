"""The shipped gin files: each is read, and each names only what exists."""

from __future__ import annotations

import pathlib

import gin
import pytest
import seqio

from sbp_jax import artifacts, cli
from sbp_jax.bootstrap import STAGES
from sbp_jax.data import tasks

GIN = pathlib.Path(__file__).parent.parent / "gin"
EXPERIMENTS = sorted(str(p.relative_to(GIN)) for p in (GIN / "experiments").glob("*.gin"))
EVIDENCE = sorted(
    str(p.relative_to(GIN))
    for p in (GIN / "evidence").glob("*.gin")
    if p.name not in ("concept_world.gin", "text.gin")  # which others include
)
HARDWARE = sorted(str(p.relative_to(GIN)) for p in (GIN / "hardware").glob("*.gin"))


@pytest.fixture(autouse=True)
def _stages_known(monkeypatch):
    monkeypatch.chdir(GIN.parent)
    for target in cli.STAGES.values():
        cli._load(target)


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_is_whole(experiment, hardware):
    """Every macro that a stage of its arms needs is set."""
    cli.configure([experiment, hardware], [])
    arms = set(gin.query_parameter("bootstrap.arms") if experiment.endswith("folder.gin") else [])
    for call in STAGES:
        if arms and not arms & set(call.arms):
            continue
        with gin.config_scope(call.scope):
            bound = gin.get_bindings(call.command)
        for name, value in bound.items():
            assert value is not gin.REQUIRED, f"{call.scope}/{call.command}.{name}"
    model = gin.get_configurable("DecoderConfig")()
    assert model.vocab_size == gin.query_parameter("%VOCAB_SIZE")
    lengths = [gin.query_parameter(f"%{n}_LENGTH") for n in ("PAIR", "SEED", "TARGET")]
    assert lengths[0] >= lengths[1] + lengths[2] + 1
    assert gin.query_parameter("%REAL_SHARE") + gin.query_parameter("%SYNTHETIC_SHARE") == 1


def test_the_demo_has_the_text_that_it_asks_for():
    """The synthetic rows of the joint run are read once, and there are enough of them."""
    cli.configure(["experiments/pydocs.gin"], [])
    value = {n: gin.query_parameter(f"%{n}") for n in ("STEPS", "BATCH_SIZE", "ROW_LENGTH")}
    slots = value["STEPS"] * value["BATCH_SIZE"] * gin.query_parameter("%SYNTHETIC_SHARE")
    assert gin.query_parameter("%SYNTHETIC_TOKENS") >= slots * value["ROW_LENGTH"]


def test_the_tasks_of_an_experiment_exist(tmp_path):
    for experiment in EXPERIMENTS:
        gin.clear_config()
        cli.configure([experiment], [f"folder.directory = '{tmp_path}'"])
        (tmp_path / "documents.jsonl").write_text(
            "\n".join(f'{{"text": "document {i} of many"}}' for i in range(200))
        )
        names = ("REAL_TASK", "DEV_TASK", "HELDOUT_TASK")
        for name in names if "folder" in experiment else (*names, "ORACLE_TASK"):
            spec = gin.query_parameter(f"%{name}")
            module, _, attribute = spec.partition(":")
            if "folder" in experiment:
                run = artifacts.Run(tmp_path, "rows")
                assert tasks.resolve(spec, seqio.ByteVocabulary(), run).tasks
            else:
                assert callable(getattr(__import__(module, fromlist=["_"]), attribute))


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_an_experiment_says_what_it_is_for(path):
    head = (GIN / path).read_text().split("\n\n")[0]
    for word in ("# Question:", "# Command:", "# Hardware:"):
        assert word in head


@pytest.mark.parametrize("experiment", EVIDENCE)
def test_an_experiment_of_the_evidence_is_whole(experiment):
    """It says what it asks before it is run, and its design can be made."""
    text = (GIN / experiment).read_text()
    for told in ("# Question:", "# Command:", "# Hardware:", "# Criterion:"):
        assert told in text
    cli.configure([experiment], [])
    bound = gin.get_bindings("experiment")
    assert gin.REQUIRED not in bound.values()
    assert bound["design"].tune_steps > 0
    assert bound["corpus"].inputs is not None
