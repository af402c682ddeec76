"""The report, on a run whose artefacts were written by hand but committed through manifests."""

from __future__ import annotations

import dataclasses
import html.parser
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import gin
import numpy as np
import pytest
from etils import epath

from sbp_jax import artifacts
from sbp_jax.data import documents
from sbp_jax.errors import UserError
from sbp_jax.pair import pairs
from sbp_jax.report import axes, plots, results, stage, verdict
from sbp_jax.report.results import Point

CODE = ("sbp_jax.errors",)
ARMS = {
    "repetition": {"train": "pretrain", "scores": "evaluate/repetition"},
    "sbp": {"train": "joint", "scores": "evaluate/sbp"},
    "oracle": {"train": "oracle", "scores": "evaluate/oracle"},
}
LOSSES = {"repetition": 3.0412, "sbp": 3.0021, "oracle": 2.6403}
HOSTILE = {
    "seed/<script>alert(1)</script>": "<script>alert(0)</script> & <img src=x onerror=alert(2)>",
    "seed/emoji 🦀": "Emoji 🦀🏳️‍🌈 and \x00 a control character, \ud800 half a one.",
    "seed/long": "unbroken" * 2000,
    "seed/rtl": "שלום עולם, זהו מסמך שנכתב מימין לשמאל. numpy.cumsum(a, axis=None)",
    "seed/{{ 7 * 7 }}": "{{ 7 * 7 }} {% raw %} </div></section></html>",
}


def artefact(
    directory: epath.Path,
    scope: str,
    command: str,
    files: Mapping[str, str],
    counts: Mapping[str, object],
    inputs: Sequence[str] = (),
    config: Mapping[str, object] | None = None,
) -> epath.Path:
    """Commits an artefact of a run; returns its directory."""
    run = artifacts.Run(directory, scope)
    made = artifacts.begin(
        run,
        command,
        config=config or {"seed": 1},
        inputs={name: directory / name for name in inputs},
        code=CODE,
    )
    for name, content in files.items():
        (made.work / name).parent.mkdir(parents=True, exist_ok=True)
        (made.work / name).write_text(content)
    made.commit(counts)
    return run.out


def source(unique_rows: int, passes: float, synthetic: bool = False) -> dict[str, float]:
    return {
        "rows": round(unique_rows * max(passes, 1)),
        "unique_rows": unique_rows,
        "tokens": unique_rows * 250,
        "passes": passes,
        "synthetic": synthetic,
    }


def train_counts(sources: Mapping[str, Mapping[str, float]], unique: int) -> dict[str, object]:
    return {
        "steps": 500,
        "batch_size": 32,
        "length": 256,
        "train_tokens": 4_096_000,
        "loss_tokens": 4_080_122,
        "unique_tokens": unique,
        "synthetic_tokens": sum(int(s["tokens"]) for s in sources.values() if s["synthetic"]),
        "parameters": 1_123_456,
        "dev_loss": 3.1,
        "best_dev_loss": 3.05,
        "best_step": 450,
        "sources": sources,
    }


def metrics(final: float, steps: int = 500, every: int = 5) -> str:
    lines = []
    for step in range(every, steps + 1, every):
        tokens = step * 32 * 256
        loss = final - 0.1 + 5.0 * math.exp(-step / 60) + 0.03 * math.sin(step * 1.7)
        lines.append({"step": step, "loss": loss, "tokens": tokens, "learning_rate": 1e-3})
        if step % 50 == 0:
            overfit = 0.1 * max(step / steps - 0.7, 0)
            dev = final + 5.0 * math.exp(-step / 60) + overfit
            lines.append({"step": step, "tokens": tokens, "dev_loss": dev})
    return "\n".join(json.dumps(line) for line in lines) + "\n"


def make_arm(
    directory: epath.Path, name: str, loss: float, counts: Mapping[str, object], **config
) -> None:
    artefact(
        directory,
        ARMS[name]["train"],
        "train",
        {"metrics.jsonl": metrics(loss)},
        counts,
        inputs=["rows/real"],
        config={"model": {"": "DecoderConfig", "layers": 4}, "dropout": 0.1, **config},
    )
    scores = {
        "loss": loss,
        "bits_per_byte": loss / 2.4,
        "tokens": 51_200,
        "bytes": 123_456,
        "documents": 300,
        "checkpoint_step": 450,
    }
    artefact(
        directory,
        ARMS[name]["scores"],
        "evaluate",
        {"scores.json": json.dumps(scores)},
        {},
        [ARMS[name]["train"]],
    )


