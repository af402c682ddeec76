"""Tasks over real corpora: each reads a small file in its corpus' own format."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import gin
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
import zstandard
from etils import epath
from made_rows import Reference, small_model, write_bytes_vocabulary, write_model

from sbp_jax import artifacts
from sbp_jax.data import rows as row_format
from sbp_jax.data import tasks as task_registry
from sbp_jax.data import vocabularies
from sbp_jax.data.cache import cache
from sbp_jax.errors import UserError
from sbp_jax.evaluate.stage import evaluate
from tasks import c4, dclm, fineweb_edu, folder, lambada, mmlu, openwebtext2, wikipedia

VOCABULARY = seqio.ByteVocabulary()
BYTES = vocabularies.Bytes()
LENGTH = 64  # tokens in a row
MODEL = small_model(BYTES.size)


def examples(task: seqio.Task) -> list[dict[str, str]]:
    """What a stage reads of a task; text is decoded, and the tokens are those of the text."""
    found = []
    for example in task_registry.examples(task, "train"):
        for name in task.output_features:
            text = example[f"{name}_pretokenized"]
            assert VOCABULARY.decode(example[name].tolist()).encode() == text
        assert not example["rejected"] or not example["targets_pretokenized"]
        found.append({k: v.decode() for k, v in example.items() if isinstance(v, bytes)})
    assert len({example["id"] for example in found}) == len(found)
    return found


def documents(task: seqio.Task) -> list[tuple[str, str]]:
    return [(e["id"], e["targets_pretokenized"]) for e in examples(task) if not e["rejected"]]


def rejected(task: seqio.Task) -> dict[str, str]:
    return {e["id"]: e["rejected"] for e in examples(task) if e["rejected"]}


def bind(**settings) -> None:
    for name, value in settings.items():
        gin.bind_parameter(name.replace("__", "."), value)


def write_tfds(root, name: str, version: str, features: dict, splits: dict) -> None:
    """A TFDS data set as `tfds build` leaves it."""
    directory = root / name / version
    directory.mkdir(parents=True)
    spec = tfds.features.FeaturesDict({key: tfds.features.Text() for key in features})
    infos = []
    for split, shards in splits.items():
        template = tfds.core.ShardedFileTemplate(
            data_dir=directory,
            dataset_name=name.partition("/")[0],
            split=split,
            filetype_suffix="tfrecord",
        )
        for number, records in enumerate(shards):
            path = template.sharded_filepath(shard_index=number, num_shards=len(shards))
            with tf.io.TFRecordWriter(str(path)) as writer:
                for record in records:
                    writer.write(spec.serialize_example(spec.encode_example(record)))
        lengths = [len(records) for records in shards]
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=1, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=directory, features=spec, split_infos=infos, check_data=False
    )
    info = directory / "dataset_info.json"  # in which that leaves the configuration out
    config = {"configName": name.partition("/")[2]}
    info.write_text(json.dumps(json.loads(info.read_text()) | config))


def write_zstd(path, records) -> None:
    content = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.ZstdCompressor().compress(content))


def dclm_record(i: int) -> dict:
    return {
        "bff_contained_ngram_count_before_dedupe": 0,
        "language_id_whole_page_fasttext": {"en": 0.98},
        "metadata": {"WARC-Type": "response", "WARC-Record-ID": f"<urn:uuid:{i}>"},
        "previous_word_count": 5,
        "text": f"Page {i} of the web.\nIt has two lines.",
        "url": f"http://example.com/{i}",
        "warcinfo": "robots: classic",
        "fasttext_openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train_prob": 0.1,
    }


def test_dclm(tmp_path):
    place = "global-shard_01_of_10/local-shard_0_of_10/shard_0000000{}_processed.jsonl.zst"
    for number in range(2):
        records = [dclm_record(100 * number + i) for i in range(60)]
        write_zstd(tmp_path / place.format(number), [*records, {"url": "http://no.text"}])
    bind(dclm__files=f"{tmp_path}/global-shard_*/*/*.jsonl.zst")
    bind(dclm__heldout_share=0.35, dclm__dev_share=0.1)  # an empty text would be held out
    splits = {name: getattr(dclm, name)(VOCABULARY) for name in ("train", "dev", "heldout")}
    assert all(splits[name].name == f"dclm_{name}" for name in splits)
    found = {name: examples(task) for name, task in splits.items()}
    assert rejected(splits["train"]) == {
        f"{place.format(n)}:61": "no text under 'text'" for n in range(2)
    }
    everything = [e for split in found.values() for e in split if not e["rejected"]]
    assert {(e["id"], e["targets_pretokenized"], e["url"]) for e in everything} == {
        (f"{place.format(n)}:{i + 1}", record["text"], record["url"])
        for n in range(2)
        for i in range(60)
        for record in [dclm_record(100 * n + i)]
    }
    assert len(everything) == 120  # nothing twice
    assert 25 <= len(found["heldout"]) <= 60
    assert 3 <= len(found["dev"]) <= 25
    contents = {task_registry.fingerprint(task)["content"] for task in splits.values()}
    bind(dclm__heldout_share=0.3)
    contents.add(task_registry.fingerprint(dclm.heldout(VOCABULARY))["content"])
    assert len(contents) == 4
    bind(dclm__heldout_share=0.0)
    with pytest.raises(UserError, match=r"dclm: heldout_share 0.0 .* must be above 0"):
        dclm.train(VOCABULARY)


def test_fineweb_edu(tmp_path):
    rows = [
        {
            "text": f"Lesson {i}.",
            "id": f"<urn:uuid:{i}>",
            "dump": "CC-MAIN-2024-10",
            "url": f"https://example.org/{i}",
            "date": "2024-02-20T23:20:14Z",
            "file_path": "s3://commoncrawl/…",
            "language": "en",
            "language_score": 0.9,
            "token_count": 3,
            "score": 2.5 + i / 20,
            "int_score": 3,
        }
        for i in range(40)
    ]
    rows[3]["score"] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "000_00000.parquet", row_group_size=9)
    bind(fineweb_edu__files=str(tmp_path))
    bind(fineweb_edu__heldout_share=0.2, fineweb_edu__dev_share=0.1)
    tasks = [getattr(fineweb_edu, name) for name in ("train", "dev", "heldout")]
    everything = [e for task in tasks for e in examples(task(VOCABULARY))]
    assert {(e["id"], e["targets_pretokenized"], e["url"]) for e in everything} == {
        (row["id"], row["text"], row["url"]) for row in rows
    }
    assert len(everything) == 40
    before = task_registry.fingerprint(tasks[0](VOCABULARY))
    bind(fineweb_edu__min_score=3.5)
    assert task_registry.fingerprint(tasks[0](VOCABULARY)) != before
    good = [name for task in tasks for name, _ in documents(task(VOCABULARY))]
    assert sorted(good) == sorted(f"<urn:uuid:{i}>" for i in range(20, 40))
    assert rejected(tasks[0](VOCABULARY)) == {
        f"000_00000.parquet:{i + 1}": "score below 3.5" for i in range(20)
    }
    assert not rejected(tasks[2](VOCABULARY))
    pq.write_table(pa.table({"content": ["x"], "url": ["y"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"other.parquet has no column 'text': it has content, url"):
        examples(tasks[0](VOCABULARY))


def test_openwebtext2(tmp_path):
    records = [
        {"text": f"Story {i}", "meta": {"title": "…", "lang": "en", "url": f"http://a.b/{i}"}}
        for i in range(5)
    ]
    write_zstd(tmp_path / "2020-04.jsonl.zst", [*records, {"text": "x" * 90}, {"text": " "}])
    bind(openwebtext2__files=str(tmp_path / "2020-04.jsonl.zst"), openwebtext2__max_bytes=110)
    task = openwebtext2.heldout(VOCABULARY)
    assert documents(task)[:5] == [(f"2020-04.jsonl.zst:{i + 1}", f"Story {i}") for i in range(5)]
    assert rejected(task) == {"2020-04.jsonl.zst:7": "empty"}
    bind(openwebtext2__max_bytes=100)
    assert rejected(openwebtext2.heldout(VOCABULARY)) == {
        "2020-04.jsonl.zst:6": "longer than 100 bytes",
        "2020-04.jsonl.zst:7": "empty",
    }


def test_c4(tmp_path):
    def page(i, text=None):
        return {
            "text": f"Page {i}." if text is None else text,
            "url": f"https://example.com/{i % 3}",  # not unique here
            "content-type": "text/html",
            "content-length": "9",
            "timestamp": "2019-04-25T12:57:54Z",
        }

    splits = {
        "train": [[page(0), page(1), page(2)], [page(3), page(4, " "), page(5)]],
        "validation": [[page(i) for i in range(10, 20)]],
    }
    write_tfds(tmp_path, "c4/en", "3.1.0", page(0), splits)
    bind(c4__data_dir=str(tmp_path))
    task = c4.train(VOCABULARY)
    assert documents(task) == [
        ("https://example.com/0 train:00000:0", "Page 0."),
        ("https://example.com/1 train:00000:1", "Page 1."),
        ("https://example.com/2 train:00000:2", "Page 2."),
        ("https://example.com/0 train:00001:0", "Page 3."),
        ("https://example.com/2 train:00001:2", "Page 5."),
    ]
    assert rejected(task) == {"https://example.com/1 train:00001:1": "empty"}
    halves = [documents(one(VOCABULARY)) for one in (c4.dev, c4.heldout)]
    assert [text for half in halves for _, text in half] == [f"Page {i}." for i in range(10, 20)]
    assert halves[1][0][0] == "https://example.com/0 validation:00000:5"
    shards = [
        [e["id"] for e in task.get_dataset(None, "train", shuffle=False, shard_info=info)]
        for info in (seqio.ShardInfo(0, 2), seqio.ShardInfo(1, 2))
    ]
    assert [[i.numpy().decode()[-1] for i in shard] for shard in shards] == [["0", "1", "2"]] * 2
    assert task_registry.fingerprint(task)["dataset"] == "c4/en/3.1.0"
    write_tfds(tmp_path, "c4/en", "3.0.1", page(0), {"train": [[page(7)]]})
    bind(c4__config="en:3.0.1")
    assert documents(c4.train(VOCABULARY))[0][1] == "Page 7."


def test_wikipedia(tmp_path):
    articles = [{"title": f"Thing {i}", "text": f"Thing {i} is a thing."} for i in range(200)]
    shards = {"train": [articles[:100], articles[100:]]}
    write_tfds(tmp_path, "wikipedia/20230601.en", "1.0.0", articles[0], shards)
    bind(wikipedia__data_dir=str(tmp_path))
    found = [documents(one(VOCABULARY)) for one in (wikipedia.heldout, wikipedia.dev)]
    assert found[0] == [(f"Thing {i} train:00000:{i}", f"Thing {i} is a thing.") for i in range(2)]
    found.append(documents(wikipedia.train(VOCABULARY)))
    assert sorted(text for split in found for _, text in split) == sorted(
        article["text"] for article in articles
    )
    assert [len(split) for split in found] == [2, 2, 196]


def test_what_tfds_has_not_prepared_is_never_downloaded(tmp_path, monkeypatch):
    for attribute in ("load", "core.DatasetBuilder.download_and_prepare"):
        monkeypatch.setattr(
            f"tensorflow_datasets.{attribute}", lambda *_, **__: pytest.fail("download")
        )
    write_tfds(tmp_path, "c4/en", "3.1.0", {"text": ""}, {"train": [[{"text": "a"}]]})
    bind(c4__data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"c4/en has no split 'validation\[:50%\]': it has train"):
        c4.dev(VOCABULARY)
    bind(c4__config="realnewslike")
    with pytest.raises(UserError, match=r"c4/realnewslike/3.1.0 does not lie .*tfds build"):
        c4.train(VOCABULARY)
    bind(c4__config="nothing")
    with pytest.raises(UserError, match="TFDS knows no data set 'c4/nothing'") as caught:
        c4.train(VOCABULARY)
    assert "\n" not in str(caught.value)


PASSAGES = [
    '"Yes," I thought.\nShe asked for the lighthouse keeper .  He came',
    "he went in \t and closed the door",
    "word",
]


def test_lambada_has_its_loss_on_the_last_word(tmp_path):
    passages = [{"passage": passage + "\n"} for passage in PASSAGES]
    splits = {"train": [passages[:1]], "test": [passages]}
    write_tfds(tmp_path, "lambada", "1.0.0", passages[0], splits)
    (tmp_path / "lambada_test.jsonl").write_text(
        "".join(json.dumps({"text": passage}) + "\n" for passage in [*PASSAGES, ""])
    )
    bind(lambada__data_dir=str(tmp_path))
    bind(lambada_openai__files=str(tmp_path / "lambada_test.jsonl"))
    for task, names, more in (
        (lambada.test, [f"test:00000:{i}" for i in range(3)], {}),
        (
            lambada.openai,
            [f"lambada_test.jsonl:{i}" for i in range(1, 4)],
            {"lambada_test.jsonl:4": "empty"},
        ),
    ):
        made = task(VOCABULARY)
        good = [e for e in examples(made) if not e["rejected"]]
        assert [(e["id"], e["inputs_pretokenized"], e["targets_pretokenized"]) for e in good] == [
            (names[0], '"Yes," I thought.\nShe asked for the lighthouse keeper .  He', "came"),
            (names[1], "he went in \t and closed the", "door"),
        ]
        assert rejected(made) == {names[2]: "fewer than two words", **more}


def test_mmlu_has_its_loss_on_the_answer(tmp_path):
    rows = [
        ["What is 2, or\ntwice 1?", "1", 'the "second"', "3", " four", "B"],
        ["Which?", "a", "b", "c", "d", "D"],
        ["Broken", "a", "b"],
        ["Which?", "a", "b", "c", "d", "AB"],
        ["Which?", "a", "", "c", "d", "A"],
    ]
    for split in ("dev", "val", "test"):
        (tmp_path / split).mkdir()
        for subject in ("anatomy", "high_school_physics"):
            with (tmp_path / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(rows)
    (tmp_path / "README.txt").write_text("not read")
    with (tmp_path / "test" / "anatomy_test.csv").open("ab") as file:
        file.write(b"\xe4?,a,b,c,d,A\nLast?,a,b,c,d,C")
    bind(mmlu__directory=str(tmp_path))
    found = examples(mmlu.test(VOCABULARY))
    assert found[0] == {
        "id": "anatomy_test.csv:1",
        "subject": "anatomy",
        "inputs_pretokenized": (
            'What is 2, or\ntwice 1?\nA. 1\nB. the "second"\nC. 3\nD. four\nAnswer:'
        ),
        "targets_pretokenized": 'the "second"',
        "rejected": "",
    }
    good = [(e["id"], e["targets_pretokenized"]) for e in found if not e["rejected"]]
    assert good[1:3] == [("anatomy_test.csv:2", "d"), ("anatomy_test.csv:7", "c")]
    assert [e["rejected"] for e in found[2:6]] == [
        "not six columns",
        "the answer is not A, B, C or D",
        "empty",
        "not UTF-8",
    ]
    assert {e["subject"] for e in found} == {"anatomy", "high_school_physics"}
    assert examples(mmlu.validation(VOCABULARY))[0]["id"] == "anatomy_val.csv:1"
    assert len(documents(mmlu.dev(VOCABULARY))) == 4
    (tmp_path / "dev" / "anatomy_dev.csv").write_text('"open,a,b,c,d,A')
    with pytest.raises(UserError, match=r"anatomy_dev.csv, line 1: .*unpack it again"):
        examples(mmlu.dev(VOCABULARY))


def test_pairs_of_a_task_have_loss_on_targets_alone(tmp_path):
    bind(lambada_openai__files=str(tmp_path))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": PASSAGES[1]}))
    features = lambada.openai(VOCABULARY).output_features
    assert (features["inputs"].add_eos, features["targets"].add_eos) == (False, True)


@pytest.mark.parametrize(
    ("factory", "setting"),
    [
        (dclm.train, "dclm.files"),
        (fineweb_edu.train, "fineweb_edu.files"),
        (openwebtext2.heldout, "openwebtext2.files"),
        (lambada.openai, "lambada_openai.files"),
        (mmlu.test, "mmlu.directory"),
        (folder.train, "folder.directory"),
    ],
)
def test_where_nothing_lies_is_named_with_its_setting(factory, setting, tmp_path):
    gin.bind_parameter(setting, str(tmp_path / "none"))
    with pytest.raises(UserError, match=f"{setting} = .*none.* is no folder and no file"):
        factory(VOCABULARY)
    gin.bind_parameter(setting, str(tmp_path))
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match=f"{setting} = .* holds no file that ends in"):
        factory(VOCABULARY)


def test_a_factory_wants_its_place():
    with pytest.raises(Exception, match="files"):
        dclm.train(VOCABULARY)


def test_gin_can_load_every_task_where_there_is_no_tensorflow():
    modules = (c4, dclm, fineweb_edu, folder, lambada, mmlu, openwebtext2, wikipedia)
    names = ", ".join(module.__name__ for module in modules)
    code = f"import sys, {names}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    for module in modules:
        for word in ("What:", "Source:", "Licence:", "Size:", "Prepare:"):
            assert f"\n{word}" in module.__doc__, module.__name__


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a model and its vocabulary, and what the model says of single questions."""
    directory = epath.Path(tmp_path_factory.mktemp("run"))
    write_bytes_vocabulary(directory)
    return directory, Reference(MODEL, write_model(directory, MODEL), LENGTH)


