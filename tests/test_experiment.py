"""A whole experiment on a little world: what arms read, what is chosen, that it can be redone."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import time
import types

import jax
import numpy as np
import pytest
from etils import epath

from sbp_jax import artifacts
from sbp_jax.data.concept_world import ConceptDocuments, ConceptWorld
from sbp_jax.errors import UserError
from sbp_jax.experiment import checks, page, stage, statistics
from sbp_jax.experiment.corpora import ConceptCorpus, TextCorpus
from sbp_jax.experiment.design import BASE, SYNTHESIZER, Design, Sweep
from sbp_jax.experiment.design import CORPUS as OF_CORPUS
from sbp_jax.experiment.fitting import Settings
from sbp_jax.experiment.memory import Memory
from sbp_jax.experiment.results import collect
from sbp_jax.experiment.study import ARMS, CONTROLS, FURTHER, Choices, Study, SynthesizerSettings
from sbp_jax.model.compute import ComputeConfig
from sbp_jax.model.decoder import DecoderConfig
from sbp_jax.pair.embedders import ActivationEmbedder, TfidfEmbedder
from sbp_jax.parallel.mesh import MeshConfig, make_layout
from sbp_jax.synthesize.schedule import document_keys
from sbp_jax.train.optimizer import OptimizerConfig

pytestmark = pytest.mark.usefixtures("compiled_quickly")

WORLD = ConceptWorld(concepts=20, attributes=3, values=4, genres=3, phrasings=2, recap=1)
CORPUS = ConceptCorpus(
    ConceptDocuments(WORLD, documents_per_concept=3, dev_documents=20, heldout_documents=24)
)
LENGTH = WORLD.length + 1
DESIGN = Design(
    model=DecoderConfig(
        vocab_size=1,
        width=16,
        layers=1,
        heads=1,
        kv_heads=1,
        head_size=16,
        hidden=32,
        dtype="float32",
    ),
    row_length=4 * LENGTH,
    batch_size=8,
    passes=8.0,
    share=0.25,
    pair_length=2 * LENGTH + 2,
    seed_length=WORLD.length,
    target_length=LENGTH,
    tune_steps=6,
    tune_batch_size=8,
    embedder=TfidfEmbedder(max_document_frequency=0.1, dimensions=32),
    alpha=0.5,
    neighbours=10,
    near_duplicates=None,
    slots=16,
)
GRID = {"learning_rate": [1e-2], "dropout": [0.0, 0.5]}
SYNTHESIZER_GRID = {"start": [0.5, 1.0], "learning_rate": [1e-2]}
SETTINGS = Settings(1e-2)
CHOICES = Choices(
    dict.fromkeys((*ARMS, *CONTROLS, *FURTHER), SETTINGS),
    {
        kind: SynthesizerSettings(1.0, SETTINGS)
        for kind in ("related", "random", "scratch", "second")
    },
)
PROGRAMS: dict = {}  # compiled once for all studies here
OPTIMIZER = OptimizerConfig(learning_rate=1.0)


def run_in(directory) -> artifacts.Run:
    return artifacts.Run(epath.Path(directory), "experiment")


def study_in(directory, seed=0, **changes) -> Study:
    return Study(
        run_in(directory),
        CORPUS,
        dataclasses.replace(DESIGN, **changes),
        OPTIMIZER,
        seed,
        make_layout(MeshConfig(), jax.devices()[:1]),
        ComputeConfig(scan_layers=False),
        4,
        Memory(epath.Path(directory) / "memory"),
        PROGRAMS,
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return study_in(tmp_path_factory.mktemp("study"))


def experiment(directory, **changes) -> dict:
    arguments = {
        "question": "Does it work?",
        "criterion": "It works.",
        "corpus": CORPUS,
        "design": DESIGN,
        "optimizer": OPTIMIZER,
        "grid": GRID,
        "synthesizer_grid": SYNTHESIZER_GRID,
        "sweeps": [Sweep("share", [{"share": 0.5}])],
        "seeds": [0, 1],
        "evaluations": 2,
        "mesh": MeshConfig(),
        "compute": ComputeConfig(scan_layers=False),
        **changes,
    }
    stage.experiment(run_in(directory), **arguments)
    return json.loads((directory / "experiment" / stage.RESULT).read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = tmp_path_factory.mktemp("experiment")
    return directory, experiment(directory)


@pytest.fixture(scope="module", autouse=True)
def _one_device():
    """What is trained here is too small for eight devices, each program of which takes longer."""
    one = functools.partial(make_layout, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "make_layout", one)
        yield


@pytest.mark.parametrize("name", [*ARMS, *CONTROLS, *FURTHER])
def test_arms_read_equally_many_rows_and_no_synthetic_one_twice(study, name):
    fit = study.arm(name, CHOICES)
    real = fit.passes.pop("real", 0.0)
    assert all(passes <= 1 for passes in fit.passes.values())
    assert np.isfinite(fit.losses["heldout"])
    if name == "oracle":
        assert not real
    elif name == "repetition_charged":
        assert real > 8
    else:
        share = 0 if name == "repetition" else DESIGN.share
        assert real == pytest.approx(8 * (1 - share), abs=0.3)


def test_arms_of_a_seed_start_from_the_same_parameters(study):
    """With next to no learning rate an arm's loss stays that of its first parameters."""
    names = ("repetition", "sbp", "oracle", "augmentation")
    losses = [study._train(name, CHOICES, Settings(1e-9)).dev_loss for name in names]
    assert losses == pytest.approx([losses[0]] * len(names), abs=1e-5)