def make_documents(directory: epath.Path, texts: Mapping[str, str]) -> None:
    run = artifacts.Run(directory, "rows/real")
    made = artifacts.begin(run, "cache", config={"length": 256}, inputs={}, code=CODE)
    (made.work / "source").mkdir()
    documents.write(
        made.work / "source" / documents.FILE,
        [
            documents.Document(key, text, {"name": f"name of {key}", "package": "numpy"})
            for key, text in texts.items()
        ],
    )
    made.commit({"documents": len(texts)})


def make_synthetic(directory: epath.Path, written: Sequence[Mapping[str, object]]) -> None:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    number = tfds.features.Scalar(np.float32)
    integer = tfds.features.Scalar(np.int64)
    features = tfds.features.FeaturesDict(
        {
            "id": text,
            "text": text,
            "seed_id": text,
            "sample_index": integer,
            "key": text,
            "checkpoint": text,
            "finish_reason": text,
            "mean_log_probability": number,
            "repetition": number,
            "seed_copy": number,
            "tokens": integer,
        }
    )
    run = artifacts.Run(directory, "synthetic")
    made = artifacts.begin(run, "synthesize", config={"seed": 1}, inputs={}, code=CODE)
    with tf.io.TFRecordWriter(str(made.work / "synthetic-train.tfrecord-00000-of-00001")) as shard:
        for document in written:
            shard.write(features.serialize_example(features.encode_example(document)))
    tfds.folder_dataset.write_metadata(
        data_dir=str(made.work),
        features=features,
        split_infos=[
            tfds.core.SplitInfo(
                name="train",
                shard_lengths=[len(written)],
                num_bytes=1,
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=made.work,
                    dataset_name="synthetic",
                    split="train",
                    filetype_suffix="tfrecord",
                ),
            )
        ],
    )
    (made.work / "rejects.json").write_text(json.dumps({"too short": 12, "repetition <b>": 3}))
    made.commit({"documents": len(written)})


def make_pairs(directory: epath.Path) -> None:
    """Pairs with the statistics that the stage itself would leave."""
    rng = np.random.default_rng(0)
    products = rng.beta(3, 5, size=(500, 21)).astype(np.float32)
    products[:, 0] = 1.0  # each document is its own nearest neighbour
    found = np.array([[target, *range(target + 1, target + 21)] for target in range(500)]) % 500
    chosen, removed = pairs.select(
        found,
        products,
        same_corpus=True,
        alpha=0.45,
        upper_bound=None,
        near_duplicate=lambda seed, target: (seed + target) % 50 == 0,
        max_per_seed=12,
    )
    statistics = pairs.statistics(chosen, removed, products, seeds=500, alpha=0.45)
    artefact(
        directory,
        "pairs",
        "pair",
        {"statistics.json": json.dumps(statistics)},
        {"pairs": len(chosen)},
        inputs=["rows/real"],
    )


def written_documents(seeds: Sequence[str], samples: int = 2) -> list[dict[str, object]]:
    return [
        {
            "id": f"{seed}#{sample}",
            "text": f"Sample {sample} written from {seed}.\n\nReturns\n-------\nout : ndarray",
            "seed_id": seed,
            "sample_index": sample,
            "key": f"{number:08x}{sample:08x}",
            "checkpoint": "0123456789abcdef",
            "finish_reason": "length" if sample else "stop",
            "mean_log_probability": -1.25,
            "repetition": 0.125,
            "seed_copy": 0.25,
            "tokens": 40,
        }
        for number, seed in enumerate(seeds)
        for sample in range(samples - 1, -1, -1)
    ]


