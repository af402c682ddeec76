"""What the synthetic corpus is like: its filters, the report about it, and its export."""

from __future__ import annotations

import html.parser
import itertools
import json
import os
import random
import re

import gin
import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from etils import epath
from flax import nnx
from made_rows import small_model, write_rows_artefact

from sbp_jax import artifacts, cli
from sbp_jax.checkpoints import CHECKPOINTS, load_parameters, save_parameters
from sbp_jax.data import documents, formats, vocabularies
from sbp_jax.data.rows import Piece, Row
from sbp_jax.errors import UserError
from sbp_jax.evaluate import corpus_measures, piece_losses
from sbp_jax.evaluate.corpus_report import corpus_report
from sbp_jax.model.decoder import initialise
from sbp_jax.pair.embed import embed
from sbp_jax.pair.embedders import TfidfEmbedder
from sbp_jax.parallel.mesh import MeshConfig, make_layout
from sbp_jax.synthesize import corpus, filters
from sbp_jax.synthesize import stage as synthesize_stage
from sbp_jax.synthesize.export import export_corpus, size_category
from sbp_jax.synthesize.filters import FilterConfig
from sbp_jax.synthesize.sampler import Sample
from sbp_jax.synthesize.schedule import Plan
from sbp_jax.text.compression import compression
from sbp_jax.text.ngram_index import NgramIndex
from sbp_jax.text.repeats import repeats
from sbp_jax.text.shingles import containment, jaccard, shingles, words
from sbp_jax.train.step import parameter_shardings

BYTES = vocabularies.Bytes()
MODEL = small_model(BYTES.size)
LENGTH = 64


def prose(seed: int, count: int = 40, kind: str = "w") -> str:
    """So many random words of 2,000."""
    return " ".join(f"{kind}{n}" for n in random.Random(seed).choices(range(2000), k=count))


def changed(text: str, places: range) -> str:
    """The text with other words at some places."""
    return " ".join(f"other{i}" if i in places else w for i, w in enumerate(text.split()))


def test_filters_see_what_repetition_does_not():
    template = " ".join(f"the value of item {i} is {i * i % 97}." for i in range(60))

    def judge(text, **limits):
        return filters.judge(text, "stop", shingles(prose(1)), FilterConfig(**limits))

    found = judge(template, max_compression=None)
    assert found.rejected_by is None
    assert found.compression == pytest.approx(compression(template))
    assert judge(template, max_compression=0.9 * found.compression).rejected_by == "compression"
    assert judge("a" * 3000 + " b" * 12, max_repetition=None).rejected_by == "compression"
    assert compression("") == 0.0
    assert compression(prose(1)) < compression(prose(1, 400)) < compression(template)


def test_copies_and_overlaps_are_named():
    corpus_index = NgramIndex((f"doc{i}", prose(i)) for i in range(5))
    quiz = NgramIndex([("quiz test-0", prose(50))])
    half = " ".join(prose(3).split()[:26]) + " " + prose(60, 14)

    def judge(text, **limits):
        seed = shingles(prose(0))
        return filters.judge(text, "stop", seed, FilterConfig(**limits), corpus_index, quiz)

    assert judge(prose(0))[:1] == ("seed_copy",)
    own = judge(prose(0), max_seed_copy=None)
    assert (own.rejected_by, own.alike, own.corpus_copy) == ("corpus_copy", "doc0", 1.0)
    found = judge(half)
    assert (found.rejected_by, found.alike, found.corpus_copy) == (None, None, 0.5)
    assert judge(half, max_corpus_copy=0.49).alike == "doc3"
    assert judge(half, max_corpus_copy=None).rejected_by is None
    overlapping = judge(prose(50))
    assert (overlapping.rejected_by, overlapping.alike) == ("excluded", "quiz test-0")
    fresh = filters.judge(prose(9), "stop", shingles(prose(0)), FilterConfig())
    assert (fresh.rejected_by, fresh.corpus_copy) == (None, None)


def test_another_language_is_rejected_and_told():
    texts = {
        "en": "Return the sum of all elements of an array over the axis that was given here.",
        "de": "Gibt die Summe aller Elemente eines Feldes entlang der gegebenen Achse zurück.",
    }

    def judge(text, **limits):
        return filters.judge(text, "stop", shingles(prose(1)), FilterConfig(**limits))

    for code, text in texts.items():
        assert judge(text).language == ""
        for wanted in texts:
            found = judge(text, languages=[wanted])
            assert found.language == code
            assert found.rejected_by == (None if code == wanted else "language")
        assert judge(text, languages=list(texts)).rejected_by is None


