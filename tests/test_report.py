"""The report, on a run whose artefacts were written by hand but committed through manifests."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from etils import epath

from sbp_jax import artifacts
from sbp_jax.data import documents
from sbp_jax.errors import UserError
from sbp_jax.report import plots, results, stage, verdict
from sbp_jax.report.results import Point

CODE = ("sbp_jax.errors",)
ARMS = {
    "repetition": {"train": "pretrain", "scores": "evaluate/repetition"},
    "sbp": {"train": "joint", "scores": "evaluate/sbp"},
    "oracle": {"train": "oracle", "scores": "evaluate/oracle"},
}
LOSSES = {"repetition": 3.0412, "sbp": 3.0021, "oracle": 2.6403}
HOSTILE = {
    "seed/<script>alert(1)</script>": "<script>alert('seed')</script> & <img src=x onerror=alert(2)>",
    "seed/emoji 🦀": "Emoji 🦀🏳️‍🌈 and \x00 a control character.",
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


def source(unique_rows: int, passes: float, synthetic: bool = False) -> dict[str, object]:
    return {
        "rows": round(unique_rows * max(passes, 1)),
        "unique_rows": unique_rows,
        "tokens": unique_rows * 250,
        "passes": passes,
        "synthetic": synthetic,
    }


def train_counts(sources: Mapping[str, Mapping[str, object]], unique: int) -> dict[str, object]:
    return {
        "steps": 500,
        "batch_size": 32,
        "length": 256,
        "train_tokens": 4_096_000,
        "loss_tokens": 4_080_122,
        "unique_tokens": unique,
        "synthetic_tokens": sum(s["tokens"] for s in sources.values() if s["synthetic"]),
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
    import numpy as np
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
    counts = [int(4000 * math.exp(-(((i - 14) / 7) ** 2))) + 5 for i in range(40)]
    statistics = {
        "histogram": {"edges": [i / 40 for i in range(41)], "counts": counts},
        "filters": {"self": 1200, "near duplicates": 431, "below alpha": 23_456, "cap": 77},
        "pairs_per_seed": 7.25,
    }
    artefact(
        directory,
        "pairs",
        "pair",
        {"statistics.json": json.dumps(statistics)},
        {"pairs": 8_765, "seeds": 1_209},
        inputs=["rows/real"],
        config={"alpha": 0.45},
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


def make_run(directory: epath.Path, losses: Mapping[str, float] = LOSSES) -> epath.Path:
    """A run with all that the report can show."""
    texts = {**HOSTILE, **{f"seed/{n}": f"Document {n} of the pool." for n in range(20)}}
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
    make_pairs(directory)
    make_synthetic(directory, written_documents(list(texts)))
    return directory