def make_run(
    directory: epath.Path,
    losses: Mapping[str, float] = LOSSES,
    texts: Mapping[str, str] = HOSTILE,
    text_parts: bool = True,
) -> epath.Path:
    """A run with all that the report can show, or with its arms alone."""
    make_documents(directory, texts)
    real, synthetic = "tasks.pydocs:train", "tasks.synthetic:synthetic@synthetic"
    sources = {
        "repetition": {real: source(800, 20.0)},
        "sbp": {real: source(800, 12.5), synthetic: source(6000, 1.0, synthetic=True)},
        "oracle": {"tasks.pydocs:oracle": source(16_000, 0.8)},
    }
    for name, loss in losses.items():
        unique = 4_000_000 if name == "oracle" else 200_000
        make_arm(directory, name, loss, train_counts(sources[name], unique))
    if text_parts:
        make_pairs(directory)
        make_synthetic(directory, written_documents(list(texts)))
    return directory


def arms_of(losses: Mapping[str, float]) -> dict[str, dict[str, str]]:
    return {name: ARMS[name] for name in losses}


def make_report(directory: epath.Path, **arguments) -> tuple[str, dict]:
    """Runs the stage; returns the page and the summary."""
    run = artifacts.Run(directory, "report")
    stage.report(run, **arguments)
    page_text = (run.out / "report.html").read_text()
    return page_text, json.loads((run.out / "summary.json").read_text())