def test_every_limit_may_be_off():
    off = FilterConfig(
        min_words=None,
        max_repetition=None,
        max_compression=None,
        max_seed_copy=None,
        max_corpus_copy=None,
        max_near_duplicate=None,
    )
    index = NgramIndex([("seed", "so it goes " * 900)])
    for text in ("", "so it goes " * 900):
        found = filters.judge(text, "length", shingles(text), off, index)
        assert found.rejected_by is None


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_corpus_copy": 1.5}, "max_corpus_copy = 1.5: expected a share"),
        ({"max_near_duplicate": -0.1}, "max_near_duplicate = -0.1"),
        ({"max_compression": 0.0}, "max_compression = 0.0"),
        ({"corpus_copy_one_in": 0}, "corpus_copy_one_in = 0"),
        ({"exclude": "rows/dev"}, r"expected a list, as \['rows/dev'\]"),
        ({"exclude_overlap": 0.0}, "exclude_overlap = 0.0"),
        ({"languages": "en"}, r"expected a list, as \['en'\]"),
        ({"languages": ["english"]}, r"languages = \['english'\]: .*does not know \['english'\]"),
        ({"languages": []}, r"languages = \[\]: expected at least one"),
    ],
)
def test_limits_out_of_range_are_one_line(limits, message):
    with pytest.raises(UserError, match=message):
        FilterConfig(**limits)


def test_a_thinned_index_estimates_the_same_containment():
    texts = {f"doc{i}": prose(i, 1200) for i in range(4)}
    whole, thinned = (NgramIndex(texts.items(), one_in=k) for k in (1, 8))
    assert len(thinned.hashes) < len(whole.hashes) / 6
    for i in range(4):
        mixed = changed(texts[f"doc{i}"], range(300 * i))
        name, estimate = thinned.most_contained(mixed)
        assert name == f"doc{i}"
        assert estimate == pytest.approx(whole.most_contained(mixed)[1], abs=0.12)


def slowly(texts: list[str], threshold: float) -> dict[int, int]:
    """As it is defined: each text against all earlier ones that stay."""
    sets, found = [shingles(text) for text in texts], {}
    for j in range(len(texts)):
        stay = (i for i in range(j) if i not in found)
        first = next((i for i in stay if jaccard(sets[i], sets[j]) > threshold), None)
        if first is not None:
            found[j] = first
    return found


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_the_first_of_near_duplicates_stays(threshold):
    rng = random.Random(0)
    texts = [prose(i, 60) for i in range(60)] + ["", "", "few words", "few words", "Few, words!"]
    # Of each of the first some copies, from nearly whole to half changed.
    texts += [changed(prose(i % 40, 60), range(rng.randrange(30))) for i in range(160)]
    rng.shuffle(texts)
    found = repeats(texts, threshold)
    assert found == slowly(texts, threshold)
    assert 20 < len(found) < 180
    assert repeats(texts, 1.0) == {}


def test_what_is_like_a_rejected_text_alone_stays():
    base = prose(0, 113)  # 101 shingles
    texts = [base, changed(base, range(20)), changed(base, range(70))]
    first, second, third = (shingles(text) for text in texts)
    assert jaccard(first, second) > 0.5
    assert jaccard(second, third) > 0.2 > jaccard(first, third)
    assert repeats(texts, 0.2) == {1: 0}
    assert repeats(texts[1:], 0.2) == {1: 0}


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    """Documents, an untrained model in the place of the trained ones, vectors; nothing sampled."""
    directory = epath.Path(tmp_path_factory.mktemp("run"))
    parameters = jax.jit(lambda key: nnx.to_pure_dict(nnx.state(initialise(MODEL, key))))(
        jax.random.key(0)
    )
    for scope in ("tune", "pretrain"):
        stage = artifacts.begin(
            artifacts.Run(directory, scope), "train", config={"model": MODEL}, inputs={}, code=()
        )
        save_parameters(stage.work / CHECKPOINTS, parameters)
        stage.commit({})
    stage = artifacts.begin(
        artifacts.Run(directory, "vocab"), "vocab", config={}, inputs={}, code=()
    )
    artifacts.write_atomic(stage.work / vocabularies.BYTES_FILE, "")
    stage.commit({})
    for scope, seeds in (("rows/real", range(30)), ("rows/dev", range(100, 103))):
        tokens = {"rows": [[5] * len(seeds)]}
        rows = write_rows_artefact(directory, scope, tokens, vocab_size=BYTES.size)
        documents.write(
            rows / "rows" / documents.FILE,
            [documents.Document(f"d{i}", prose(i)) for i in seeds],
        )
    write_rows_artefact(directory, "rows/bare", {"rows": [[5] * 4]}, vocab_size=BYTES.size)
    embed(
        artifacts.Run(directory, "embed"),
        embedder=TfidfEmbedder(dimensions=8, max_document_frequency=0.5),
        documents={"train": "rows/real"},
    )
    return directory


