"""A made-up result of an experiment, as `sbp experiment` leaves one; nothing in it was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from sbp_jax import artifacts
from sbp_jax.experiment import statistics

LOSSES = {
    "repetition": 1.20,
    "sbp": 1.14,
    "oracle": 1.05,
    "repetition_charged": 1.19,
    "random_pairs": 1.18,
    "from_scratch": 1.165,
    "unconditional": 1.195,
    "shuffled_seeds": 1.21,
    "augmentation": 1.17,
    "ideal": 1.08,
}
CONTROLS = (
    "random_pairs",
    "from_scratch",
    "unconditional",
    "shuffled_seeds",
    "augmentation",
    "ideal",
)
TFIDF = {"": "TfidfEmbedder", "dimensions": 512}
DESIGN = {
    "": "Design",
    "share": 0.4,
    "passes": 20.0,
    "temperature": 1.0,
    "top_p": 0.95,
    "embedder": TFIDF,
    "model": {"": "DecoderConfig", "width": 96, "hidden": 240},
}
STEPS = 1000
TOKENS = 1_040_000


def of_seeds(loss: float, seeds: Sequence[int], name: str) -> list[float]:
    """Losses of an arm: seeds differ by their world, and arms in a seed by a little more."""
    own = sum(map(ord, name))
    return [loss + 0.02 * math.sin(seed) + 0.003 * math.sin(own * (seed + 1)) for seed in seeds]


def arm(name: str, seeds: Sequence[int], loss: float) -> dict[str, Any]:
    losses = of_seeds(loss, seeds, name)
    read = {"real": 20.0} if name.startswith("repetition") else {"real": 12.0, name: 0.98}
    if name == "oracle":
        read = {"oracle": 0.98}
    places = [round(TOKENS * (n + 1) / 20) for n in range(20)]
    return {
        "by_seed": losses,
        "dev_by_seed": [one + 0.001 for one in losses],
        "train_by_seed": [one - 0.1 for one in losses],
        "step_by_seed": [800 + 50 * (seed % 3) for seed in seeds],
        "steps": None if name == "repetition_charged" else STEPS,
        "curves": [
            [[place, one + 2.0 * math.exp(-n / 2.5)] for n, place in enumerate(places)]
            for one in losses
        ],
        "passes": [read] * len(seeds),
        "settings": {"learning_rate": 0.003, "weight_decay": 0.1, "dropout": 0.1},
    }


def swept(changes: Mapping[str, Any], seeds: Sequence[int], **losses: float) -> dict[str, Any]:
    arms = {name: arm(name, seeds, loss) for name, loss in losses.items()}
    for one in arms.values():
        one["heldout_loss"] = statistics.mean_and_interval(one["by_seed"])
        del one["curves"]
    return {"changes": dict(changes), "arms": arms}


def result(
    losses: Mapping[str, float] = LOSSES,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    identity: str = "0123456789abcdef",
) -> dict[str, Any]:
    """All that a result may hold."""
    controls = [name for name in CONTROLS if name in losses]
    trained = {name: arm(name, seeds, loss) for name, loss in losses.items()}
    grid = [
        {"learning_rate": rate, "weight_decay": 0.1, "dropout": dropout}
        for rate in (0.001, 0.003, 0.01)
        for dropout in (0.0, 0.1, 0.2)
    ]
    quality = {
        "documents": 16327,
        "tokens": 405711,
        "ended_by_themselves": 0.9911,
        "copies_of_the_seed": 0.0,
        "copies_of_any_document": 0.0004,
        "mostly_copied": 0.0113,
        "different": 1.0,
        "facts_of_the_seed": 0.896,
        "facts_true": 0.791,
        "names_the_seeds_concept": 0.784,
        "concepts_covered": 0.93,
        "new_concept_and_genre": 0.543,
    }
    writing = [n for n in losses if n in ("sbp", *CONTROLS) and n != "augmentation"]
    gate = {
        "start": 0.5,
        "settings": {"learning_rate": 0.003, "weight_decay": 0.1, "dropout": 0.0},
        "step": 120,
    }
    found = {
        "question": "Does SBP beat a tuned repetition of the same documents?",
        "criterion": "SBP below repetition and every control by more than two standard errors",
        "least_share": 0.35,
        "least_seeds_ahead": min(4, len(seeds)),
        "before": "A first run had a smaller grid.",
        "seeds": list(seeds),
        "tuning_seeds": [1000, 1001],
        "config_hash": identity,
        "parameters": 152_064,
        "train_tokens": TOKENS,
        "unique_tokens": 52_000,
        "documents": 2000,
        "passes": 20.0,
        "synthetic_share": 0.4,
        "heldout_tokens": [39_000 for _ in seeds],
        "bayes_loss": [1.01 + 0.02 * math.sin(seed) for seed in seeds],
        **statistics.summary(trained, controls),
        "tuning": {
            name: [
                {
                    **one,
                    "dev_loss": loss
                    + abs(one["dropout"] - 0.1)
                    + abs(one["learning_rate"] - 0.003),
                }
                for one in grid
            ]
            for name, loss in losses.items()
        },
        "synthesizer_tuning": {
            kind: [
                {"start": 0.5, "learning_rate": 0.003, **rest, "dev_loss": 1.06 + dropout}
                for dropout in (0.0, 0.1)
                for rest in [{"weight_decay": 0.1, "dropout": dropout}]
            ]
            for kind in ("related", "random")
        },
        "synthesizers": {
            "related": [
                {
                    **gate,
                    "related": 1.06,
                    "random": 3.98 + 0.01 * n,
                    "gain": 2.92 + 0.01 * n,
                    "copies_new_facts": 0.99,
                }
                for n in range(len(seeds))
            ],
            "random": [
                {**gate, "related": 2.06, "random": 2.08, "gain": 0.02, "copies_new_facts": 0.05}
                for _ in seeds
            ],
        },
        "corpora": {
            name: [{**quality, "facts_true": 0.79 + 0.01 * n} for n in range(len(seeds))]
            for name in writing
        },
        "pairs": [
            {"pairs": 6386, "pairs_per_document": 3.193, "share_without_pairs": 0.0385}
            for _ in seeds
        ],
        "sweeps": {
            "synthetic share": [
                swept({"share": share}, seeds, sbp=1.2 - 0.16 * share * (1.4 - share))
                for share in (0.125, 0.25, 0.6)
            ],
            "sampling": [
                swept({"temperature": temperature, "top_p": top_p}, seeds, sbp=1.1 + 0.05 * top_p)
                for temperature in (0.8, 1.0)
                for top_p in (0.9, 1.0)
            ],
            "embedder": [
                swept({"embedder": TFIDF}, seeds, sbp=1.15),
                swept({"embedder": {"": "ActivationEmbedder", "layer": 1}}, seeds, sbp=1.16),
                swept({"embedder": {"": "ActivationEmbedder", "layer": 2}}, seeds, sbp=1.17),
            ],
            "width": [
                swept({"model.width": width, "model.hidden": hidden}, seeds, repetition=1.2, sbp=1)
                for width, hidden in ((64, 160), (128, 320))
            ],
            "passes": [
                swept({"passes": passes}, seeds, repetition=1.3 - passes / 200, sbp=1.2, oracle=1.1)
                for passes in (5.0, 10.0)
            ],
        },
        "leakage": [
            {
                "ngram": 8,
                "documents": 16327,
                "seeds_in_train": 1.0,
                "heldout": 0.0205,
                "chance": 0.0198,
                "difference": {"mean": 0.0007, "low": -0.0053, "high": 0.0062},
                "whole": {
                    "heldout": 0.0021,
                    "chance": 0.0025,
                    "difference": {"mean": -0.0004, "low": -0.0041, "high": 0.0032},
                },
            }
            for _ in seeds
        ],
        "cost": [{"base": 1_040_000.0, "tuning": 203_520.0, "synthesis": 287_622.0} for _ in seeds],
    }
    return found


def artefact(
    directory: epath.PathLike,
    made: Mapping[str, Any] | None = None,
    *,
    name: str = "worlds",
    seed: int = 1,
    provenance: bool = True,
) -> epath.Path:
    """Commits an experiment's artefact, by default of `result()`; returns its folder."""
    run = artifacts.Run(epath.Path(directory), "experiment")
    config = {"corpus": {"ConceptCorpus": {}}, "design": DESIGN, "seed": seed}
    begun = artifacts.begin(run, "experiment", config=config, inputs={}, code=("sbp_jax.errors",))
    content = {**(result() if made is None else made), "config_hash": begun.manifest.identity}
    (begun.work / "result.json").write_text(json.dumps(content))
    if provenance:
        told = {
            "name": name,
            "machine": "Made-up CPU, 2 cores, 8 GiB of memory",
            "command": f"sbp experiment --gin_file=experiments/{name}.gin",
        }
        (begun.work / "provenance.json").write_text(json.dumps(told))
    begun.commit({"seeds": len(content["seeds"])})
    return run.out