class Page(html.parser.HTMLParser):
    """What a browser would find: tags, attributes, the documents' texts; and whether tags close."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.words: list[str] = []
        self._text_depth: int | None = None
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        attributes = {key: value or "" for key, value in attrs}
        self.tags.append((tag, attributes))
        if tag in self.VOID:
            return
        self.open.append(tag)
        if attributes.get("class") == "text":
            self._text_depth = len(self.open)
            self.texts.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        if self._text_depth == len(self.open):
            self._text_depth = None
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if self._text_depth is not None:
            self.texts[-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> tuple[epath.Path, str, dict]:
    directory = make_run(epath.Path(tmp_path_factory.mktemp("run") / "demo"))
    return directory, *make_report(directory, arms=ARMS)


def measured(**losses: float) -> results.Results:
    """Results without files: arms alike but for their held-out losses."""
    arms = tuple(
        results.Arm(
            name=name,
            heldout_loss=loss,
            heldout_bits_per_byte=loss / 2.4,
            heldout_tokens=1000,
            heldout_documents=10,
            steps=10,
            batch_size=4,
            length=100,
            parameters=1_000_000,
            train_tokens=4000,
            loss_tokens=3900,
            unique_tokens=1000,
            synthetic_tokens=0,
            scored_step=10,
            sources=(),
            train_curve=(Point(2000, 3.2), Point(4000, 3.1)),
            dev_curve=(Point(4000, 3.1),),
            config={"train.dropout": 0.1},
        )
        for name, loss in losses.items()
    )
    return results.Results(arms)


def test_page_and_summary_say_the_same(full):
    _, text, summary = full
    page = Page(text).text
    assert {name: arm["heldout_loss"] for name, arm in summary["arms"].items()} == LOSSES
    assert summary["arms"]["sbp"] == {
        "heldout_loss": 3.0021,
        "heldout_bits_per_byte": 3.0021 / 2.4,
        "train_tokens": 4_096_000,
        "unique_tokens": 200_000,
        "synthetic_tokens": 1_500_000,
    }
    expected = (3.0412 - 3.0021) / (3.0412 - 2.6403)
    assert summary["oracle_gain_recovered"] == pytest.approx(expected)
    assert "SBP recovered 9.8% of the oracle’s gain over repetition" in page
    for arm in summary["arms"].values():
        assert f"{arm['heldout_loss']:.4f} {arm['heldout_bits_per_byte']:.4f}" in page
        assert f"{arm['train_tokens']:,}" in page
    assert "+0.0391" in page
    assert "+0.4009" in page


def test_every_part_is_on_the_page(full):
    _, text, summary = full
    page = Page(text)
    for words in (
        "6,000 6,000 1,500,000 1,500,000 1.00",  # rows and tokens of the synthetic source
        "16,000 800 200,000 4,000,000 20.00",  # and of the real one, read twenty times
        "α = 0.45",
        "documents 500 documents without a pair 0",
        "too short 12",
        "repetition <b> 3",
        "10 documents, 400 tokens. They ended by length 50%, stop 50%",
        "differences of about 0.01 nats per token lie within seed noise at this scale",
        "says nothing against the method at scale",
        "were tuned alike",
        "All arms were trained and scored with the same settings",
    ):
        assert words in page.text, words
    assert set(summary["seconds"]) == {
        "rows/real",
        "pairs",
        "synthetic",
        *(path for arm in ARMS.values() for path in arm.values()),
    }
    for name in summary["seconds"]:
        assert page.text.count(name) >= 2, name  # times and lineage
    figures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(figures) == 4
    assert len({attributes["id"] for _, attributes in page.tags if "id" in attributes}) == sum(
        "id" in attributes for _, attributes in page.tags
    )


def test_documents_cannot_become_markup(full):
    _, text, _ = full
    page = Page(text)
    assert not {"script", "img", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    shown = [text.strip() for text in page.texts]
    assert len(shown) == 2 * len(HOSTILE)
    for key, document in HOSTILE.items():
        if len(document) <= 4000:
            assert re.sub("[\0\ud800]", "�", document) in shown, key
        written = f"Sample 0 written from {key}.\n\nReturns\n-------\nout : ndarray"
        assert written in shown, key
    assert all(
        attributes["dir"] == "auto"
        for _, attributes in page.tags
        if attributes.get("class") == "text"
    )


def test_a_long_document_is_cut_and_says_so(full):
    _, text, _ = full
    assert "unbroken" * 500 + '<span class="hidden-rest"> … 12,000 more characters' in text


def test_the_page_asks_for_nothing(full):
    _, text, _ = full
    page = Page(text)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            value = attributes.get(name, "#")
            assert value.startswith("#") or value == "data:,", (tag, attributes)
    styles = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert "@import" not in styles
    assert not re.search(r"url\((?!#)", text)
    policies = [a["content"] for _, a in page.tags if "http-equiv" in a]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_a_finished_report_is_left_alone_and_another_refused(full, monkeypatch, tmp_path):
    directory, text, _ = full
    before = (directory / "report" / "report.html").stat().mtime
    assert make_report(directory, arms=ARMS)[0] == text
    assert (directory / "report" / "report.html").stat().mtime == before
    from sbp_jax.report import page

    other = tmp_path / "page.html"
    other.write_text("another page")
    monkeypatch.setattr(page, "template_files", lambda: [other])
    with pytest.raises(UserError, match="template was"):
        make_report(directory, arms=ARMS)


def test_two_arms_and_nothing_else(tmp_path):
    losses = {"repetition": 3.0, "sbp": 2.9}
    directory = make_run(epath.Path(tmp_path), losses, text_parts=False)
    text, summary = make_report(directory, arms=ARMS, pairs="", documents="")
    page = Page(text)
    assert summary["oracle_gain_recovered"] is None
    assert list(summary["arms"]) == ["repetition", "sbp"]
    assert "SBP gained 0.1000 nats per token over repetition" in page.text
    assert "oracle’s" not in page.text.replace("the oracle’s gain recovered", "")
    sections = {attributes.get("id") for tag, attributes in page.tags if tag == "section"}
    assert sections >= {"limits", "curves", "tokens", "times", "lineage"}
    assert not sections & {"pairs", "synthetic"}
    links = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    assert links == sections


@pytest.mark.parametrize(
    ("losses", "share", "title", "sentence"),
    [
        (
            {"repetition": 3.0, "sbp": 2.9, "oracle": 2.8},
            0.5,
            "SBP recovered 50% of",
            "0.1000 nats",
        ),
        (
            {"repetition": 3.0, "sbp": 3.05, "oracle": 2.8},
            -0.25,
            "SBP did worse than repetition",
            "that is −25%: nothing was recovered",
        ),
        (
            {"repetition": 3.0, "sbp": 2.9, "oracle": 3.1},
            None,
            "SBP gained 0.1000",
            "the share is undefined",
        ),
        ({"repetition": 3.0, "sbp": 3.1, "oracle": 3.0}, None, "did worse", "share is undefined"),
        (
            {"repetition": 3.0, "sbp": 2.996, "oracle": 2.8},
            0.02,
            "SBP recovered 2.0% of the oracle’s gain over repetition, within seed noise",
            "does not tell SBP and repetition apart",
        ),
        (
            {"repetition": 3.0, "sbp": 2.998, "oracle": 2.996},
            0.5,
            "SBP recovered 50%",
            "so the share of it means little",
        ),
        ({"repetition": 3.0, "oracle": 2.8}, None, "Held-out loss of two arms", "0.2000 nats"),
        ({"sbp": 3.0}, None, "Held-out loss of one arm", ""),
    ],
)
def test_the_verdict_is_what_the_losses_say(losses, share, title, sentence):
    found = measured(**losses)
    said = verdict.verdict(found)
    if share is None:
        assert found.oracle_gain_recovered is None
    else:
        assert found.oracle_gain_recovered == pytest.approx(share)
    assert title in said.title
    assert sentence in " ".join(said.sentences)
    assert "nan" not in " ".join((said.title, *said.sentences))


def test_a_difference_beyond_noise_is_not_called_noise():
    said = " ".join(verdict.verdict(measured(repetition=3.0, sbp=2.9, oracle=2.8)).sentences)
    assert "seed noise" not in said


def test_arms_that_cannot_be_compared_are_pointed_out():
    sound = measured(repetition=3.0, sbp=2.9)
    assert verdict.cautions(sound) == ()
    first, second = sound.arms
    shorter = dataclasses.replace(second, train_tokens=3000)
    assert "equally many tokens" in verdict.cautions(results.Results((first, shorter)))[0]
    elsewhere = dataclasses.replace(second, heldout_tokens=999)
    assert "same held-out text" in verdict.cautions(results.Results((first, elsewhere)))[0]
    twice = results.Source("s", 20, 10, 1000, 2.0, synthetic=True)
    again = dataclasses.replace(second, sources=(twice,))
    assert "at most once" in verdict.cautions(results.Results((first, again)))[0]


def test_settings_that_differ_are_listed():
    first, second = measured(repetition=3.0, sbp=2.9).arms
    other = dataclasses.replace(second, config={"train.dropout": 0.2, "train.seed": 1})
    assert results.Results((first, other)).differing_settings == {
        "train.dropout": {"repetition": 0.1, "sbp": 0.2},
        "train.seed": {"repetition": None, "sbp": 1},
    }


def test_examples_do_not_depend_on_the_order_of_the_corpus(tmp_path):
    from sbp_jax.report import examples

    seeds = [f"seed/{number}" for number in range(30)]
    written = written_documents(seeds, samples=3)
    make_synthetic(epath.Path(tmp_path) / "one", written)
    make_synthetic(epath.Path(tmp_path) / "two", written[::-1])
    one = examples.read_synthetic(epath.Path(tmp_path) / "one" / "synthetic", None, 10)
    two = examples.read_synthetic(epath.Path(tmp_path) / "two" / "synthetic", None, 10)
    assert one.examples == two.examples
    chosen = [example.written.seed_id for example in one.examples]
    assert len(set(chosen)) == 10
    assert chosen != sorted(chosen, key=seeds.index)  # by hash, not the first ones
    assert {example.written.sample_index for example in one.examples} == {0}
    assert {example.samples for example in one.examples} == {3}
    assert (one.documents, one.tokens, one.complete) == (90, 3600, True)
    assert one.rejects == {"too short": 12, "repetition <b>": 3}


def test_lineage_names_makers_before_what_was_made(full):
    directory, _, _ = full
    lineage = results.read_lineage(directory, [directory / "evaluate" / "sbp", directory / "pairs"])
    names = [artefact.name for artefact in lineage]
    assert sorted(names) == ["evaluate/sbp", "joint", "pairs", "rows/real"]
    for artefact_ in lineage:
        for origin in artefact_.inputs.values():
            assert names.index(origin) < names.index(artefact_.name)
    joint = artifacts.read_manifest(directory / "joint")
    assert lineage[names.index("joint")].identity == joint.identity
    assert lineage[names.index("joint")].hash == joint.hash


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({}, "at least one arm"),
        ({"x": {"train": "nothing", "scores": "nowhere"}}, "holds none of the arms x"),
        ({"sbp": {"train": "joint"}}, "'sbp' has .* expected its artefacts"),
        ({"sbp": "joint"}, r"report.arms = \{'sbp': 'joint'\}: expected Mapping\[str, Mapping"),
        ({"sbp": {"train": "joint", "scores": "nowhere"}}, "nowhere holds no finished artefact"),
    ],
)
def test_wrong_arms_are_named(full, arms, message):
    directory, _, _ = full
    with pytest.raises(UserError, match=message):
        stage.report(artifacts.Run(directory, "other"), arms=arms)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.jsonl", '{"step": 1}\n{"step": 2, "lo', r"metrics\.jsonl, line 2 is not JSON"),
        ("metrics.jsonl", '{"step": 1, "loss": 2.0}', r"line 1: tokens is None"),
        ("scores.json", "{}", r"scores\.json: loss is None, expected a finite number"),
        ("scores.json", "[1]", r"scores\.json: its content is \[1\]"),
        ("scores.json", '{"loss": NaN}', r"loss is nan"),
        ("scores.json", "{", r"scores\.json is not JSON"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, content, message):
    directory = make_run(epath.Path(tmp_path), {"sbp": 3.0}, text_parts=False)
    place = directory / {"metrics.jsonl": "joint", "scores.json": "evaluate/sbp"}[file] / file
    place.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        make_report(directory, arms=arms_of({"sbp": 3.0}))
    assert "\n" not in error.value.message
    assert not (directory / "report").exists()


def test_metrics_that_are_not_finite_leave_no_point(tmp_path):
    directory = make_run(epath.Path(tmp_path), {"sbp": 3.0}, text_parts=False)
    lines = [
        '{"step": 1, "loss": NaN, "tokens": 10}',
        '{"step": 2, "loss": 2.5, "tokens": 20}',
        '{"step": 2, "loss": 2.25, "tokens": 20, "mfu": null}',
        '{"step": 3, "dev_loss": null, "tokens": 30}',
    ]
    (directory / "joint" / "metrics.jsonl").write_text("\n".join(lines))
    arm = results.read_arm("sbp", directory / "joint", directory / "evaluate" / "sbp")
    assert arm.train_curve == (Point(20, 2.25),)
    assert arm.dev_curve == ()


def test_ticks_are_round_and_inside():
    assert axes.ticks(0, 4_096_000, 4) == [0, 1_000_000, 2_000_000, 3_000_000, 4_000_000]
    assert axes.ticks(2.61, 2.68, 5) == pytest.approx([2.62, 2.64, 2.66, 2.68])
    assert axes.ticks(1.0, 1.0, 5) == [1.0]
    assert axes.decimals([2.5, 2.75, 3.0]) == 2


def test_thinning_keeps_the_mean_course_and_the_end():
    points = [Point(n, float(n % 2)) for n in range(1, 1002)]
    thinned = plots.thin(points, 100)
    assert len(thinned) <= 100
    assert thinned[-1] == points[-1]
    assert all(0.3 < point.loss < 0.7 for point in thinned[:-1])
    assert plots.thin(points[:100], 100) == points[:100]


def test_labels_are_spread():
    places = axes.spread([100.0, 101.0, 40.0, 100.5], 16)
    ordered = sorted(places)
    assert all(b - a > 15.9 for a, b in itertools.pairwise(ordered))
    assert [sorted(places).index(p) for p in places] == [1, 3, 0, 2]
    assert places[2] == 40.0


def test_the_histogram_is_cut_at_alpha():
    drawing = plots.histogram(
        [0.0, 0.5, 1.0], [10, 4], alpha=0.75, name="h", description="<of> similarities"
    )
    bars = re.findall(r'class="bar (\w+)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawing)
    assert [style for style, _, _ in bars] == ["below", "below", "above"]
    widths = [float(width) for _, _, width in bars]
    assert widths[1] == pytest.approx(widths[2], abs=0.02)
    threshold = re.search(r'class="threshold" x1="([\d.]+)"', drawing)
    assert threshold is not None
    assert float(threshold[1]) == pytest.approx(float(bars[2][1]), abs=0.1)
    assert "&lt;of&gt;" in drawing


def test_curves_survive_degenerate_data():
    one = [plots.Series("<b>", "arm-sbp", [Point(0, 3.0)], Point(0, 3.0))]
    drawing = plots.curves(one, name="c", description="one point")
    assert "nan" not in drawing
    assert "&lt;b&gt;" in drawing


def test_text_can_be_read_in_both_schemes():
    css = (Path(plots.__file__).parent / "page.css").read_text()
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part))
        for part in re.split(r"@media \(prefers-color-scheme: dark\)", css)[:2]
    )
    assert set(light) == set(dark)
    for colours in (light, dark):
        for paper in ("paper", "raised"):
            for ink in set(colours) - {
                "paper",
                "raised",
                "line",
                "faint",
                "caution-paper",
                "caution",
            }:
                assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
        assert contrast(colours["caution"], colours["caution-paper"]) >= 4.5


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_stage_is_known_without_heavy_imports():
    code = (
        "import sys, sbp_jax.report.stage; "
        "print(sorted({'tensorflow', 'tensorflow_datasets', 'seqio', 'jinja2', 'jax'} "
        "& set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"


def test_a_large_run_is_not_excused_as_small():
    small = measured(repetition=3.0, sbp=2.996)
    large = results.Results(
        tuple(dataclasses.replace(arm, parameters=3_000_000_000) for arm in small.arms)
    )
    assert "says nothing against the method at scale" in " ".join(verdict.limits(small))
    said = " ".join((*verdict.limits(large), *verdict.verdict(large).sentences))
    assert "at scale" not in said
    assert "0.01" not in said
    assert "3B parameters" in said


def test_numbers_are_written_as_people_read_them():
    from sbp_jax.report import page

    assert [verdict.short(n) for n in (0, 999, 1000, 999_999, 4_276_000, 3e9)] == (
        ["0", "999", "1k", "1M", "4.28M", "3B"]
    )
    assert [verdict.percent(x) for x in (0.384, 0.0975, -0.017, -0.25)] == (
        ["38%", "9.8%", "−1.7%", "−25%"]
    )
    assert [page.duration(s) for s in (4.21, 59.96, 185, 7800)] == (
        ["4.2 s", "1 min 0 s", "3 min 5 s", "2 h 10 min"]
    )
    assert [page.signed(x) for x in (0.0391, -0.0068, -0.00001)] == ["+0.0391", "−0.0068", "0.0000"]
    assert [page.whole(x) for x in (12_345, 7.25, 3.0)] == ["12,345", "7.25", "3.00"]


def test_the_bars_account_for_every_token():
    from sbp_jax.report import page

    (arm,) = measured(sbp=3.0).arms
    sources = (
        results.Source("real", 20, 5, 500, 4.0, synthetic=False),
        results.Source("synthetic", 15, 15, 1500, 0.5, synthetic=True),
    )
    mixed = dataclasses.replace(arm, unique_tokens=500, sources=sources)
    assert page.composition(mixed) == [
        ("first", 500, 12.5),
        ("again", 1500, 37.5),
        ("synthetic", 1500, 37.5),
        ("other", 500, 12.5),
    ]


def test_losses_lie_where_they_belong_on_the_line():
    from sbp_jax.report import page

    line = page.track(measured(repetition=3.0, sbp=2.8, oracle=2.6))
    assert line["places"]["sbp"] == pytest.approx(50)
    assert line["places"]["oracle"] < 10 < 90 < line["places"]["repetition"]
    start, width = line["noise"]
    assert start + width / 2 == pytest.approx(line["places"]["repetition"])
    assert width / 100 * (line["high"] - line["low"]) == pytest.approx(0.02)


def test_gin_binds_the_arms(tmp_path):
    directory = make_run(epath.Path(tmp_path), {"sbp": 3.0}, text_parts=False)
    run = artifacts.Run(directory, "report")
    with pytest.raises(RuntimeError, match="Required bindings"):
        stage.report(run)
    gin.parse_config(f"report.arms = {arms_of({'sbp': 3.0})!r}")
    stage.report(run)
    assert artifacts.read_manifest(run.out).inputs.keys() == {
        "sbp/train",
        "sbp/scores",
        "documents",
    }
    assert "report.arms" in (run.out / "config.gin").read_text()


def test_pairs_are_counted_without_documents_themselves(full):
    directory, text, _ = full
    found = results.read_pairs(directory / "pairs")
    assert found.alpha == 0.45
    assert sum(found.neighbours) == 500 * 20
    assert found.neighbours[-1] < 10  # where 500 documents met themselves
    assert sum(found.pairs) == found.figures["pairs"] > 0
    above = sum(n for n, edge in zip(found.neighbours, found.edges, strict=False) if edge >= 0.45)
    assert 2 * above == 20_000 - found.removed["below alpha"]  # candidates go both ways
    assert found.removed["near duplicates"] > 0
    assert found.removed["over cap"] > 0
    assert "self pairs" not in found.removed
    page = Page(text).text
    for name, number in found.removed.items():
        assert f"{name} {number:,}" in page
    assert f"pairs {found.figures['pairs']:,}" in page


def test_what_d1_is_worth_is_shown_where_it_was_measured(tmp_path):
    losses = {"related": 4.25, "random": 4.375, "alone": 4.5}
    whole = {"pairs": 1300, "tokens": 50_000, **losses, "gain": 0.125, "gain_error": 0.0625}
    bands = [
        {**whole, "low": 0.2, "high": 0.41, "pairs": 1299, "gain": -0.03125},
        {**whole, "low": 0.43, "high": 0.9, "pairs": 1, "gain_error": None},
    ]
    directory = make_run(epath.Path(tmp_path), {"sbp": 3.0}, text_parts=False)
    assert results.Results(arms=()).conditioning == ()
    scores = {"scores.json": json.dumps({**whole, "bands": bands})}
    artefact(directory, "conditioning", "conditioning", scores, {"pairs": 1300})
    text, _ = make_report(directory, arms=arms_of({"sbp": 3.0}))
    words = Page(text).text
    for row in (
        "0.200 – 0.410 1,299 50,000 4.2500 4.3750 4.5000 −0.0312 ± 0.0625",
        "0.430 – 0.900 1 50,000 4.2500 4.3750 4.5000 +0.1250 –",
        "all 1,300 50,000 4.2500 4.3750 4.5000 +0.1250 ± 0.0625",
    ):
        assert row in words
    assert "cheapest alone" not in words
    path = directory / "conditioning" / "scores.json"
    for wrong, message in (
        ({**whole, "bands": 3}, "bands is 3, expected a list of objects"),
        ({**whole, "bands": [{}]}, "related is None, expected a finite number"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=re.escape(message)):
            results.read_conditioning(path.parent)


def test_a_synthesizer_that_is_better_without_d1_is_called_so(tmp_path):
    whole = {"pairs": 9, "tokens": 500, "related": 4.4, "random": 4.5, "alone": 4.3, "gain": 0.1}
    directory = make_run(epath.Path(tmp_path), {"sbp": 3.0}, text_parts=False)
    scores = {"scores.json": json.dumps({**whole, "bands": []})}
    artefact(directory, "conditioning", "conditioning", scores, {"pairs": 9})
    text, _ = make_report(directory, arms=arms_of({"sbp": 3.0}))
    assert "d2 is cheapest alone" in Page(text).text


def test_statistics_of_another_kind_are_refused(tmp_path):
    make_documents(epath.Path(tmp_path), HOSTILE)
    make_pairs(epath.Path(tmp_path))
    path = epath.Path(tmp_path) / "pairs" / "statistics.json"
    sound = json.loads(path.read_text())
    for key, value, message in (
        ("histogram", None, "histogram is None, expected an object"),
        ("histogram", {"edges": [0, 1], "counts": [1], "pairs": None}, "pairs is None"),
        ("histogram", {"edges": [0, 1], "counts": [1], "pairs": [1, 2]}, "one edge more"),
        ("alpha", "high", "alpha is 'high', expected a finite number"),
        ("filters", {"x": 1.5}, "x is 1.5, expected a whole number"),
    ):
        path.write_text(json.dumps({**sound, key: value}))
        with pytest.raises(UserError, match=re.escape(message)):
            results.read_pairs(path.parent)
