"""The stage `cache`: SeqIO tasks and mixtures become rows, and nothing goes missing on the way."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import seqio
import tensorflow as tf
from etils import epath

from sbp_jax import artifacts
from sbp_jax.data import documents, rows, vocab
from sbp_jax.data.cache import cache
from sbp_jax.errors import UserError

TEXTS = [f"document {i} says {' '.join(str(i * k) for k in range(i % 17))}" for i in range(40)]
MODULE = "made_up_tasks"


def task(name, examples, features=("targets",), vocabulary=None):
    """A task factory over examples in memory."""

    def factory(run_vocabulary):
        signature = {key: tf.TensorSpec([], tf.string) for key in ("id", *features)}
        source = seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_generator(
                lambda: iter(examples), output_signature=signature
            ),
            splits=["train"],
            num_input_examples={"train": len(examples)},
        )
        chosen = vocabulary or run_vocabulary
        seqio.TaskRegistry.remove(name)
        return seqio.TaskRegistry.add(
            name,
            source=source,
            preprocessors=[seqio.preprocessors.tokenize],
            output_features={
                key: seqio.Feature(chosen, add_eos=key == "targets") for key in features
            },
        )

    return factory


def texts(items):
    return [{"id": f"id{i}", "targets": text} for i, text in enumerate(items)]


TASKS = """
from test_cache import TEXTS, seqio, task, texts

pairs = [{"id": f"{i}", "inputs": TEXTS[i], "targets": TEXTS[i + 1]} for i in range(20)]
plain = task("plain", texts(TEXTS))
more = task("more", texts([f"more of {i}" for i in range(9)]))
empty = task("empty", [])
blank = task("blank", texts(["", "words", ""]))
twice = task("twice", [*texts(TEXTS[:3]), *texts(TEXTS[:1])])
pairs = task("pairs", pairs, ("inputs", "targets"))
foreign = task("foreign", texts(TEXTS), vocabulary=seqio.ByteVocabulary())
no_task = lambda vocabulary: 7
"""


@pytest.fixture
def run_directory(tmp_path, monkeypatch):
    """A run with a vocabulary, and a module of tasks."""
    (tmp_path / f"{MODULE}.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    run = artifacts.Run(epath.Path(tmp_path / "run"), "vocab")
    stage = artifacts.begin(run, "vocab", config={}, inputs={}, code=())
    artifacts.write_atomic(stage.work / vocab.FILE, vocab.train(lambda: TEXTS, 300, 1.0, "texts"))
    stage.commit({})
    return run.directory


def call(directory, attribute, scope="rows", **changes):
    name = f"{MODULE}:{attribute}" if isinstance(attribute, str) else attribute
    cache(artifacts.Run(directory, scope), **{"task": name, "length": 32, **changes})
    return directory / scope


def tokens_of(source: rows.RowSource) -> list[list[int]]:
    """Documents as they stand in rows: from a beginning to an end."""
    found, records = [], source.open()
    for index in range(source.rows):
        row = rows.decode(records[index], source.length)
        for segment in range(1, row.segment_ids.max() + 1):
            found.append(row.targets[row.segment_ids == segment].tolist())
    return found


def test_every_token_of_every_document_is_in_one_row(run_directory):
    out = call(run_directory, "plain")
    manifest = artifacts.read_manifest(out)
    pieces = vocab.load(run_directory / "vocab")
    wanted = [[*pieces.encode(text), vocab.EOS] for text in TEXTS]
    source = rows.open_rows(out).sources["plain"]
    found = tokens_of(source)
    # Long documents are split; what they are put together from is all there.
    assert sorted(itertools.chain(*found)) == sorted(itertools.chain(*wanted))
    short = [one for one in wanted if len(one) <= 32]
    assert all(one in found for one in short)
    assert manifest.counts["documents"] == 40
    assert manifest.counts["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert manifest.counts["tokens"] == sum(map(len, wanted))
    assert manifest.counts["sources"]["plain"]["split_documents"] == 40 - len(short)
    assert source.rows * 32 == manifest.counts["tokens"] + manifest.counts["padding"]


def test_documents_keep_their_ids_and_texts(run_directory):
    found = documents.Documents(call(run_directory, "plain", documents=True))
    assert [(d.id, d.text) for d in found] == [(f"id{i}", text) for i, text in enumerate(TEXTS)]


def test_a_mixture_keeps_its_sources_and_rates(run_directory):
    rates = {f"{MODULE}:plain": 0.7, f"{MODULE}:more": 0.3}
    found = rows.open_rows(call(run_directory, rates)).sources
    assert {name: source.rate for name, source in found.items()} == {"plain": 0.7, "more": 0.3}
    assert [source.documents for source in found.values()] == [40, 9]
    assert not any(source.synthetic for source in found.values())


def test_pairs_are_cut_and_counted(run_directory):
    out = call(run_directory, "pairs", length=40, seed_length=6, target_length=12)
    counts = artifacts.read_manifest(out).counts["sources"]["pairs"]
    pieces = vocab.load(run_directory / "vocab")
    tokens = [pieces.encode(text) for text in TEXTS]
    assert counts["cut"]["d1"] == sum(len(tokens[i]) > 6 for i in range(20))
    assert counts["cut"]["d2"] == sum(len(tokens[i + 1]) + 1 > 12 for i in range(20))
    assert counts["documents"] == 20
    source = rows.open_rows(out).sources["pairs"]
    weights = sum(
        float(rows.decode(source.open()[i], 40).loss_weights.sum()) for i in range(source.rows)
    )
    assert weights == sum(min(len(tokens[i + 1]) + 1, 12) for i in range(20))


def test_documents_without_a_token_are_counted(run_directory):
    counts = artifacts.read_manifest(call(run_directory, "blank")).counts["sources"]["blank"]
    assert counts["documents"] == 1
    assert counts["rejected"] == {"no tokens": {"documents": 2, "ids": ["id0", "id2"]}}


@pytest.mark.parametrize(
    ("attribute", "changes", "message"),
    [
        ("plain", {"split": "test"}, "has no split 'test'"),
        ("empty", {}, "task empty is empty"),
        ("none", {}, "unknown task 'made_up_tasks:none'"),
        ("no_task", {}, "returned 7, expected a seqio.Task"),
        ("twice", {}, "gives the id 'id0' twice"),
        ("foreign", {}, "tokenises 'id0' otherwise than the run's vocabulary"),
        ("plain", {"length": 1}, "cache.length = 1 is too short"),
        ("pairs", {}, "set cache.seed_length and cache.target_length"),
        ("pairs", {"length": 20, "seed_length": 6, "target_length": 15}, "too short"),
        ("plain", {"vocab": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_a_users_mistake_is_one_line(run_directory, attribute, changes, message):
    with pytest.raises(UserError, match=message):
        call(run_directory, attribute, **changes)
    assert not (run_directory / "rows").exists()


@pytest.mark.parametrize("spec", ["plain", "no.such.module:plain", "made_up_tasks:", ":x", "a:b@"])
def test_task_names_that_mean_nothing(run_directory, spec):
    with pytest.raises(UserError, match=r"expected module:attribute|no module"):
        cache(artifacts.Run(run_directory, "rows"), task=spec, length=32)


def test_it_is_the_same_every_time(run_directory):
    for scope in ("one", "two"):
        call(run_directory, "plain", scope)
    one, two = (rows.open_rows(run_directory / s).sources["plain"] for s in ("one", "two"))
    assert one.rows == two.rows
    for index in range(one.rows):
        np.testing.assert_array_equal(
            rows.decode(one.open()[index], 32), rows.decode(two.open()[index], 32)
        )
