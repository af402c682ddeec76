"""The sampler, its schedule and its filters: one corpus, however it was written."""

from __future__ import annotations

import collections
import dataclasses
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from made_rows import (
    TEXTS,
    VOCAB_SIZE,
    Reference,
    sentences,
    write_model,
    write_rows_artefact,
    write_text_run,
)

from sbp_jax import artifacts
from sbp_jax.data import documents, vocab, vocabularies
from sbp_jax.data.rows import open_rows
from sbp_jax.errors import UserError
from sbp_jax.model.decoder import DecoderConfig, initialise
from sbp_jax.synthesize import filters, shards
from sbp_jax.synthesize.filters import FilterConfig
from sbp_jax.synthesize.sampler import Sampler, SamplerConfig
from sbp_jax.synthesize.schedule import Plan, Request, Slots, document_keys
from sbp_jax.synthesize.seeds import Seeds
from sbp_jax.synthesize.stage import check_synthesizer, synthesize
from sbp_jax.text.shingles import shingles
from sbp_jax.train.optimizer import OptimizerConfig
from sbp_jax.train.stage import train

EOS = 1
MODEL = DecoderConfig(
    vocab_size=64, width=16, layers=2, heads=4, kv_heads=2, head_size=8, hidden=32, dtype="float32"
)
SAMPLER = SamplerConfig(
    prompt_length=12,
    max_length=20,
    temperature=0.9,
    top_p=0.9,
    eos=EOS,
    never=(0, 2, 3),
    slots=16,
    prefill_rows=16,
    block=4,
)


def parameters(seed: int = 0, model: DecoderConfig = MODEL):
    """Random, and larger than at the start of training, so that logits differ."""
    made = nnx.to_pure_dict(nnx.state(initialise(model, jax.random.key(seed))))
    return jax.tree.map(lambda a: 1.5 * a if a.ndim > 1 else a, made)


def training_forward() -> Reference:
    return Reference(MODEL, parameters(), SAMPLER.prompt_length + SAMPLER.max_length)


def requests(count: int) -> list[Request]:
    rng = np.random.default_rng(0)
    prompts = [[3, *rng.integers(4, 64, rng.integers(0, 10)).tolist(), EOS] for _ in range(count)]
    keys = document_keys(5, [f"document {i}" for i in range(count)], [i % 3 for i in range(count)])
    return [Request(i, prompts[i], keys[i]) for i in range(count)]


def sampled(devices: int = 1, count: int = 90, order=None, **changes):
    """Documents by index; each must come exactly once."""
    config = SAMPLER if not changes else SamplerConfig(**{**vars(SAMPLER), **changes})
    sampler = Sampler(MODEL, parameters(), config, jax.devices()[:devices])
    wanted = requests(count)
    found = {}
    for sample in sampler.sample(wanted if order is None else [wanted[i] for i in order]):
        assert sample.request.index not in found
        found[sample.request.index] = (
            sample.tokens.tolist(),
            sample.finish_reason,
            sample.log_probability,
        )
    assert sorted(found) == list(range(count))
    return found


def test_documents_do_not_depend_on_devices_slots_or_order():
    first = sampled()
    reasons = collections.Counter(reason for _, reason, _ in first.values())
    assert set(reasons) == {"stop", "length"}
    assert len({tuple(tokens) for tokens, _, _ in first.values()}) > 80
    assert sampled(devices=2) == first
    assert sampled(devices=8) == first
    assert sampled(block=1) == first
    assert sampled(order=random.Random(0).sample(range(90), 90)) == first
    for slots, rows in ((1, 1), (5, 2), (16, 3), (48, 16), (90, 90)):
        other = sampled(devices=2, slots=slots, prefill_rows=rows)
        assert {i: d[:2] for i, d in other.items()} == {i: d[:2] for i, d in first.items()}


def test_a_document_follows_its_key_and_its_prompt():
    sampler = Sampler(MODEL, parameters(), SAMPLER, jax.devices()[:1])
    one, two = requests(2)
    asked = [
        Request(0, one.prompt, one.key),
        Request(1, one.prompt, one.key),
        Request(2, one.prompt, two.key),
        Request(3, two.prompt, one.key),
    ]
    tokens = {s.request.index: s.tokens.tolist() for s in sampler.sample(asked)}
    assert tokens[0] == tokens[1]
    assert len({tuple(tokens[i]) for i in (0, 2, 3)}) == 3