def written(index: int, seed: int) -> str:
    """What the stand-in writes as the plan's document `index`, from a seed."""
    if index == 3:
        return prose(seed)
    if index == 5:
        return prose((seed + 1) % 30)
    if index == 7:
        return prose(101)
    if index == 11:
        return "so it goes " * 30
    if index == 12:
        return "tiny"
    if index == 14:
        return changed(written(13, seed), range(3))
    if index == 13:
        return prose(1013, kind="v")
    return " ".join(prose(seed).split()[:15]) + " " + prose(1000 + index, kind="v")


class StandIn:
    """In the place of `Sampler`: writes chosen texts, in the order of the requests or backwards."""

    order = 1

    def __init__(self, model, parameters, config, calibration):
        self.config = config

    def sample(self, requests):
        for one in list(requests)[:: self.order]:
            begins = BYTES.decode(one.prompt[1:-1])
            seed = next(i for i in range(30) if prose(i).startswith(begins))
            tokens = np.array([*BYTES.encode(written(one.index, seed)), BYTES.eos], np.int32)
            yield Sample(one, tokens, "stop", -1.0 * len(tokens))


def synthesize(directory, scope="synthetic", order=1, **changes):
    options = {
        "tokens": 5000,
        "seed_length": 40,
        "max_length": 4000,
        "any_checkpoint": True,  # of documents
        "documents_per_shard": 4,
        "filter": FilterConfig(exclude=["rows/dev"]),
    }
    run = artifacts.Run(directory, scope)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StandIn, "order", order)
        patch.setattr(synthesize_stage, "Sampler", StandIn)
        synthesize_stage.synthesize(run, **{**options, **changes})
    return run.out


@pytest.fixture(scope="module")
def synthetic(run_directory):
    return synthesize(run_directory)


def test_each_filter_counts_what_it_takes_and_names_what_it_is_like(run_directory, synthetic):
    counts = artifacts.read_manifest(synthetic).counts
    taken = {name: count for name, count in counts["rejected"].items() if count}
    assert taken == {
        "seed_copy": 1,
        "corpus_copy": 1,
        "excluded": 1,
        "repetition": 1,
        "too_short": 1,
        "near_duplicate": 1,
    }
    assert json.loads((synthetic / "rejects.json").read_text()) == counts["rejected"]
    rejected = [json.loads(one) for one in (synthetic / "rejected.jsonl").read_text().splitlines()]
    by = {one["rejected_by"]: one for one in rejected}
    plan = Plan([f"d{i}" for i in range(30)], 0, 4, 1000)
    ids = ["d{}-{}".format(*plan.document(i)) for i in range(counts["sampled_documents"])]
    assert by["corpus_copy"]["alike"] == f"d{(plan.document(5)[0] + 1) % 30}"
    assert by["excluded"]["alike"] == "rows/dev d101"
    assert (by["near_duplicate"]["id"], by["near_duplicate"]["alike"]) == (ids[14], ids[13])
    assert by["seed_copy"]["alike"] is None
    # The budget is of what was accepted before near-duplicates were taken out.
    assert counts["accepted_tokens"] - counts["tokens"] == by["near_duplicate"]["tokens"]
    assert counts["accepted_tokens"] >= 5000 > counts["accepted_tokens"] - 4 * 400
    found = list(corpus.read(synthetic))
    assert [one["id"] for one in found] == [i for i in ids if i not in {r["id"] for r in rejected}]
    real = [prose(i) for i in range(30)]
    for one in found:
        most = max(containment(shingles(one["text"]), shingles(text)) for text in real)
        assert one["corpus_copy"] == pytest.approx(most)
        assert one["compression"] == pytest.approx(compression(one["text"]))
    assert "exclude/rows/dev" in artifacts.read_manifest(synthetic).inputs


