"""`sbp plan`: programs compiled for slices that are not here, read and judged."""

from __future__ import annotations

import copy
import importlib.util
import json
import pathlib

import gin
import pytest

from sbp_jax import cli
from sbp_jax.errors import UserError
from sbp_jax.pair import cost
from sbp_jax.pair.scann_search import ScannSearch
from sbp_jax.plan import hlo, searches, stage, topology
from sbp_jax.plan.programs import Program, TrainStep, compile_train_step
from sbp_jax.plan.stage import PlanConfig  # noqa: F401  (gin must know it)

MODEL = """
DecoderConfig.vocab_size = 256
DecoderConfig.width = 128
DecoderConfig.layers = 2
DecoderConfig.heads = 2
DecoderConfig.kv_heads = 1
DecoderConfig.head_size = 128
DecoderConfig.hidden = 256
PlanConfig.length = 256
PlanConfig.prompt_length = 16
PlanConfig.max_length = 16
PlanConfig.slots = 4
"""
HLO = """HloModule jit_step, is_scheduled=true

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %fusion.1 = bf16[8,4]{1,0} fusion(%x), backend_config={"estimated_cycles":"100"}
  %all-gather.2 = bf16[16,4]{1,0} all-gather(%fusion.1), dimensions={0}
  ROOT %t = (s32[], bf16[8,4]) tuple(%i, %fusion.1)
}

%condition (p: (s32[], bf16[8,4])) -> pred[] {
  %constant.7 = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %constant.7), direction=LT
}

%little (p: f32[2]) -> f32[2] {
  ROOT %fusion.3 = f32[2]{0} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"7"}
}

%large (p: f32[2]) -> f32[2] {
  ROOT %fusion.4 = f32[2]{0} fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"70"}
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %while.1 = (s32[], bf16[8,4]) while(%init), condition=%condition, body=%body
  %splash_fwd.12 = bf16[8,4]{1,0} custom-call(%a), custom_call_target="tpu_custom_call"
  %all-reduce-start.1 = (f32[10]{0}, s8[6]{0}) all-reduce-start(%a), to_apply=%add
  %cond.1 = f32[2]{0} conditional(%p, %a, %a), branch_computations={%little, %large}
  %top_k.4 = (f32[8,100]{0,1}, s32[8,100]{0,1}) sort(%a, %a), dimensions={1}, to_apply=%less
  %gather.5 = f32[2]{0} fusion(%a), backend_config={"estimated_cycles":"9223372036854775807"}
  ROOT %fusion.9 = f32[2]{0} fusion(%a), kind=kLoop, backend_config={"estimated_cycles":"1000"}
}
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gin").write_text(MODEL)
    return tmp_path


def plan(*arguments: str) -> int:
    gin.clear_config()
    return cli.main(["plan", "--gin_file=model.gin", *arguments])


def test_cycles_and_collectives_are_summed_as_often_as_they_run():
    found = hlo.estimate(HLO)
    assert found.cycles == 5 * 100 + 70 + 1000
    assert found.collectives == {
        "all-gather": hlo.Collective(5, 5 * 128),
        "all-reduce": hlo.Collective(1, 46),
    }
    assert found.kernels == {"splash_fwd": 1}
    # Of 128 places, the 7 doublings of a bitonic network have 1 to 7 stages.
    assert found.compared == 8 * 128 * (1 + 2 + 3 + 4 + 5 + 6 + 7)


def test_a_model_is_planned_for_a_slice(model, capsys):
    search = "--gin.PlanConfig.documents=1_000_000"
    assert plan("--topology=v5e:2x2", "--json", "--hlo=kept", "--verbosity=error", search) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chips"] == 4
    assert found["batch_size"] == 16
    assert found["fits"]
    assert found["hbm_bytes"] == 16 * 2**30
    assert 1e6 < found["bytes_per_chip"] < 1e9
    assert 0 < found["mfu"] < 1
    assert found["step_seconds"] == found["compiler_seconds"] + found["kernel_seconds"]
    assert found["sort_seconds"] == 0
    assert found["kernel_seconds"] > 0
    assert found["collectives"]["all-gather"]["bytes"] > 0
    assert set(found["programs"]) == {"pretrain", "prefill", "decode", "search"}
    assert found["programs"]["search"]["sort_seconds"] > 0
    assert found["searches"]["exact"]["fits"]
    # Six passes of bfloat16 a product of float32, by four chips of 197 TFLOP/s.
    seconds = found["programs"]["search"]["step_seconds"]
    ideal = 6 * 2 * 1e6 * 1024 * 1024 / (4 * 197e12)
    assert ideal < seconds < 4 * ideal
    hours = found["searches"]["exact"]["hours"]
    assert hours == pytest.approx(977 * seconds / 3600)
    assert found["searches"]["exact"]["chip_hours"] == 4 * hours
    assert found["searches"]["scann"]["shards"] == 1
    texts = {path.name: path.read_text() for path in pathlib.Path("kept").iterdir()}
    assert set(texts) == {"train_step.hlo", "prefill.hlo", "decode.hlo", "search.hlo"}
    assert hlo.estimate(texts["train_step.hlo"]).cycles == found["compiler_cycles"]
    assert "splash" in texts["train_step.hlo"]


def test_out_of_memory_is_an_answer(model, capsys):
    def too_large(step, slice_):
        program = compile_train_step(step, slice_)
        assert not program.fits
        assert program.bytes_per_chip > program.hbm_bytes
        return program

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "compile_train_step", too_large)
        wide = ["DecoderConfig.width=8192", "DecoderConfig.hidden=65536", "DecoderConfig.layers=24"]
        bindings = [f"--gin.{binding}" for binding in wide]
        no = Program(fits=False, bytes_per_chip=2, hbm_bytes=1)
        patch.setattr(stage, "compile_sampler", lambda *_: {"prefill": no, "decode": no})
        code = plan("--topology=v5e:2x2", *bindings, "--gin.ComputeConfig.scan_layers=True")
    assert code == 3
    said = capsys.readouterr().out
    assert "NO" in said
    assert "ComputeConfig.remat" in said


def test_a_search_by_scann_is_planned_for_machines_of_a_size():
    corpus = searches.Corpus(582_000_000, 1024, 201)
    found, larger = (
        searches.by_scann(corpus, ScannSearch(), int(size * 1e9)) for size in (128, 512)
    )
    assert found["shards"] > larger["shards"] > 1
    assert found["bytes_per_shard"] <= 128e9
    assert found["core_hours"] > found["build_core_hours"] > 0
    # A tenth of the leaves of all shards: a tenth of 149 GB of hashes for each query.
    hashes = 582e6 * 582e6 * 1024 / 4 / 10 / cost.HASHED / 3600
    assert found["core_hours"] > hashes
    assert found["core_hours"] < 1.5 * hashes
    with pytest.raises(UserError, match=r"host_gigabytes = 0.5: no search fits"):
        searches.by_scann(corpus, ScannSearch(), int(0.5e9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--topology is missing"),
        (
            ["--topology=v5e:2x2", "--gin.PlanConfig.documents=0"],
            "PlanConfig.documents = 0: expected at least 1",
        ),
        (["--topology=v5p:4x4"], "expected one of v4:AxBxC up to 16x16x16, v5e:AxB"),
        (["--topology=v9:2x2"], "--topology=v9:2x2: unknown"),
        (["--topology=v5e:32x16"], "larger than a pod of v5e"),
        (["--topology=v5e:2x2", "--slices=0"], "--slices=0"),
        (["--topology=v5e:3x3"], "choose a size that Cloud TPU offers"),
        (
            [
                "--topology=v5e:2x2",
                "--gin.train.batch_size=6",
                "--gin.train.rows='rows'",
            ],
            "pretrain on v5e:2x2: batch_size = 6 is no multiple of 4",
        ),
        (
            ["--topology=v5e:2x2", "--gin.DecoderConfig.width=126"],
            "its dimension embed of 126 cannot be divided",
        ),
    ],
)
def test_a_mistake_is_one_line(model, capfd, arguments, message):
    assert plan(*arguments) == 2
    (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith("sbp ")]
    assert message in line


def test_an_experiment_is_planned_stage_by_stage(model):
    from sbp_jax.plan import stage

    pathlib.Path("experiment.gin").write_text(
        MODEL
        + """