def test_log_probabilities_are_those_of_the_training_forward():
    reference = training_forward()
    for index, (tokens, reason, log_probability) in sampled(count=12).items():
        expected, _ = reference.score(requests(12)[index].prompt, tokens)
        assert log_probability == pytest.approx(expected, abs=2e-4)
        assert not set(tokens) & set(SAMPLER.never)
        assert (tokens[-1] == EOS) == (reason == "stop")
        assert EOS not in tokens[:-1]
        assert reason == "stop" or len(tokens) == SAMPLER.max_length


def ends_in_a_loop(tokens: list[int], length: int, period: int) -> bool:
    """Whether the last `length` tokens repeat it with one period."""
    return any(
        len(tokens) >= length + p and tokens[-length:] == tokens[-length - p : -p]
        for p in range(1, period + 1)
    )


def test_documents_end_neither_too_early_nor_after_a_loop_has_closed():
    """And do so in any slot: the limits are each document's own."""
    changes = {"temperature": 0.3, "top_k": 12, "top_p": 1.0, "min_length": 4}
    changes |= {"stop_repeats": 2, "stop_period": 3, "max_length": 40}
    first = sampled(**changes)
    reasons = collections.Counter(reason for _, reason, _ in first.values())
    assert min(reasons[reason] for reason in ("stop", "length", "repetition")) > 2
    for tokens, reason, _ in first.values():
        assert EOS not in tokens[:4]
        assert ends_in_a_loop(tokens, 6, 3) == (reason == "repetition")
        assert not any(ends_in_a_loop(tokens[:n], 6, 3) for n in range(len(tokens)))
    other = sampled(devices=2, slots=5, prefill_rows=2, **changes)
    assert {i: d[:2] for i, d in other.items()} == {i: d[:2] for i, d in first.items()}


def test_logits_that_are_no_numbers_end_the_document():
    broken = jax.tree.map(lambda a: a.at[...].set(jnp.nan), parameters())
    sampler = Sampler(MODEL, broken, SAMPLER, jax.devices()[:1])
    found = list(sampler.sample(requests(3)))
    assert [s.finish_reason for s in found] == ["nan"] * 3


def test_a_prompt_too_long_is_refused():
    sampler = Sampler(MODEL, parameters(), SAMPLER, jax.devices()[:1])
    for prompt in ([], [4] * 13):
        with pytest.raises(ValueError, match="expected 1 to 12"):
            list(sampler.sample([Request(0, prompt, np.zeros(2, np.uint32))]))


def test_slots_hold_each_document_once_and_spread_the_last():
    slots = Slots(devices=2, slots=4, rows=2)
    wanted = requests(9)
    pending, rng, ended = iter(wanted), np.random.default_rng(0), []
    slots.refill(pending)
    assert slots.busy == 8
    while slots.busy:
        ended += [r.index for _, _, r in slots.release(rng.random((2, 4)) < 0.4)]
        slots.refill(pending)
    assert sorted(ended) == list(range(9))
    spread = Slots(devices=4, slots=4, rows=4)
    (filling,) = spread.refill(iter(requests(4)))
    assert [len(read) for read, _ in filling] == [1, 1, 1, 1]