def test_a_fit_is_taken_where_its_development_loss_was_least(study):
    few = study._packed("real", (text.tokens for text in study.splits.train[:6]))
    fit = study.trainer.fit([(few, 1.0)], 100, Settings(3e-2), 0, study.dev, {"dev": study.dev})
    losses = {tokens // (DESIGN.batch_size * DESIGN.row_length): loss for tokens, loss in fit.curve}
    assert losses[100] > min(losses.values())  # it overfits, or nothing would be shown
    assert fit.dev_loss == min(losses.values()) == losses[fit.step]
    assert fit.losses["dev"] == fit.dev_loss


def test_what_is_reported_of_an_arm_is_its_loss_of_heldout_documents(study):
    fit = study.arm("repetition", CHOICES)
    assert fit.losses["heldout"] == pytest.approx(study.trainer.loss(fit.parameters, study.heldout))
    assert fit.losses["heldout"] != pytest.approx(study.trainer.loss(fit.parameters, study.dev))


def test_a_synthetic_document_is_what_its_lineage_gives_again(study):
    written = study.corpus("sbp", CHOICES)
    seeds = {text.id: text.tokens for text in study.splits.train}
    assert len({one.id for one in written}) == len(written)
    one = written[5]
    prompt = [study.splits.bos, *seeds[one.seed_id], study.splits.eos]
    key = np.frombuffer(bytes.fromhex(one.key), ">u4").astype(np.uint32)
    assert (document_keys(study.seed, [one.seed_id], [one.sample]) == key).all()
    parameters = study.synthesizer("related", CHOICES).parameters
    assert study.sample(parameters, [prompt], key[None]) == [(one.finish_reason, one.tokens)]


def test_pairs_are_of_one_concept_far_more_often_than_chance(study):
    pairing = study.pairing(CHOICES)
    about = study.splits.about
    same = np.mean([about[seed] == about[target] for seed, target in pairing.train])
    assert same > 0.5
    assert all(seed != target for seed, target in pairing.train)


def test_the_base_models_own_activations_find_pairs(tmp_path):
    own = study_in(tmp_path, embedder=ActivationEmbedder(), alpha=0.0)
    assert len(own.pairing(CHOICES).train) > 20


def test_random_pairs_have_the_targets_of_the_related_ones(study, monkeypatch):
    seen = {}

    def watch(name, pairs, targets):
        seen.setdefault(name, pairs)
        return original(name, pairs, targets)

    original = study._pair_rows
    monkeypatch.setattr(study, "_pair_rows", watch)
    study._tune("random", CHOICES, CHOICES.synthesizers["random"])
    related = study.pairing(CHOICES).train
    assert [target for _, target in seen["pairs"]] == [target for _, target in related]
    assert seen["pairs"] != related


def test_shuffled_seeds_keep_lengths_and_tokens_of_all(study):
    plain, dealt = study._seeds("sbp"), study._seeds("shuffled_seeds")
    assert [len(one) for one in plain] == [len(one) for one in dealt]
    assert sorted(itertools.chain(*plain)) == sorted(itertools.chain(*dealt))
    assert plain != dealt


def test_augmented_rows_change_inputs_alone(study):
    rows = study._augmented(study.real.source.rows)
    order = np.lexsort(rows.rows.targets.T)
    real = np.lexsort(study.real.rows.targets.T)
    assert np.array_equal(rows.rows.targets[order], study.real.rows.targets[real])
    inside = rows.rows.positions[order] > 0
    changed = rows.rows.inputs[order] != study.real.rows.inputs[real]
    assert changed[~inside].sum() == 0
    assert 0.5 * DESIGN.augmentation < changed[inside].mean() < 1.1 * DESIGN.augmentation


def test_a_leak_of_heldout_text_is_seen(study, monkeypatch):
    clean = checks.leakage(study, "sbp", CHOICES)
    assert clean["seeds_in_train"] == 1
    assert clean["difference"]["low"] <= 0 <= clean["difference"]["high"]
    written = study.corpus("sbp", CHOICES)
    leaked = [
        one._replace(tokens=text.tokens, seed_id="elsewhere")
        for one, text in zip(written, study.splits.heldout, strict=False)
    ]
    monkeypatch.setattr(study, "corpus", lambda *_: leaked)
    found = checks.leakage(study, "sbp", CHOICES)
    assert found["difference"]["low"] > 0
    assert found["seeds_in_train"] == 0


def test_a_few_leaked_documents_are_seen(study, monkeypatch):
    """Of so many n-grams theirs are few; but most of each is there."""
    world, written = study.splits.world, study.corpus("sbp", CHOICES)
    plain = checks.leakage(study, "sbp", CHOICES)["whole"]
    assert plain["difference"]["low"] <= 0
    few = study.splits.heldout[::4]
    assert len({world.named(text.tokens) for text in few}) > 1
    more = [written[0]._replace(tokens=text.tokens) for text in few]
    monkeypatch.setattr(study, "corpus", lambda *_: [*written, *more])
    found = checks.leakage(study, "sbp", CHOICES)["whole"]
    assert found["heldout"] >= len(few) / len(study.splits.heldout)
    assert found["difference"]["low"] > 0


def test_text_that_is_mostly_copied_is_counted(study):
    one = study.corpus("sbp", CHOICES)[0]
    first, second = ([*range(start, start + 40)] for start in (100, 200))
    cut = checks.RUN // 2
    for tokens, share in (
        (first, 1.0),  # a copy
        (first[:30] + second[:10], 1.0),  # most of one
        (first[: checks.RUN + 1] + second[: checks.RUN + 1], 0.0),  # four runs of sixteen
        ((first[:cut] + second[:cut]) * 3, 0.0),  # none of so long a run
        (first[: checks.RUN - 1], 0.0),
    ):
        assert checks._mostly_copied([one._replace(tokens=tokens)], [first, second]) == share


def test_documents_of_one_concept_are_resampled_together(study):
    world = study.splits.world
    texts = study.splits.heldout
    counts = checks._shared(texts, set(), checks._ngrams([texts[0].tokens]), world)
    assert len(counts) == len({world.named(text.tokens) for text in texts}) < len(texts)
    assert len(checks._shared(texts, set(), set(), None)) == len(texts)
    assert counts[:, 0].sum() == sum(len(checks._ngrams([text.tokens])) for text in texts)
    assert counts[:, 1].sum() == len(checks._ngrams([texts[0].tokens]))
    assert counts[:, 2].sum() == len(texts)
    assert counts[:, 3].sum() >= 1


def test_what_is_chosen_has_the_least_development_loss_of_all_that_was_tried(results):
    _, result = results
    for name, tried in result["tuning"].items():
        best = min(tried, key=lambda one: one["dev_loss"])
        arm = result["arms"].get(name) or result["controls"][name]
        assert {**arm["settings"], "dev_loss": best["dev_loss"]} == best
        assert len(tried) == 2
    assert result["oracle_gain_recovered"] == result["arms"]["sbp"]["oracle_gain_recovered"]
    assert len(result["sweeps"]["share"][0]["arms"]["sbp"]["by_seed"]) == 2
    assert len(set(result["arms"]["sbp"]["by_seed"])) == 2


def test_settings_are_best_in_the_mean_of_the_tuning_seeds():
    """Each seed has a favourite of its own, by luck; what both can live with is chosen."""
    tried = [Settings(rate) for rate in (1e-3, 2e-3, 3e-3)]
    starts = [SynthesizerSettings(0.5, one) for one in tried]

    def made(own):
        """A study of a seed with these development losses."""

        def fit(one):
            return types.SimpleNamespace(dev_loss=own[tried.index(one)])

        return types.SimpleNamespace(
            arm=lambda name, choices, one: fit(one),
            synthesizer=lambda kind, choices, one: fit(one.fit),
        )

    studies = [made((1.0, 1.2, 1.9)), made((1.9, 1.2, 1.0))]
    names = ["repetition", "sbp", "oracle"]
    chosen = stage.tune(studies, names, tried, starts)
    assert chosen.arms == dict.fromkeys(names, tried[1])
    assert chosen.synthesizers == {"related": starts[1]}
    told = stage._of_tuning(studies, ["sbp"], chosen, tried)["sbp"]
    assert [one["dev_loss"] for one in told] == pytest.approx([1.45, 1.2, 1.45])
    alone = stage.tune(studies[:1], names, tried, starts)
    assert {*alone.arms.values(), alone.synthesizers["related"].fit} == {tried[0]}


def test_what_an_experiment_leaves_is_what_the_page_of_results_takes_in(results):
    directory, result = results
    name, entry = collect(directory / "experiment")
    assert name == directory.name
    assert {key: entry[key] for key in result} == result
    assert entry["seconds"] > 0
    assert "core" in entry["machine"]
    told = page.render({name: entry}, stem="results")["results.md"]
    for arm in result["arms"].values():
        assert f"{arm['heldout_loss']['mean']:.4f} ± " in told


def test_an_experiment_that_was_cut_off_gives_the_same_bytes(results, tmp_path, monkeypatch):
    directory, _ = results
    trained = []

    class Cut(Exception):
        pass

    original = Study._train

    def train(self, *arguments):
        if len(trained) == 7:
            raise Cut
        trained.append(arguments)
        return original(self, *arguments)

    monkeypatch.setattr(Study, "_train", train)
    began = time.monotonic()
    with pytest.raises(Cut):
        experiment(tmp_path)
    took = time.monotonic() - began
    work = artifacts.partial_directory(tmp_path / "experiment")
    spent = json.loads((work / artifacts.IDENTITY).read_text())["seconds"]
    assert took / 2 < spent < took  # all but what was in hand when it was cut off
    monkeypatch.setattr(Study, "_train", original)
    experiment(tmp_path)
    assert artifacts.read_manifest(tmp_path / "experiment").seconds > spent
    ours, theirs = (d / "experiment" / stage.RESULT for d in (tmp_path, directory))
    assert ours.read_bytes() == theirs.read_bytes()


def test_another_design_is_refused_and_nothing_overwritten(results):
    directory, _ = results
    with pytest.raises(UserError, match="passes"):
        experiment(directory, design=dataclasses.replace(DESIGN, passes=9.0))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"arms": ["sbp", "oracle"]}, "repetition"),
        ({"controls": ["rephrased"]}, "rephrased"),
        ({"seeds": [1000]}, "tuning_seeds"),
        ({"tuning_seeds": []}, "tuning_seeds"),
        ({"corpus": TextCorpus(), "controls": ["ideal"]}, "ideal"),
        ({"sweeps": [Sweep("depth", [{"model.depth": 3}])]}, "depth"),
        ({"sweeps": [Sweep("share", [{"share": 1.5}])]}, "share"),
        ({"sweeps": [Sweep("share", [{"share": 0.1}], ["spb"])]}, "spb"),
        ({"synthesizer_grid": {"start": [0.0], "learning_rate": [1e-2]}}, "start"),
        ({"sweeps": [Sweep("share", [{"alpha": 1.5}])]}, "alpha"),
        ({"sweeps": [Sweep("share", [])]}, "changes nothing"),
        ({"sweeps": [Sweep("share", [{"share": 0.1}])] * 2}, "share is there twice"),
        ({"sweeps": [Sweep("share", [{"share": 0.1}], ["second_round"])]}, "second_round"),
        ({"arms": ["repetition", "oracle"], "controls": ["sbp"]}, "controls"),
        ({"arms": ["repetition", "repetition"]}, "once"),
        ({"seeds": [-1]}, "seeds"),
        ({"evaluations": 0}, "evaluations"),
        ({"least_share": 42}, "least_share"),
        ({"least_seeds_ahead": 3}, "least_seeds_ahead"),
        ({"grid": {"learning_rate": []}}, "learning_rate"),
        ({"grid": {"learning_rate": [1e-2], "dropout": [1.0]}}, "dropout"),
        ({"synthesizer_grid": {"start": [], "learning_rate": [1e-2]}}, "start"),
        ({"grid": {"dropout": [0.0]}}, "learning_rate"),
        ({"grid": {"learning_rate": [1e-2], "momentum": [0.9]}}, "momentum"),
    ],
)
def test_a_mistake_is_named(tmp_path, changes, named):
    with pytest.raises(UserError, match=named):
        experiment(tmp_path, **changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("passes", -1.0),
        ("passes", float("nan")),
        ("alpha", 1.5),
        ("top_p", 1.5),
        ("temperature", 0.0),
        ("neighbours", 0),
        ("slots", 0),
        ("tune_steps", 0),
        ("max_pairs_per_document", 0),
        ("near_duplicates", 2.0),
        ("augmentation", 1.0),
    ],
)
def test_a_design_out_of_range_is_refused(name, value):
    with pytest.raises(UserError, match=f"Design.{name} = "):
        dataclasses.replace(DESIGN, **{name: value})