include 'stages/bootstrap.gin'
VOCAB_SIZE = 256
ROW_LENGTH = 512
PAIR_LENGTH = 1024
SEED_LENGTH = 100
TARGET_LENGTH = 200
STEPS = 1000
BATCH_SIZE = 32
REAL_TASK = 'a'
ORACLE_TASK = 'b'
DEV_TASK = 'c'
HELDOUT_TASK = 'd'
SYNTHETIC_TOKENS = 5
REAL_SHARE = 0.5
SYNTHETIC_SHARE = 0.5
SEED = 0
RUN_DIR = 'x'
OptimizerConfig.learning_rate = 1e-3
pair.alpha = 0.5
tune/train.steps = 10
joint/train.steps = None
joint/train.rows = {'rows/real': 3_000_000, 'rows/synthetic': 1_096_000}
"""
    )
    gin.clear_config()
    cli.configure(["experiment.gin"], [])
    trainings = stage._trainings(topology.parse("v5e:2x2"))
    assert list(trainings) == ["pretrain", "tune", "joint", "oracle"]
    assert {name: training.steps for name, training in trainings.items()} == {
        "pretrain": 1000,
        "tune": 10,
        "joint": 250,  # of 32 × 512 tokens
        "oracle": 1000,
    }
    lengths = {name: training.step.length for name, training in trainings.items()}
    assert lengths == {"pretrain": 512, "tune": 1024, "joint": 512, "oracle": 512}
    assert trainings["pretrain"].step == trainings["joint"].step
    assert isinstance(trainings["tune"].step, TrainStep)
    assert stage._sampler().prompt_length == 102


def test_a_slice_of_a_name_and_its_chips():
    found = topology.parse("v5p:4x4x4", slices=2)
    assert found.chips == 128
    assert str(found) == "2 × v5p:4x4x4"
    with pytest.raises(UserError, match="unknown"):
        topology.parse("v5p")


@pytest.mark.parametrize("price", [None, 2.5])
def test_a_stage_costs_its_steps_on_all_chips(price):
    gin.bind_parameter("PlanConfig.price", price)
    step = TrainStep(None, None, None, None, batch_size=8, length=100)
    program = Program(fits=True, bytes_per_chip=1, hbm_bytes=2, seconds=3.6)
    found = stage._budget(stage.Training(step, steps=500), program, topology.parse("v5e:4x4", 2))
    assert found == {
        "steps": 500,
        "tokens": 500 * 8 * 100,
        "hours": pytest.approx(0.5),
        "chip_hours": pytest.approx(0.5 * 32),
        "dollars": price and pytest.approx(0.5 * 32 * 2.5),
    }


@pytest.fixture(scope="module")
def slices():
    """The benchmark that compiles the shipped models for slices."""
    path = pathlib.Path(__file__).parent.parent / "benchmarks/tpu.py"
    spec = importlib.util.spec_from_file_location("tpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_slices_says_what_was_compiled(slices):
    kept = json.loads(slices.KEPT.read_text())
    assert slices.PAGE.read_text() == slices.page(kept)
    known = [*slices.CASES, *slices.SAMPLINGS]
    assert set(slices.CHECKED) <= set(kept) <= {case.name for case in known}
    for name, found in kept.items():
        assert found.get("programs", {}).get("pretrain", found)["fits"], name


def test_no_chip_copies_the_samplers_cache(slices):
    kept = json.loads(slices.KEPT.read_text())
    for case in slices.SAMPLINGS:
        found = kept[case.name]
        assert set(found["operations_on_the_cache"]) <= {
            "parameter",
            "bitcast",
            "scatter",
            "fusion",
        }
        assert found["temporary_bytes"] < 0.02 * found["cache_bytes"]
        bar = 1.8 if case.topology.startswith("v5p") else 1.5
        assert found["step_seconds"] < bar * found["bound_seconds"]


@pytest.mark.parametrize(("change", "count", "told"), [(1.04, 0, 0), (1.06, 0, 1), (1.0, 1, 1)])
def test_a_step_that_grew_or_talks_more_is_told(slices, change, count, told):
    kept = json.loads(slices.KEPT.read_text())["sbp_3b on v5p:4x4x4"]
    found = copy.deepcopy(kept)
    train = found["programs"]["pretrain"]
    train["bytes_per_chip"] = int(train["bytes_per_chip"] * change)
    train["collectives"]["all-reduce"]["count"] += count
    assert len(slices.differences(kept, found)) == told