def test_who_writes_first_does_not_decide_who_stays(run_directory, synthetic):
    backwards = synthesize(run_directory, "backwards", order=-1)
    for name in ("rejected.jsonl", "rejects.json", "synthetic-train.tfrecord-00000-of-00001"):
        assert (backwards / name).read_bytes() == (synthetic / name).read_bytes()


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        (["rows/none"], "rows/none holds no finished artefact"),
        (["rows/bare"], "rows/bare holds rows but no documents"),
        (["nowhere:quiz"], "no module 'nowhere'"),
    ],
)
def test_what_cannot_be_excluded_is_one_line(run_directory, exclude, message):
    with pytest.raises(UserError, match=message):
        synthesize(run_directory, "mistake", filter=FilterConfig(exclude=exclude))


def test_documents_are_read_in_their_order_from_several_files(
    run_directory, synthetic, monkeypatch
):
    monkeypatch.setattr(corpus, "RECORDS_PER_FILE", 2)
    off = FilterConfig(max_corpus_copy=None, exclude=["rows/dev"])
    several = synthesize(run_directory, "several", filter=off)
    assert len(list(several.glob("*.tfrecord*"))) > 3
    ids = [one["id"] for one in corpus.read(several, ["id"])]
    plan = Plan([f"d{i}" for i in range(30)], 0, 4, 1000)
    order = ["d{}-{}".format(*plan.document(i)) for i in range(40)]
    assert ids == [one for one in order if one in set(ids)]
    assert all(np.isnan(one["corpus_copy"]) for one in corpus.read(several, ["corpus_copy"]))
    with pytest.raises(UserError, match="lacks the features nonsense"):
        next(corpus.read(several, ["nonsense"]))


def test_the_interval_is_that_of_the_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 2.0, 400)
    found = corpus_measures.figure(values)
    assert found.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)
    ratio = corpus_measures.figure(2 * np.arange(1, 9), np.arange(1, 9))
    assert tuple(ratio) == (2.0, 2.0, 2.0)
    assert corpus_measures.figure([0.0, 0.0], [0, 0]).mean == 0.0


def test_new_ngrams_are_those_that_no_other_document_has():
    texts = [prose(i, 30) for i in range(6)] + [prose(1, 30)]  # the last one is a copy
    sample = [changed(prose(2, 30), range(10, 12)), "two words"]
    made, real = corpus_measures.new_ngrams([sample, texts[:3]], texts, own=(0, 1))

    def runs(text, n):
        tokens = words(text)
        return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

    for n in corpus_measures.NGRAMS:
        known = [set(runs(text, n)) for text in texts]
        every = [run for text in sample for run in runs(text, n)]
        new = [run for run in every if not any(run in one for one in known)]
        assert made[n].mean == pytest.approx(len(new) / len(every))
        every = [(i, run) for i in range(3) for run in runs(texts[i], n)]
        new = [1 for i, run in every if not any(run in known[j] for j in range(7) if j != i)]
        assert real[n].mean == pytest.approx(len(new) / len(every))
    assert 0 < made[5].mean < 1


def test_varied_text_is_compared_at_equal_length():
    texts = ["a b a b", "c d e f g"]
    assert corpus_measures.distinct(texts, 4)[1] == 0.5
    assert corpus_measures.distinct(texts, 9)[1] == 7 / 9
    assert corpus_measures.distinct(texts, 9)[2] == 6 / 7  # not across documents
    assert corpus_measures.first_words(texts, 6) == "a b a b\nc d"
    copies = [*(prose(i) for i in range(12)), prose(3)]
    assert corpus_measures.duplicates(copies) == {10: 0.0, 13: 2 / 13}
    edges, counts = corpus_measures.histogram([np.array([1, 2, 3]), np.array([100, 10_000])])
    assert [sum(one) for one in counts] == [3, 2]
    assert len(edges) == len(counts[0]) + 1


