"""What d1 is worth: other documents are others, losses are the training's, bands partition."""

from __future__ import annotations

import itertools
import json

import jax
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from flax import nnx
from made_rows import small_model, write_rows_artefact

from sbp_jax import artifacts
from sbp_jax.checkpoints import CHECKPOINTS, load_parameters, save_parameters
from sbp_jax.data import rows as row_format
from sbp_jax.data import vocabularies
from sbp_jax.data.rows import Row
from sbp_jax.errors import UserError
from sbp_jax.evaluate import conditioning as module
from sbp_jax.evaluate import piece_losses
from sbp_jax.evaluate.conditioning import TextPair, conditioning
from sbp_jax.model.decoder import initialise
from sbp_jax.pair.stage import PAIRS
from sbp_jax.parallel.mesh import MeshConfig, make_layout
from sbp_jax.report.results import read_conditioning
from sbp_jax.train.step import make_evaluation_step, parameter_shardings

VOCABULARY = vocabularies.Bytes()
MODEL = small_model(VOCABULARY.size, layers=2)
SEED_LENGTH, TARGET_LENGTH = 20, 150


def made_pairs(count: int = 30) -> list[TextPair]:
    """Pairs of 10 seeds and 6 targets; some texts are longer than the limits."""
    rng = np.random.default_rng(0)
    seeds = [f"seed {n} " + "s" * (3 * n) for n in range(10)]
    targets = [f"target {n} " + "t" * (40 * n) for n in range(6)]
    drawn = rng.permutation(60)[:count].tolist()
    return [
        TextPair(f"d{n % 10}", f"e{n // 10}", float(s), seeds[n % 10], targets[n // 10])
        for n, s in zip(drawn, rng.random(count), strict=True)
    ]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    directory = epath.Path(tmp_path_factory.mktemp("run"))
    write_rows_artefact(directory, "rows/tokens", {"t": [[5] * 4]})
    # As imported: untrained, with random weights, which is all that losses are compared on.
    stage = artifacts.begin(
        artifacts.Run(directory, "tune"), "train", config={"model": MODEL}, inputs={}, code=()
    )
    parameters = jax.jit(lambda key: nnx.to_pure_dict(nnx.state(initialise(MODEL, key))))(
        jax.random.key(0)
    )
    save_parameters(stage.work / CHECKPOINTS, parameters)
    stage.commit({})
    stage = artifacts.begin(
        artifacts.Run(directory, "vocab"), "vocab", config={}, inputs={}, code=()
    )
    artifacts.write_atomic(stage.work / vocabularies.BYTES_FILE, "")
    stage.commit({})
    stage = artifacts.begin(
        artifacts.Run(directory, "pairs_dev"), "pair", config={}, inputs={}, code=()
    )
    writer = ArrayRecordWriter(str(stage.work / PAIRS), "group_size:1")
    for pair in made_pairs():
        record = pair._asdict()
        record["inputs"], record["targets"] = record.pop("seed"), record.pop("target")
        writer.write(json.dumps(record).encode())
    writer.close()
    stage.commit({})
    return directory


def scored(directory, scope="conditioning", **changes):
    options = {"seed_length": SEED_LENGTH, "target_length": TARGET_LENGTH, "step": "last"}
    options["batch_size"] = jax.device_count()
    conditioning(artifacts.Run(directory, scope), **{**options, **changes})
    return json.loads((directory / scope / "scores.json").read_text())


def test_other_documents_are_really_others():
    every = made_pairs(50)  # of 60 possible ones: few are left to draw from
    chosen = every[:20]
    for seed in range(20):
        others = module.draw_others(chosen, every, np.random.default_rng(seed))
        assert len(others) == len(chosen)
        for pair, other in zip(chosen, others, strict=True):
            related = {p.seed for p in every if p.target_id == pair.target_id}
            assert other not in related
            assert other in {p.seed for p in every}
    with pytest.raises(UserError, match="every seed is related to 'e"):
        module.draw_others(chosen, made_pairs(60), np.random.default_rng(0))


def test_a_target_is_not_read_before_itself():
    # One corpus: the target is a seed of others too, and a copy of it has another id.
    every = [
        TextPair("a", "b", 0.9, "text a", "text b"),
        TextPair("b", "a", 0.9, "text b", "text a"),
        TextPair("copy", "c", 0.9, "text b", "text c"),
        TextPair("other", "c", 0.9, "text d", "text c"),
    ]
    for seed in range(20):
        assert module.draw_others(every[:1], every, np.random.default_rng(seed)) == ["text d"]


def test_all_conditions_have_loss_on_the_same_tokens():
    pairs = made_pairs()
    others = module.draw_others(pairs, pairs, np.random.default_rng(0))
    found = module.pieces_of(pairs, others, VOCABULARY, SEED_LENGTH, TARGET_LENGTH)
    for number, pair in enumerate(pairs):
        d2 = [*VOCABULARY.encode(pair.target), VOCABULARY.eos][:TARGET_LENGTH]
        for name, d1 in (("related", pair.seed), ("random", others[number]), ("alone", None)):
            piece = found[name][number]
            assert piece.targets[piece.loss_from :].tolist() == d2
            read = [piece.first, *piece.targets[: piece.loss_from].tolist()]
            bos, eos = VOCABULARY.bos, VOCABULARY.eos
            ids = None if d1 is None else VOCABULARY.encode(d1)[:SEED_LENGTH]
            assert read == ([bos] if ids is None else [bos, *ids, eos])


def test_losses_are_those_of_the_training(run_directory):
    scores = scored(run_directory)
    pairs = module.read_pairs(run_directory / "pairs_dev")
    layout = make_layout(MeshConfig())
    step = make_evaluation_step(MODEL, layout)
    shardings = parameter_shardings(MODEL, layout)
    parameters, _ = load_parameters(run_directory / "tune", None, "last", shardings)
    row_losses = piece_losses.make_row_losses(MODEL, layout)
    total = weight = 0.0
    length = SEED_LENGTH + 1 + TARGET_LENGTH
    for pair in pairs:
        piece = row_format.pair_piece(
            VOCABULARY.encode(pair.seed),
            VOCABULARY.encode(pair.target),
            VOCABULARY.bos,
            VOCABULARY.eos,
            SEED_LENGTH,
            TARGET_LENGTH,
        )
        row = row_format.decode(row_format.encode([piece], MODEL.vocab_size), length, 259)
        padding = row_format.empty_rows(jax.device_count() - 1, length)
        batch = Row(*(np.concatenate([x[None], y]) for x, y in zip(row, padding, strict=True)))
        batch = jax.device_put(batch, layout.sharding("batch"))
        trained = step(parameters, batch)
        nats_B = row_losses(parameters, batch)
        assert float(nats_B[0]) == pytest.approx(float(trained.loss), 1e-5)
        assert not nats_B[1:].any()
        total, weight = total + float(trained.loss), weight + float(trained.weight)
    # Of all of them, together: the mean over tokens, not over pairs.
    assert scores["pairs"] == len(pairs)
    assert scores["tokens"] == weight
    assert scores["related"] == pytest.approx(total / weight, 1e-5)


def test_the_scores_do_not_depend_on_the_batch(run_directory):
    one = scored(run_directory)
    other = scored(run_directory, "other", batch_size=3 * jax.device_count())
    assert {k: other[k] for k in module.CONDITIONS} == pytest.approx(
        {k: one[k] for k in module.CONDITIONS}, 1e-6
    )
    part = scored(run_directory, "part", pairs_at_most=7)
    assert part["pairs"] == sum(band["pairs"] for band in part["bands"]) == 7


def test_bands_partition_the_pairs(run_directory):
    scores = scored(run_directory)
    bands = scores["bands"]
    assert len(bands) == module.BANDS
    similarities = sorted(p.similarity for p in made_pairs())
    covered = [[s for s in similarities if band["low"] <= s <= band["high"]] for band in bands]
    assert [len(one) for one in covered] == [band["pairs"] for band in bands]
    assert list(itertools.chain.from_iterable(covered)) == similarities
    assert max(band["pairs"] for band in bands) - min(band["pairs"] for band in bands) <= 1
    assert sum(band["tokens"] for band in bands) == scores["tokens"]
    for name in (*module.CONDITIONS, "gain"):
        mean = sum(band[name] * band["tokens"] for band in bands) / scores["tokens"]
        assert mean == pytest.approx(scores[name], abs=1e-9)
    read = read_conditioning(run_directory / "conditioning")
    assert [band.pairs for band in read] == [*(band["pairs"] for band in bands), scores["pairs"]]
    assert (read[-1].low, read[-1].gain) == (None, scores["gain"])


def test_equal_similarities_are_one_band_and_a_lone_target_has_no_error():
    pairs = [TextPair(f"d{n}", "e", 0.5, f"s{n}", "t") for n in range(3)]
    nats = {"related": np.ones(3), "random": np.full(3, 3.0), "alone": np.full(3, 2.0)}
    found = module.summary(pairs, nats, np.full(3, 2))
    assert [band["pairs"] for band in found["bands"]] == [3]
    assert (found["gain"], found["gain_error"], found["won"]) == (1.0, None, 1.0)


def test_the_error_is_that_of_independent_targets():
    rng = np.random.default_rng(0)
    gains = rng.normal(0.3, 1.0, 400)
    once = [TextPair("d", f"e{n}", n / 400, "s", "t") for n in range(400)]
    found = module.summary(
        once, {"related": -gains, "random": 0 * gains, "alone": 0 * gains}, np.ones(400, int)
    )
    assert found["gain"] == pytest.approx(gains.mean())
    assert found["gain_error"] == pytest.approx(gains.std(ddof=1) / 20, rel=1e-6)
    # The same targets four times say no more about it.
    nats = {"related": np.tile(-gains, 4), "random": np.zeros(1600), "alone": np.zeros(1600)}
    again = module.summary(once * 4, nats, np.ones(1600, int))
    assert again["gain_error"] == pytest.approx(found["gain_error"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed_length": 0}, "conditioning.seed_length = 0: expected at least 1"),
        ({"pairs_at_most": 0}, "conditioning.pairs_at_most = 0"),
        ({"pairs": "rows/tokens"}, "holds no pairs: name an artefact of `sbp pair`"),
        ({"pairs": "nothing"}, "nothing"),
        ({"batch_size": 0}, "batch_size = 0"),
    ],
)
def test_mistakes_are_told_in_a_line(run_directory, options, message):
    with pytest.raises(UserError, match=message):
        scored(run_directory, "wrong", **options)
    assert not (run_directory / "wrong").exists()