LAST_WORDS = [
    "She asked for the lighthouse keeper . He came",
    "x " * 60 + "and shut the door",
    "word",
]
QUESTIONS = [
    ["What is 2?", "1", "two", "3", "four", "B"],
    ["Which?", "a", "b", "c", "d", "D"],
    ["Broken", "a", "b"],
]
STORIES = ["A story.", "Another one, of more than a row's sixty-four bytes, so that it is split."]


def write_corpora(folder) -> None:
    """Three small files, each in its corpus' own format, and where they lie in gin."""
    folder.mkdir()
    lines = "".join(json.dumps({"text": passage}) + "\n" for passage in LAST_WORDS)
    (folder / "lambada_test.jsonl").write_text(lines)
    (folder / "test").mkdir()
    with (folder / "test" / "anatomy_test.csv").open("w", newline="") as file:
        csv.writer(file).writerows(QUESTIONS)
    stories = "".join(json.dumps({"text": story, "meta": {}}) + "\n" for story in STORIES)
    packed = zstandard.ZstdCompressor().compress(stories.encode())
    (folder / "2020-04.jsonl.zst").write_bytes(packed)
    gin.bind_parameter("lambada_openai.files", str(folder / "lambada_test.jsonl"))
    gin.bind_parameter("mmlu.directory", str(folder))
    gin.bind_parameter("openwebtext2.files", str(folder / "2020-04.jsonl.zst"))