class Page(html.parser.HTMLParser):
    """The tags, which must close as they opened, and all text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "rect", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def reported(directory, scope="corpus_report", **changes):
    corpus_report(artifacts.Run(directory, scope), **{"length": LENGTH, "batch_size": 8, **changes})
    return json.loads((directory / scope / "report.json").read_text())


def test_the_report_tells_synthetic_text_from_real(run_directory, synthetic):
    found = reported(run_directory, documents_at_most=20)
    made, real = found["kinds"]
    documents_there = artifacts.read_manifest(synthetic).counts["documents"]
    assert found["documents"] == min(20, documents_there)
    # Half of a synthetic document is its seed's, half in words that no real one has.
    assert 0.5 < made["new_ngrams"]["1"]["mean"] < 0.9
    assert made["new_ngrams"]["5"]["low"] <= made["new_ngrams"]["5"]["mean"] < 0.95
    assert real["new_ngrams"]["5"]["mean"] == 1.0
    assert (
        found["seeds"]["similarity"]["own"]["low"] > found["seeds"]["similarity"]["other"]["high"]
    )
    copied = found["seeds"]["copied"]
    assert copied["own"]["mean"] > 0.05 > copied["other"]["mean"]
    assert sum(made["token_counts"]) == sum(real["token_counts"]) == found["documents"]
    # Losses are those of the base model, of the first tokens alone.
    every = [one["text"] for one in corpus.read(synthetic, ["text"])]
    assert made["loss"]["mean"] == pytest.approx(mean_loss(run_directory, every), rel=1e-5)

    page = Page((run_directory / "corpus_report/report.html").read_text())
    assert not page.open
    assert not [a for _, a in page.tags if {"src", "href"} & set(a) and a.get("href") != "data:,"]
    for figure in (made["loss"]["mean"], real["loss"]["low"], made["compression"]["high"]):
        assert f"{figure:.3f}" in page.text
    assert f"{100 * made['new_ngrams']['3']['mean']:.1f}%" in page.text
    bars = [a for tag, a in page.tags if tag == "rect"]
    assert len(bars) == sum(bool(n) for kind in (made, real) for n in kind["token_counts"])


def mean_loss(directory, texts):
    """Nats per token of the texts' first tokens; each must have more than those."""
    layout = make_layout(MeshConfig())
    shardings = parameter_shardings(MODEL, layout)
    parameters, _ = load_parameters(directory / "pretrain", None, "last", shardings)
    row_losses = piece_losses.make_row_losses(MODEL, layout)
    nats = 0.0
    for text in texts:
        piece = Piece(np.array(BYTES.encode(text)[:LENGTH], np.int32), BYTES.bos)
        batch = piece_losses.rows_of([piece], 8, LENGTH, MODEL)
        placed = Row(*(jax.device_put(x, layout.sharding("batch")) for x in batch))
        nats += float(row_losses(parameters, placed)[0])
    return nats / (LENGTH * len(texts))


def test_the_report_needs_neither_model_nor_vectors(run_directory, synthetic):
    options = {"checkpoint": None, "embeddings": None}
    found = reported(run_directory, "bare", corpus_at_most=12, **options)
    assert found["documents"] == found["looked_up_in"] == 12
    assert "loss" not in found["kinds"][0]
    assert "similarity" not in found["seeds"]
    again = reported(run_directory, "again", corpus_at_most=12, **options)
    assert again == found
    other = reported(run_directory, "other", corpus_at_most=12, seed=1, **options)
    for kind, another in zip(found["kinds"], other["kinds"], strict=True):
        assert kind["tokens"] != another["tokens"]  # both kinds are drawn by the seed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "corpus_report.length = 0"),
        ({"synthetic": "rows/real"}, "was made by `sbp cache`: name an artefact of `sbp synth"),
        ({"embeddings": "tune"}, "was made by `sbp train`: name an artefact of `sbp embed`"),
        ({"documents": "rows/dev"}, "was fitted on other documents"),
        ({"documents": "rows/dev", "embeddings": None}, "does not hold 'd.*', a seed of"),
        ({"checkpoint": "rows/real"}, "expected the directory of `sbp train`"),
    ],
)
def test_a_mistake_about_the_report_is_one_line(run_directory, synthetic, options, message):
    with pytest.raises(UserError, match=message):
        reported(run_directory, "wrong", **options)
    assert not (run_directory / "wrong").exists()