def test_a_prompt_is_read_once_where_a_slot_still_holds_it():
    rng = np.random.default_rng(0)
    slots = Slots(devices=2, slots=6, rows=2)
    keys = np.zeros((120, 2), np.uint32)
    wanted = [Request(i, [int(i // 3 % 7), 1], keys[i]) for i in range(120)]
    pending, contents, began, reads = iter(wanted), {}, [], 0
    while True:
        for filling in slots.refill(pending):
            for device, (read, copied) in enumerate(filling):
                for one in read:  # as the device does it: first all that is read
                    assert one.source == one.slot
                    contents[device, one.slot] = one.request.prompt
                before = dict(contents)
                for one in copied:
                    assert before[device, one.source] == one.request.prompt
                    contents[device, one.slot] = one.request.prompt
                assert max(len(read), len(copied)) <= 2
                taken = [one.slot for one in (*read, *copied)]
                assert len(set(taken)) == len(taken)
                began += [one.request.index for one in (*read, *copied)]
                reads += len(read)
        if not slots.busy:
            break
        slots.release(rng.random((2, 6)) < 0.3)
    assert sorted(began) == list(range(120))
    assert reads <= 60  # of three that stand together one is read, mostly


def test_samples_of_a_seed_are_the_same_with_its_prompt_read_or_copied():
    config = SamplerConfig(**{**vars(SAMPLER), "slots": 6, "prefill_rows": 2, "chunk": 4})
    sampler = Sampler(MODEL, parameters(), config, jax.devices()[:1])
    apart = requests(20)
    asked = [
        Request(3 * i + n, one.prompt, document_keys(9, [str(i)], [n])[0])
        for n in range(3)
        for i, one in enumerate(apart)
    ]
    together = sorted(asked, key=lambda one: one.index)
    first, second = (
        {s.request.index: (s.tokens.tolist(), s.log_probability) for s in sampler.sample(order)}
        for order in (asked, together)
    )
    assert first == second


def test_a_document_that_is_no_number_leaves_nothing_to_the_next_in_its_slot():
    model = dataclasses.replace(MODEL, tied=False)
    weights = parameters(model=model)
    broken = {**weights, "embedding": weights["embedding"].at[9].set(jnp.nan)}
    config = SamplerConfig(**{**vars(SAMPLER), "slots": 1, "prefill_rows": 1, "chunk": 4})
    wanted = requests(30)
    found, whole = (
        list(Sampler(model, made, config, jax.devices()[:1]).sample(wanted))
        for made in (broken, weights)
    )
    ended = [s.finish_reason == "nan" for s in found]
    assert 0 < sum(ended) < len(found)
    # Those that read the token, and no others.
    assert ended == [9 in [*s.request.prompt, *s.tokens[:-1]] for s in whole]
    for one, other in zip(found, whole, strict=True):
        if one.finish_reason != "nan":
            assert one.tokens.tolist() == other.tokens.tolist()


def test_the_plan_gives_every_seed_once_a_round():
    plan = Plan([f"d{i}" for i in range(7)], seed=3, documents_per_shard=4, samples_per_seed=5)
    indices = [i for number in range(plan.shards) for i in plan.shard(number)]
    assert indices == list(range(35))
    documents = [plan.document(i) for i in indices]
    assert len(set(documents)) == 35
    rounds = [tuple(d for d, _ in documents[r * 7 : r * 7 + 7]) for r in range(5)]
    assert all(sorted(one) == list(range(7)) for one in rounds)
    assert len(set(rounds)) > 1


def test_keys_tell_seeds_samples_and_runs_apart():
    keys = {
        (seed, name, sample): tuple(document_keys(seed, [name], [sample])[0].tolist())
        for seed in (0, 1)
        for name in ("a", "b", "a-1")
        for sample in (0, 1, 11)
    }
    assert len(set(keys.values())) == len(keys)
    together = document_keys(0, ["a", "b"], [0, 11])
    assert [tuple(k) for k in together.tolist()] == [keys[0, "a", 0], keys[0, "b", 11]]


def test_filters_say_why():
    seed = " ".join(f"word{i}" for i in range(40))
    copy = " ".join(f"word{i}" for i in range(10, 40))
    fresh = " ".join(f"other{i}" for i in range(30))
    loop = "the same four words " * 10

    def judge(text, reason="stop", **limits):
        return filters.judge(text, reason, shingles(seed), FilterConfig(**limits))

    assert judge(fresh).rejected_by is None
    assert judge("too few words here").rejected_by == "too_short"
    assert judge(loop).rejected_by == "repetition"
    assert judge(copy).rejected_by == "seed_copy"
    assert judge(copy).seed_copy > 0.9
    assert judge(copy, max_seed_copy=1.0).rejected_by is None
    assert judge("", "nan").rejected_by == "not_a_number"
    assert judge(fresh, "length").rejected_by is None
    assert judge(fresh, "repetition").rejected_by == "repetition"
    assert judge(fresh, "length", keep_unfinished=False).rejected_by == "unfinished"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with a vocabulary, seed documents and a synthesizer of a few steps."""
    directory = write_text_run(tmp_path_factory.mktemp("run"))
    train(
        artifacts.Run(directory, "tune"),
        rows="rows/real",
        model=DecoderConfig(**{**vars(MODEL), "vocab_size": VOCAB_SIZE}),
        optimizer=OptimizerConfig(learning_rate=3e-2),
        steps=30,
        batch_size=8,
    )
    return directory


OPTIONS = {
    "tokens": 1500,
    "seed_length": 10,
    "max_length": 24,
    "slots": 4,
    "prefill_rows": 4,
    "documents_per_shard": 5,
    "filter": FilterConfig(min_words=5, max_repetition=0.4),
    "any_checkpoint": True,  # `made` learns from documents
    "seed": 1,
}


def write(directory, scope, **changes):
    synthesize(artifacts.Run(directory, scope), **{**OPTIONS, **changes})
    return directory / scope


def content(directory) -> dict[str, bytes]:
    """Every file, but for those that tell when it was made and under what name."""
    assert directory.exists()
    return {
        p.name: p.read_bytes()
        for p in directory.iterdir()
        if p.name not in (artifacts.MANIFEST, artifacts.OPERATIVE_CONFIG)
    }


def read(directory) -> list[dict]:
    import tensorflow_datasets as tfds

    return list(tfds.as_numpy(tfds.builder_from_directory(directory).as_dataset(split="train")))


@pytest.fixture(scope="module")
def corpus(made):
    return write(made, "synthetic")


def test_the_corpus_is_the_shortest_run_of_shards_with_the_tokens(made, corpus):
    counts = artifacts.read_manifest(corpus).counts
    examples = read(corpus)
    assert len(examples) == counts["documents"] == len({e["id"] for e in examples})
    assert sum(int(e["tokens"]) for e in examples) == counts["tokens"]
    assert 1500 <= counts["tokens"] < 1500 + 5 * 24
    rejected = [json.loads(x) for x in (corpus / "rejected.jsonl").read_text().splitlines()]
    assert json.loads((corpus / "rejects.json").read_text()) == counts["rejected"]
    assert len(rejected) == sum(counts["rejected"].values())
    assert counts["sampled_documents"] == len(rejected) + len(examples)
    assert counts["sampled_documents"] % 5 == 0
    # None lost and none twice: kept and rejected together are the plan's first documents.
    plan = Plan([f"id{i}" for i in range(12)], 1, 5, 1000)
    planned = [plan.document(i) for i in range(counts["sampled_documents"])]
    assert sorted(f"id{d}-{s}" for d, s in planned) == sorted(
        [e["id"].decode() for e in examples] + [r["id"] for r in rejected]
    )
    assert counts["empty_seeds"] == 1
    assert counts["cut_seeds"] == 12
    assert not (corpus / "shards").exists()


def test_lineage_leads_from_a_document_to_all_it_came_from(made, corpus):
    example = read(corpus)[3]
    seed_id, sample = example["seed_id"].decode(), int(example["sample_index"])
    assert example["id"].decode() == f"{seed_id}-{sample}"
    assert seed_id in documents.Documents(made / "rows/real").ids
    found = artifacts.ancestry(corpus)
    assert {m.stage for m in found.values()} == {"synthesize", "train", "cache", "vocab"}
    config = artifacts.read_manifest(corpus).config
    key = document_keys(config["seed"], [seed_id], [sample])[0]
    assert key.astype(">u4").tobytes().hex() == example["key"].decode()
    # The checkpoint is named by the train artefact's hash and the step.
    tune = artifacts.read_manifest(made / "tune")
    checkpoint = artifacts.digest({"train": tune.hash, "step": tune.counts["steps"]})
    assert checkpoint == example["checkpoint"].decode()
    # And with these the same document can be written again, alone.
    assert rewritten(made, config, seed_id, key) == example["text"].decode()


def rewritten(made, config, seed_id, key) -> str:
    from sbp_jax.checkpoints import load_parameters, model_config
    from sbp_jax.data.rows import prompt

    pieces = vocabularies.load(made / "vocab")
    text = {d.id: d.text for d in documents.Documents(made / "rows/real")}[seed_id]
    sampler = Sampler(
        model_config(made / "tune"),
        load_parameters(made / "tune")[0],
        SamplerConfig(
            prompt_length=config["seed_length"] + 2,
            max_length=config["max_length"],
            temperature=config["temperature"],
            top_p=config["top_p"],
            eos=vocab.EOS,
            never=(vocab.PAD, vocab.UNK, vocab.BOS),
            slots=1,
            prefill_rows=1,
            block=1,
        ),
        jax.devices()[:1],
    )
    asked = prompt(pieces.encode(text), config["seed_length"], vocab.BOS, vocab.EOS)
    (sample,) = sampler.sample([Request(0, asked, key)])
    tokens = sample.tokens.tolist()
    return pieces.decode(tokens[:-1] if sample.finish_reason == "stop" else tokens)


@pytest.mark.parametrize("committed", [0, 1, 6])
def test_killed_and_started_again_the_corpus_is_the_same(made, corpus, monkeypatch, committed):
    scope = f"killed_after_{committed}"
    real, calls = shards.write, []

    def dying(*arguments):
        if len(calls) == committed:
            raise KeyboardInterrupt
        calls.append(arguments[1])
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            write(made, scope)
    assert not (made / scope).exists()
    again = []
    monkeypatch.setattr(shards, "write", lambda *a: (again.append(a[1]), real(*a)))
    out = write(made, scope)
    assert content(out) == content(corpus)
    assert not set(calls) & set(again)


def test_a_damaged_shard_is_written_again(made, corpus, monkeypatch):
    real = shards.write

    def dying(directory, number, records):
        real(directory, number, records)
        if number == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            write(made, "damaged")
    file = shards.path(artifacts.partial_directory(made / "damaged") / "shards", 2)
    file.write_text(file.read_text().replace('"tokens": ', '"tokens": 1'))
    assert content(write(made, "damaged")) == content(corpus)


def test_the_corpus_does_not_depend_on_slots_or_devices(made, corpus, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
    out = write(made, "two_devices", slots=7, prefill_rows=3, block=5)
    assert content(out) == content(corpus)


def test_a_longer_corpus_begins_as_the_shorter(made, corpus):
    longer = write(made, "longer", tokens=2500)
    first, second = ([e["id"] for e in read(d)] for d in (corpus, longer))
    assert second[: len(first)] == first
    assert len(second) > len(first)


def test_it_stops_when_every_seed_has_had_its_turns(made):
    out = write(made, "short", max_samples_per_seed=2)
    counts = artifacts.read_manifest(out).counts
    assert counts["sampled_documents"] == 24
    assert counts["tokens"] < 1500


def test_seeds_are_drawn_by_weight_and_some_samples_together(made):
    """The seeds carry a weight each, the last two none."""
    weights = [*range(1, 11), 0, 0]
    tokens = [vocabularies.load(made / "vocab").encode(text) for text in TEXTS]
    rows = write_rows_artefact(
        made, "rows/weighed", {"real": tokens}, vocab_size=VOCAB_SIZE, length=64
    )
    documents.write(
        rows / "real" / documents.FILE,
        [
            documents.Document(f"id{i}", text, {"quality": str(weight)})
            for i, (text, weight) in enumerate(zip(TEXTS, weights, strict=True))
        ],
    )
    changes = {"seeds": "rows/weighed", "weight_by": "quality", "samples_together": 5}
    out = write(made, "weighed", **changes)
    counts = artifacts.read_manifest(out).counts
    assert counts["weightless_seeds"] == 2
    sampled = collections.Counter(e["seed_id"].decode() for e in read(out))
    sampled.update(json.loads(x)["seed_id"] for x in (out / "rejected.jsonl").open())
    draws = counts["sampled_documents"] // 5
    for i, weight in enumerate(weights):
        assert abs(sampled[f"id{i}"] / 5 - draws * weight / sum(weights)) < 1
        assert sampled[f"id{i}"] % 5 == 0
    with pytest.raises(UserError, match="samples_together was 5, now 1"):
        write(made, "weighed", **{**changes, "samples_together": 1})
    with pytest.raises(UserError, match="weight_by was 'quality', now None"):
        write(made, "weighed", **{**changes, "weight_by": None})


def test_a_seqio_task_reads_it(made, corpus):
    from sbp_jax.data.seqio_vocabularies import seqio_vocabulary
    from tasks.synthetic import synthetic

    vocabulary = seqio_vocabulary(vocabularies.load(made / "vocab"))
    task = synthetic(vocabulary, corpus)
    examples = list(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
    assert len(examples) == artifacts.read_manifest(corpus).counts["documents"]
    for example in examples[:5]:
        text = example["targets_pretokenized"].decode()
        assert vocabulary.decode(example["targets"].tolist()) == text
        assert example["seed_id"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"slots": 0}, "synthesize.slots = 0"),
        ({"top_k": 0}, "synthesize.top_k = 0: expected at least 1"),
        ({"min_length": -1}, "min_length = -1: expected from 0 to max_length = 24"),
        ({"min_length": 25}, "min_length = 25: expected from 0 to max_length = 24"),
        ({"stop_repeats": 0}, "synthesize.stop_repeats = 0"),
        ({"stop_period": 0}, "synthesize.stop_period = 0"),
        ({"stop_repeats": 4, "stop_period": 6}, "max_length = 24 tokens never holds such a loop"),
        ({"any_checkpoint": False}, "tune is no synthesizer, it was not trained on pairs: name"),
        ({"samples_together": 2}, "samples_together = 2: expected a divisor"),
        ({"samples_together": 5}, "at most max_samples_per_seed = 2"),
        ({"weight_by": "quality"}, "document 'id0' has no such feature"),
        ({"checkpoint": "none"}, "none holds no finished artefact"),
        ({"checkpoint": "rows/real"}, "expected the directory of `sbp train`"),
        ({"checkpoint_step": 7}, "no checkpoint 7"),
        ({"filter": FilterConfig(min_words=1000)}, "all .* documents were rejected"),
    ],
)
def test_a_users_mistake_is_one_line(made, changes, message):
    with pytest.raises(UserError, match=message):
        write(made, "mistake" + str(abs(hash(message))), max_samples_per_seed=2, **changes)


def test_documents_in_a_loop_are_rejected_and_counted(made):
    """A synthesizer at a low temperature goes in circles."""
    out = write(made, "loops", tokens=300, temperature=0.1, stop_repeats=2, stop_period=4)
    counts = artifacts.read_manifest(out).counts
    rejected = [json.loads(x) for x in (out / "rejected.jsonl").read_text().splitlines()]
    looping = [record for record in rejected if record["finish_reason"] == "repetition"]
    assert counts["loops"] == len(looping) > 0
    assert {record["rejected_by"] for record in looping} <= {"repetition", "too_short"}
    assert min(record["tokens"] for record in looping) < 24
    assert not any(example["finish_reason"] == b"repetition" for example in read(out))


def test_a_seed_is_cut_only_if_it_is_longer(made):
    pieces = vocabularies.load(made / "vocab")
    lengths = sorted(len(pieces.encode(text)) for text in TEXTS)
    assert lengths[0] < lengths[6] < lengths[-1]
    seeds = Seeds(documents.Documents(made / "rows/real"), pieces, lengths[6])
    assert seeds.cut == sum(length > lengths[6] for length in lengths)
    assert {len(prompt) - 2 for prompt in seeds.prompts} == {min(n, lengths[6]) for n in lengths}


def test_a_synthesizer_is_told_by_the_rows_it_read(tmp_path):
    directory = epath.Path(tmp_path)
    texts = list(sentences(3, 64, 0))
    write_rows_artefact(directory, "rows/documents", {"real": texts})
    write_rows_artefact(directory, "rows/pairs", {"pairs": texts}, loss_from=2)

    def trained(scope, **rows):
        run = artifacts.Run(directory, scope)
        inputs = {role: directory / "rows" / name for role, name in rows.items()}
        artifacts.begin(run, "train", config={}, inputs=inputs, code=()).commit({})
        return run.out

    check_synthesizer(trained("tune", rows="pairs"))
    check_synthesizer(trained("both", **{"rows[0]": "documents", "rows[1]": "pairs"}))
    with pytest.raises(UserError, match=r"base is no synthesizer.*any_checkpoint = True"):
        check_synthesizer(trained("base", rows="documents", dev_rows="pairs"))
    (directory / "rows/pairs").rmtree()
    with pytest.raises(UserError, match=r"pairs holds no finished artefact.*any_checkpoint = True"):
        check_synthesizer(directory / "tune")


def test_bytes_that_are_no_utf8_are_replaced_in_what_is_written(tmp_path):
    """A model of bytes that has learned nothing writes them all the time."""
    directory = epath.Path(tmp_path)
    vocab.vocab(artifacts.Run(directory, "vocab"), given="bytes")
    tokens = vocabularies.Bytes().encode_batch(TEXTS[:4])
    found = write_rows_artefact(
        directory, "rows/real", {"real": tokens}, vocab_size=259, length=256
    )
    documents.write(
        found / "real" / documents.FILE,
        [documents.Document(f"id{i}", text) for i, text in enumerate(TEXTS[:4])],
    )
    write_model(directory, DecoderConfig(**{**vars(MODEL), "vocab_size": 259}), "tune")
    texts = FilterConfig(min_words=0, max_repetition=1.0)
    out = write(directory, "synthetic", tokens=100, top_p=1.0, filter=texts)
    written = [example["text"].decode() for example in read(out)]
    assert any("\ufffd" in text for text in written)
    assert artifacts.read_manifest(out).counts["bytes"] == sum(len(t.encode()) for t in written)


def test_rows_without_documents_are_no_seeds(made, tmp_path):
    assert open_rows(made / "rows/real").sources
    with pytest.raises(UserError, match="documents = True"):
        Seeds(
            documents.Documents(without_documents(tmp_path)), vocabularies.load(made / "vocab"), 4
        )


def without_documents(directory):
    return write_rows_artefact(directory, "rows/bare", {"bare": list(sentences(3, 64, 0))})