def test_a_sweep_that_cannot_be_made_leaves_the_rest(results, tmp_path):
    """The other changes and all arms are worth hours."""
    _, result = results
    changes = [{"embedder": TfidfEmbedder(min_documents=10**6)}, {"share": 0.5}]
    found = experiment(tmp_path, sweeps=[Sweep("embedder", changes, retune=True)])
    first, second = found["sweeps"]["embedder"]
    assert "no word stands in" in first["failed"]
    assert not first["arms"]
    assert "failed" not in second
    assert second["arms"]["sbp"]["by_seed"]
    assert found["arms"] == result["arms"]


def test_a_damaged_file_of_what_was_computed_is_named(tmp_path):
    memory = Memory(epath.Path(tmp_path))
    memory.record("pairs", lambda: [1, 2])
    (tmp_path / "pairs.json").write_text("[1,")
    (tmp_path / "arm.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match=r"pairs\.json is damaged"):
        memory.record("pairs", lambda: [1, 2])
    with pytest.raises(UserError, match=r"arm\.npz is damaged"):
        memory.fit("arm", lambda: None)


def test_a_change_makes_anew_what_hangs_on_it_and_nothing_else(tmp_path):
    names = {
        name: {
            "base": other._name("arms", "repetition", BASE),
            "synthesizer": other._name("synthesizers", "related", SYNTHESIZER),
            "corpus": other._name("corpora", "sbp", OF_CORPUS),
        }
        for name, other in {
            "same": study_in(tmp_path),
            "share": study_in(tmp_path, share=0.5),
            "alpha": study_in(tmp_path, alpha=0.2),
            "passes": study_in(tmp_path, passes=9.0),
        }.items()
    }
    same = names.pop("same")
    kept = {name: {k for k in same if same[k] == other[k]} for name, other in names.items()}
    assert kept == {"share": {"base", "synthesizer"}, "alpha": {"base"}, "passes": set()}


def test_a_sweep_changes_the_design_and_its_model():
    changed = DESIGN.changed({"share": 0.5, "model.width": 32})
    assert (changed.share, changed.model.width, changed.model.layers) == (0.5, 32, 1)
    with pytest.raises(UserError, match=r"model\.depth"):
        DESIGN.changed({"model.depth": 3})


def test_means_have_the_interval_of_students_t():
    found = statistics.mean_and_interval([1.0, 2.0, 3.0])
    # t at 97.5% with two degrees of freedom is 4.302653.
    assert found["standard_error"] == pytest.approx(1 / 3**0.5)
    assert found["high"] - found["mean"] == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert statistics.mean_and_interval([1.0])["low"] is None


def test_the_share_recovered_is_of_each_seeds_own_oracle():
    found = statistics.gain_recovered([2.0, 3.0], [1.5, 2.0], [1.0, 1.0])
    assert found["by_seed"] == [0.5, 0.5]
    assert statistics.gain_recovered([1.0], [0.5], [1.0])["mean"] is None