def sbp(*arguments) -> int:
    gin.clear_config()
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("format", ["jsonl.zst", "parquet"])
def test_what_is_exported_is_the_corpus(synthetic, tmp_path, format):
    out = epath.Path(tmp_path) / "out"
    arguments = ["--gin.export_corpus.documents_per_file=4", f"--gin.export_corpus.out='{out}'"]
    assert sbp("export-corpus", synthetic, f"--format={format}", *arguments) == 0
    expected = list(corpus.read(synthetic))
    files = formats.find(str(out), "out", [f".{format}"])
    assert len(files) == -(-len(expected) // 4) > 1
    assert files[0].name == f"data/train-00000-of-{len(files):05d}.{format}"
    fields = ("seed_id", "key", "checkpoint", "tokens")
    read = [one for file in files for one in formats.read(file, formats.Schema(fields=fields))]
    assert [one["rejected"] for one in read] == [""] * len(expected)
    for field in ("id", "text", *fields):
        assert [one[field] for one in read] == [str(one[field]) for one in expected]
    if format == "parquet":
        table = pq.read_table(str(out / "data")).to_pylist()
        assert [list(one.items()) for one in table] == [list(one.items()) for one in expected]
    assert_is_a_card(out / "README.md", synthetic, format)
    # What is there is neither overwritten nor added to.
    before = {path.name: os.stat(path).st_mtime_ns for path in out.iterdir()}
    assert sbp("export-corpus", synthetic, f"--format={format}", *arguments) == 2
    assert before == {path.name: os.stat(path).st_mtime_ns for path in out.iterdir()}


def assert_is_a_card(path, synthetic, format):
    text = path.read_text()
    _, header, body = text.split("---\n", 2)
    card = yaml.safe_load(header)
    (data,) = card["configs"][0]["data_files"]
    assert data == {"split": "train", "path": f"data/*.{format}"}
    names = [one["name"] for one in card["dataset_info"]["features"]]
    assert names == list(corpus.FEATURES)
    assert {one["dtype"] for one in card["dataset_info"]["features"]} == {
        "string",
        "int64",
        "float32",
    }
    manifest = artifacts.read_manifest(synthetic)
    counts = manifest.counts
    assert card["dataset_info"]["splits"] == [
        {"name": "train", "num_examples": counts["documents"]}
    ]
    assert card["size_categories"] == ["n<1K"]
    assert f"{counts['tokens']:,} tokens" in body
    for wanted in (
        counts["checkpoint"],
        manifest.hash,
        manifest.inputs["seeds"]["hash"],
        artifacts.digest(manifest.config),
        "| near_duplicate | 1 |",
        "| rows/real | cache |",
    ):
        assert wanted in body
    assert json.loads(re.search(r"```json\n(.*?)\n```", body, re.DOTALL)[1]) == manifest.config
    assert str(synthetic.parent) not in text


def test_figures_that_were_not_taken_are_null(run_directory, tmp_path):
    off = FilterConfig(max_corpus_copy=None)
    directory = synthesize(run_directory, "no_corpus_copy", tokens=500, filter=off)
    for format in ("jsonl.zst", "parquet"):
        export_corpus(str(directory), format, out=str(tmp_path / format))
    table = pq.read_table(tmp_path / "parquet" / "data")
    assert table["corpus_copy"].null_count == len(table)
    (file,) = formats.find(str(tmp_path / "jsonl.zst"), "out", [".jsonl.zst"])
    with formats.opened(file) as lines:
        assert {json.loads(line)["corpus_copy"] for line in lines} == {None}


def test_an_interrupted_export_leaves_nothing_that_looks_whole(synthetic, tmp_path, monkeypatch):
    out = tmp_path / "out"
    real = corpus.read

    def dying(*arguments):
        yield next(real(*arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "read", dying)
        with pytest.raises(KeyboardInterrupt):
            export_corpus(str(synthetic), out=str(out))
        patch.setattr(corpus, "read", lambda *a: itertools.islice(real(*a), 2))
        with pytest.raises(UserError, match="holds 2 documents, its manifest says"):
            export_corpus(str(synthetic), out=str(out))
    assert not out.exists()
    out.mkdir()  # an empty folder is no harm
    export_corpus(str(synthetic), out=str(out))
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "data"]
    assert not artifacts.partial_directory(out).exists()


def test_mistakes_about_an_export_are_one_line(run_directory, synthetic, capfd):
    for arguments, message in (
        ((synthetic, "--format=csv"), "--format=csv: expected one of jsonl.zst, parquet"),
        ((run_directory / "vocab",), "was made by `sbp vocab`: name an artefact of `sbp synth"),
        ((run_directory,), "holds no finished artefact"),
        ((), "needs a path"),
    ):
        assert sbp("export-corpus", *arguments) == 2
        assert message in capfd.readouterr().err
    assert sbp("vocab", "--format=parquet", "--run_dir=x") == 2
    assert "takes no --format" in capfd.readouterr().err


def test_sizes_are_the_hubs():
    sizes = (999, 1000, 10**6 - 1, 10**12, 10**12 - 1)
    assert [size_category(n) for n in sizes] == [
        "n<1K",
        "1K<n<10K",
        "100K<n<1M",
        "n>1T",
        "100B<n<1T",
    ]