@pytest.mark.parametrize(
    ("task", "join", "expected"),
    [
        (
            lambada.openai,
            " ",
            [
                ("She asked for the lighthouse keeper . He", " came"),
                ("x " * 60 + "and shut the", " door"),
            ],
        ),
        (
            mmlu.test,
            " ",
            [
                ("What is 2?\nA. 1\nB. two\nC. 3\nD. four\nAnswer:", " two"),
                ("Which?\nA. a\nB. b\nC. c\nD. d\nAnswer:", " d"),
            ],
        ),
        (openwebtext2.heldout, None, None),
    ],
)
def test_the_perplexity_of_real_formats(trained, tmp_path, task, join, expected):
    run_directory, reference = trained
    write_corpora(tmp_path / "corpora")
    name = task.__module__.partition(".")[2]
    cache(
        artifacts.Run(run_directory, f"rows/{name}"),
        task=f"{task.__module__}:{task.__name__}",
        length=LENGTH,
        join=join,
        runner="inline",
    )
    evaluate(
        artifacts.Run(run_directory, f"scores/{name}"),
        checkpoint="pretrain",
        rows=f"rows/{name}",
        batch_size=8,
    )
    found = json.loads((run_directory / f"scores/{name}/scores.json").read_text())
    encode, bos, eos = BYTES.encode, BYTES.bos, BYTES.eos
    if expected is None:  # documents with their ends, long ones in parts
        parts = [
            (piece.first, piece.targets.tolist())
            for story in STORIES
            for piece in row_format.split(
                row_format.document_piece(encode(story), bos, eos), LENGTH
            )
        ]
        assert len(parts) == 3
        nats = sum(-reference.score([first], targets)[0] for first, targets in parts)
        tokens, size = sum(len(story) + 1 for story in STORIES), sum(map(len, STORIES))
    else:  # no end between question and answer, none behind, and the context cut on the left
        nats = sum(
            -reference.score([bos, *encode(a)][-(LENGTH + 1 - len(b)) :], encode(b))[0]
            for a, b in expected
        )
        tokens = size = sum(len(b) for _, b in expected)
    assert (found["tokens"], found["bytes"]) == (tokens, size)
    assert found["loss"] == pytest.approx(nats / tokens, 1e-5)
    assert found["nats_per_document"] == pytest.approx(nats / 2, 1e-5)


def test_a_task_without_inputs_joins_nothing(trained, tmp_path):
    run_directory, _ = trained
    write_corpora(tmp_path / "corpora")
    run = artifacts.Run(run_directory, "rows/wrong")
    with pytest.raises(UserError, match="has targets and no inputs: leave out"):
        cache(run, task="tasks.openwebtext2:heldout", length=LENGTH, join=" ", runner="inline")
    with pytest.raises(UserError, match="are limits of pairs"):
        cache(
            run,
            task="tasks.lambada:openai",
            length=LENGTH,
            join=" ",
            seed_length=4,
            target_length=4,
        )
