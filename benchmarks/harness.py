"""Scores of the harness' tasks beside those of its own Hugging Face model class.

    .venv/bin/python benchmarks/harness.py [--json] [--questions=60] [--steps=150] [--peers=DIR]

Two models of some 0.4M parameters learn a little of Python's standard library here, one a Llama
(untied), one a Qwen3 (tied), with byte-level BPE vocabularies made of the same text, with and
without a BOS. They are written as Hugging Face folders, and lm-evaluation-harness asks them local
tasks of every kind of request: multiple choice, the last words of a text, the perplexity of texts
of several windows, and answers up to a stop. Contexts are longer than the model reads, too. Once
through `sbp_jax.evaluate.harness_model` on a mesh of two devices, once through the harness' own
`HFLM` in an environment of its own, both in float32. Compared are every log-likelihood, every
greedy flag, every answer and every metric.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import random
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from train import _output, peer_python

HERE = pathlib.Path(__file__).parent
PEER = ["torch==2.13.0", "transformers==5.24.0", "lm-eval==0.4.13", "accelerate"]
SHAPE = {"width": 64, "layers": 3, "heads": 4, "kv_heads": 2, "head_size": 16, "hidden": 160}
VOCAB_SIZE, LENGTH, BATCH_SIZE, TRAINED_LENGTH = 1024, 192, 16, 256
EOS, BOS = "<|endoftext|>", "<|begin_of_text|>"
TOLERANCE = 1e-3  # nats, of a request
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
# `bos`: whether the vocabulary has one, from which its tokenizer starts texts. `bos_first`: that
# every text starts from it, as for models trained here; HFLM is told to add it.
CASES: dict[str, dict[str, Any]] = {
    "llama, no BOS": {"qk_norm": False, "tied": False, "bos": False},
    "qwen3, BOS by the tokenizer": {"qk_norm": True, "tied": True, "bos": True},
    # Of the perplexity of a text HFLM counts the BOS that it adds, which nothing here predicts.
    "llama, BOS first": {
        "qk_norm": False,
        "tied": False,
        "bos": True,
        "bos_first": True,
        "kinds": ["choice", "word", "answer"],
    },
}
COMMON = """\
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
fewshot_split: test
metadata:
  version: 1.0
"""
YAML = {
    "choice": """\
task: choice
output_type: multiple_choice
num_fewshot: 1
doc_to_text: "{{start}}"
doc_to_target: "{{right}}"
doc_to_choice: "{{choices}}"
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    "word": """\
task: word
output_type: loglikelihood
doc_to_text: "{{start}}"
doc_to_target: "{{end}}"
target_delimiter: ""
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
    "text": """\
task: text
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
""",
    "answer": """\
