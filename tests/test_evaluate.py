"""Held-out scores by source; what tasks ask for, told without the harness."""

from __future__ import annotations

import json
import math
import sys

import gin
import jax
import pytest
from etils import epath
from made_rows import (
    sentences,
    small_model,
    write_bytes_vocabulary,
    write_model,
    write_rows_artefact,
)

from sbp_jax import artifacts, cli
from sbp_jax.data import vocabularies
from sbp_jax.errors import UserError
from sbp_jax.evaluate import harness
from sbp_jax.evaluate.stage import evaluate

VOCABULARY = vocabularies.Bytes()
MODEL = small_model(VOCABULARY.size)
LENGTH = 64


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    directory = epath.Path(tmp_path_factory.mktemp("run"))
    write_model(directory, MODEL)
    write_bytes_vocabulary(directory)
    write_bytes_vocabulary(directory, "larger", size=300)
    write_rows_artefact(
        directory,
        "rows/of_vocab",
        {"a": [[5] * 9]},
        length=LENGTH,
        vocab_size=VOCABULARY.size,
        vocab=directory / "vocab",
    )
    return directory


def scored(directory, rows, scope, **options):
    evaluate(
        artifacts.Run(directory, scope),
        checkpoint="pretrain",
        rows=rows,
        batch_size=jax.device_count(),
        **options,
    )
    return json.loads((directory / scope / "scores.json").read_text())


def test_each_source_has_the_scores_that_it_has_alone(run_directory):
    sources = {
        "short": list(sentences(9, VOCABULARY.size, 0)),
        "other": list(sentences(30, 90, 1)),
    }
    options = {"length": LENGTH, "vocab_size": VOCABULARY.size}
    for name, documents in sources.items():
        write_rows_artefact(run_directory, f"rows/{name}", {name: documents}, **options)
    write_rows_artefact(run_directory, "rows/both", sources, **options)
    whole = scored(run_directory, "rows/both", "scores/both")
    assert list(whole["sources"]) == ["short", "other"]
    total = {"nats": 0.0, "tokens": 0, "bytes": 0}
    for name, found in whole["sources"].items():
        alone = scored(run_directory, f"rows/{name}", f"scores/{name}")
        assert found == {key: pytest.approx(alone[key], 1e-6) for key in found}
        assert found["tokens"] == sum(len(document) + 1 for document in sources[name])
        nats = found["loss"] * found["tokens"]
        assert found["bits_per_byte"] == pytest.approx(nats / found["bytes"] / math.log(2))
        assert found["nats_per_document"] == pytest.approx(nats / len(sources[name]))
        total["nats"] += nats
        total["tokens"] += found["tokens"]
        total["bytes"] += found["bytes"]
    losses = [found["loss"] for found in whole["sources"].values()]
    assert abs(losses[0] - losses[1]) > 0.01
    assert whole["loss"] == pytest.approx(total["nats"] / total["tokens"])
    assert whole["bits_per_byte"] == pytest.approx(total["nats"] / total["bytes"] / math.log(2))


def test_without_the_harness_a_line_names_the_remedy(run_directory, monkeypatch):
    def absent(name):
        raise harness.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setitem(sys.modules, "lm_eval", None)  # importing it is an error
    assert "tasks" not in scored(run_directory, "rows/of_vocab", "scores/no_tasks")
    monkeypatch.setattr(harness.importlib.metadata, "version", absent)
    with pytest.raises(UserError) as caught:
        scored(run_directory, "rows/of_vocab", "scores/tasks", tasks="arc_easy")
    assert "not installed: pip install 'lm-eval>=0.4.13'" in caught.value.message
    assert "\n" not in caught.value.message
    assert not (run_directory / "scores/tasks.partial").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": None}, "name held-out rows, tasks, or both"),
        ({"rows": None, "tasks": "a"}, "set evaluate.task_length"),
        ({"tasks": "a", "limit": 0}, "evaluate.limit = 0: expected at least 1"),
        ({"tasks": "a", "num_fewshot": -1}, "evaluate.num_fewshot = -1: expected at least 0"),
        ({"tasks": "a", "include_path": "/no/where"}, "expected a folder of YAML files"),
        ({"tasks": "a", "vocab": "larger"}, "larger is not the vocabulary that"),
        ({"rows": None, "tasks": "a", "task_length": 9, "vocab": "larger"}, "has 300 tokens"),
    ],
)
def test_mistakes_are_told_in_a_line(run_directory, options, message):
    with pytest.raises(UserError, match=message):
        scored(run_directory, **{"rows": "rows/of_vocab", "scope": "wrong", **options})


def test_the_flag_is_over_what_files_say_of_the_scope(tmp_path, monkeypatch, capfd):
    asked = []
    monkeypatch.setattr(
        cli, "_load", lambda target: lambda run: asked.append(gin.get_bindings("evaluate"))
    )
    gin_file = tmp_path / "run.gin"
    gin_file.write_text("a/evaluate.tasks = ('sciq',)\nevaluate.limit = 3\n")
    command = ["evaluate", f"--gin_file={gin_file}", f"--run_dir={tmp_path}", "--scope=a"]
    assert cli.main([*command, "--tasks=arc_easy,piqa"]) == 0
    assert cli.main([*command, "--scope=b", "--tasks=piqa"]) == 0
    assert cli.main(command) == 0
    assert [one["tasks"] for one in asked] == ["arc_easy,piqa", "piqa", "piqa", ("sciq",)]
    assert asked[0]["limit"] == 3
    capfd.readouterr()
    assert cli.main(["train", f"--run_dir={tmp_path}", "--tasks=sciq"]) == 2
    assert "takes no --tasks" in capfd.readouterr().err