task: answer
output_type: generate_until
doc_to_text: "{{start}}"
doc_to_target: "{{end}}"
generation_kwargs:
  until: ["\\n\\n", "return"]
  max_gen_toks: 72
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
""",
}


def texts() -> list[str]:
    """The standard library's modules, cut to a few thousand characters, in the same order."""
    found = []
    for path in sorted(pathlib.Path(os.__file__).parent.glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [text[i : i + 4000] for i in range(0, min(len(text), 40_000), 4000)]
    return [text for text in found if len(text) > 1000]


def write_tasks(folder: pathlib.Path, documents: list[str], questions: int) -> None:
    """The YAML files and their data: starts of documents and what follows, theirs and others'."""
    folder.mkdir()
    rng = random.Random(0)
    records = []
    for number in range(questions):
        text = documents[number % len(documents)]
        # At a space: elsewhere a token of the whole may be none of the context, nor behind it.
        at = text.index(" ", rng.randrange(20, 900))
        others = [rng.choice(documents) for _ in range(3)]
        choices = [other[300 : 300 + rng.randrange(5, 60)] for other in others]
        right = number % 4
        choices.insert(right, text[at : at + rng.randrange(5, 60)])
        record = {"start": text[max(0, at - rng.randrange(20, 900)) : at], "text": text[: 3 * at]}
        records.append(
            {
                **record,
                "end": text[at : at + rng.choice((2, 3, 12))],
                "choices": choices,
                "right": right,
            }
        )
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, yaml in YAML.items():
        (folder / f"{name}.yaml").write_text(yaml + COMMON.format(file=data))


def write_tokenizer(folder: pathlib.Path, documents: list[str], bos: bool) -> None:
    """A byte-level BPE vocabulary, as `transformers` reads it."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [EOS, BOS] if bos else [EOS]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS}
    config |= {"bos_token": BOS} if bos else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def make(case: dict[str, Any]) -> None:
    """Leaves the folder of a model that has learnt a little."""
    import jax

    from sbp_jax.data import rows, vocabularies
    from sbp_jax.evaluate.piece_losses import rows_of
    from sbp_jax.model import hugging_face
    from sbp_jax.model.decoder import DecoderConfig
    from sbp_jax.parallel.mesh import MeshConfig, make_layout
    from sbp_jax.train.optimizer import OptimizerConfig, make_optimizer
    from sbp_jax.train.step import init_state, make_train_step

    folder, documents = pathlib.Path(case["model"]), texts()
    folder.mkdir(parents=True)
    write_tokenizer(folder, documents, case["bos"])
    vocabulary = vocabularies.load(folder)
    config = DecoderConfig(
        **SHAPE,
        vocab_size=VOCAB_SIZE,
        qk_norm=case["qk_norm"],
        tied=case["tied"],
        dtype="float32",
    )
    pieces = [
        part
        for document in documents
        for part in rows.split(
            rows.document_piece(vocabulary.encode(document), vocabulary.bos, vocabulary.eos),
            TRAINED_LENGTH,
        )
    ]
    layout = make_layout(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(OptimizerConfig(learning_rate=5e-3), case["steps"])
    state = init_state(config, optimizer, layout, seed=0)
    step = make_train_step(config, optimizer, layout)
    rng = np.random.default_rng(0)
    loss = math.nan
    for index in range(case["steps"]):
        some = [pieces[i] for i in rng.integers(0, len(pieces), 16)]
        batch = jax.device_put(rows_of(some, 16, TRAINED_LENGTH, config), layout.sharding("batch"))
        state, metrics = step(state, batch, jax.random.key(0), index)
        loss = float(metrics.loss)
    parameters = jax.tree.map(np.asarray, state.parameters)
    hugging_face.write(folder / "weights", config, parameters, dtype="float32")
    for path in (folder / "weights").iterdir():
        path.rename(folder / path.name)
    print(f"{folder.name}: {loss:.3f} nats a token")


def ours(case: dict[str, Any]) -> dict[str, Any]:
    """The same tasks of the same folder, on a mesh of all devices."""
    import dataclasses

    import jax
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    from sbp_jax.data import vocabularies
    from sbp_jax.evaluate.harness_model import HarnessModel
    from sbp_jax.model import hugging_face
    from sbp_jax.parallel.mesh import MeshConfig, make_layout
    from sbp_jax.train.step import parameter_shardings

    config = dataclasses.replace(hugging_face.read_config(case["model"]), dtype="float32")
    parameters = hugging_face.read_parameters(case["model"], config)
    layout = make_layout(MeshConfig(data=1, fsdp=-1))
    model = HarnessModel(
        config,
        jax.device_put(parameters, parameter_shardings(config, layout)),
        vocabularies.load(case["model"]),
        layout,
        length=case["length"],
        batch_size=case["batch_size"],
        bos_first=case["bos_first"],
        replica=lambda: jax.device_put(parameters, jax.devices()[0]),
    )
    manager = TaskManager(include_path=case["tasks"], include_defaults=False)
    found = evaluator.simple_evaluate(
        model=model, tasks=case["names"], task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    assert found is not None
    answers = {
        name: [sample["resps"] for sample in sorted(samples, key=lambda s: s["doc_id"])]
        for name, samples in found["samples"].items()
    }
    return {"results": found["results"], "answers": answers}


def in_fresh_process(function: str, case: dict[str, Any], devices: int = 1) -> str:
    """Runs `make` or `ours` of this file; returns what it printed."""
    code = "import sys, json, harness as h; print(json.dumps(h.%s(json.loads(sys.argv[1]))))"
    environment = {
        **os.environ,
        **OFFLINE,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": f"{HERE}:{HERE.parent}",
    }
    return _output([sys.executable, "-c", code % function, json.dumps(case)], environment)


def last_object(said: str) -> dict[str, Any]:
    """What a process printed last as JSON."""
    return json.loads([line for line in said.splitlines() if line.startswith("{")][-1])


def compare(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The largest differences of log-likelihoods and metrics, and how many answers differ."""
    found: dict[str, Any] = {"requests": 0, "nats": 0.0, "greedy": 0, "texts": 0, "metrics": 0.0}
    found |= {"greedy_of_hf": 0, "characters_of_hf": 0}  # that there was something to differ in
    pairs = []
    for name, answers in theirs["answers"].items():
        for one, other in zip(mine["answers"][name], answers, strict=True):
            pairs += list(zip(one, other, strict=True))
    for (left,), (right,) in pairs:  # of each request the only repeat
        found["requests"] += 1
        if isinstance(left, str):
            found["texts"] += left != right
            found["characters_of_hf"] += len(right)
            continue
        left, right = (x if isinstance(x, list) else [x, None] for x in (left, right))
        found["nats"] = max(found["nats"], abs(float(left[0]) - float(right[0])))
        found["greedy"] += left[1] != right[1]
        found["greedy_of_hf"] += right[1] is True
    for name, metrics in theirs["results"].items():
        for metric, value in metrics.items():
            if "," in metric and isinstance(value, float):
                difference = abs(value - mine["results"][name][metric]) / max(1.0, abs(value))
                found["metrics"] = max(found["metrics"], difference)
    found["agrees"] = (
        found["nats"] <= TOLERANCE
        and found["metrics"] <= TOLERANCE
        and not found["greedy"]
        and not found["texts"]
    )
    return found


def measure(questions: int, steps: int, peers: pathlib.Path) -> dict[str, Any]:
    """Differences by case; why the peer is absent."""
    absent: dict[str, str] = {}
    found: dict[str, Any] = {}
    try:
        python = peer_python("harness", peers, PEER)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return {"cases": None, "absent": {"hf": str(error)}}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_tasks(folder / "tasks", texts(), questions)
        for number, (title, settings) in enumerate(CASES.items()):
            case = {
                "bos_first": False,
                "kinds": list(YAML),
                **settings,
                "model": str(folder / f"model_{number}"),
                "tasks": str(folder / "tasks"),
                "length": LENGTH,
                "batch_size": BATCH_SIZE,
                "steps": steps,
            }
            case["names"] = case["kinds"]
            case["add_bos"] = True if case["bos_first"] else None
            print(in_fresh_process("make", case).splitlines()[0], file=sys.stderr)
            mine = last_object(in_fresh_process("ours", case, devices=2))
            script = str(HERE / "peers/harness_hf.py")
            command = [python, script, json.dumps(case)]
            theirs = last_object(_output(command, {**os.environ, **OFFLINE}))
            metrics = {
                task: {k: v for k, v in values.items() if "," in k and isinstance(v, float)}
                for task, values in mine["results"].items()
            }
            found[title] = {**compare(mine, theirs), "ours": metrics}
    return {"tolerance": TOLERANCE, "cases": found, "absent": absent}


def main() -> None:
    """Measures and prints; the exit code is 1 where the two differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    parser.add_argument("--peers", type=pathlib.Path, default=pathlib.Path(cache) / "sbp_jax/peers")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    result = measure(flags.questions, flags.steps, flags.peers)
    if flags.json:
        print(json.dumps(result, indent=2))
    elif result["cases"] is None:
        print(f"hf absent: {result['absent']['hf']}")
    for title, found in ({} if flags.json else result["cases"] or {}).items():
        print(
            f"{title}: {found['requests']} requests, log-likelihoods within {found['nats']:.1e} "
            f"nats, metrics within {found['metrics']:.1e}, {found['greedy']} greedy flags and "
            f"{found['texts']} answers differ"
        )
    if not all(found["agrees"] for found in (result["cases"] or {}).values()):
        sys.exit("the scores differ")


if __name__ == "__main__":
    main()
