"""The stage `sbp conditioning`: what reading a related document is worth to the synthesizer.

The loss of d2 after its d1 is compared with that of the same d2 after another document, drawn at
random, and with none. A synthesizer that has learnt to use d1 is better after its own; one that has
only gone on learning the language is not. It is told by bands of similarity, because that is what α
is chosen by.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import gin
import grain
import numpy as np
from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.checkpoints import load_parameters, model_config
from sbp_jax.data import loader, vocabularies
from sbp_jax.data import rows as row_format
from sbp_jax.data.rows import Piece
from sbp_jax.errors import UserError
from sbp_jax.evaluate.piece_losses import make_piece_losses
from sbp_jax.pair.stage import PAIRS
from sbp_jax.parallel import processes
from sbp_jax.parallel.mesh import MeshConfig, make_layout
from sbp_jax.settings import configurable
from sbp_jax.train.step import parameter_shardings

SCORES = "scores.json"
BANDS = 4
CONDITIONS = ("related", "random", "alone")


class TextPair(NamedTuple):
    """A pair as `sbp pair` wrote it: d1 and d2 with their ids, and their similarity."""

    seed_id: str
    target_id: str
    similarity: float
    seed: str
    target: str


@configurable
def conditioning(
    run: artifacts.Run,
    *,
    checkpoint: str = "tune",
    pairs: str = "pairs_dev",
    vocab: str = "vocab",
    seed_length: int = gin.REQUIRED,
    target_length: int = gin.REQUIRED,
    step: int | str = "best",
    pairs_at_most: int | None = 2000,
    seed: int = 0,
    batch_size: int = 16,
    mesh: MeshConfig | None = None,
) -> None:
    """Leaves `scores.json`: losses of d2 after its d1, after another document, and alone.

    Args:
      run: names the artefact.
      checkpoint: train artefact, of the synthesizer.
      pairs: artefact of `sbp pair` whose targets the synthesizer was not trained on.
      vocab: the run's vocabulary.
      seed_length: d1 is cut to so many tokens, as for training.
      target_length: likewise d2, its end among them.
      step: which checkpoint: `last`, `best` by dev loss, or a step.
      pairs_at_most: so many pairs, drawn at random; None for all.
      seed: of what is drawn.
      batch_size: rows at a time; the scores do not depend on it.
      mesh: how parameters and batch are laid over the devices.

    Raises:
      UserError: an argument is out of range, the vocabulary is another than the model's, or a
        target is related to every seed there is.
    """
    limits = {"seed_length": seed_length, "target_length": target_length}
    for name, limit in {**limits, "pairs_at_most": pairs_at_most}.items():
        if limit is not None and limit < 1:
            raise UserError(f"conditioning.{name} = {limit}: expected at least 1")
    paths = {
        "checkpoint": run.path(checkpoint),
        "pairs": run.path(pairs),
        "vocab": run.path(vocab),
    }
    layout = make_layout(mesh or MeshConfig())
    loader.check_batch(batch_size, layout.batch_shards)
    stage = artifacts.begin(
        run,
        "conditioning",
        config={"step": step, "pairs_at_most": pairs_at_most, "seed": seed, **limits},
        inputs=paths,
        code=(
            "sbp_jax.evaluate.conditioning",
            "sbp_jax.evaluate.piece_losses",
            "sbp_jax.model",
            "sbp_jax.data.rows",
            "sbp_jax.data.vocabularies",
        ),
        writer=processes.is_writer(),
    )
    if stage.finished:
        return
    model, vocabulary = model_config(paths["checkpoint"]), vocabularies.load(paths["vocab"])
    if vocabulary.size > model.vocab_size:
        raise UserError(
            f"{paths['vocab']} has {vocabulary.size} tokens, the model of {paths['checkpoint']} "
            f"{model.vocab_size}: name the vocabulary that it was trained with"
        )
    every = read_pairs(paths["pairs"])
    rng = np.random.default_rng(seed)
    chosen = [every[i] for i in sorted(rng.permutation(len(every))[:pairs_at_most].tolist())]
    others = draw_others(chosen, every, rng)
    parameters, info = load_parameters(
        paths["checkpoint"], None, step, parameter_shardings(model, layout)
    )
    losses = make_piece_losses(
        parameters,
        model,
        layout,
        length=seed_length + 1 + target_length,
        batch_size=batch_size,
    )
    pieces = pieces_of(chosen, others, vocabulary, seed_length, target_length)
    nats = {name: losses(pieces[name], name) for name in CONDITIONS}
    tokens = np.array([piece.loss_tokens for piece in pieces["related"]])
    scores = summary(chosen, nats, tokens)
    scores |= {"checkpoint_step": info.step, "checkpoint": info.hash}
    if processes.is_writer():
        artifacts.write_atomic(stage.work / SCORES, json.dumps(scores, indent=2))
        stage.commit({name: scores[name] for name in ("pairs", "tokens", *CONDITIONS)})
    logging.info(
        "%s: d2 %.4f nats per token after its d1, %.4f after another document, %.4f alone",
        run.scope,
        *(scores[name] for name in CONDITIONS),
    )


def read_pairs(directory: epath.Path) -> list[TextPair]:
    """All pairs of an artefact.

    Raises:
      UserError: there is no artefact of `sbp pair`.
    """
    if artifacts.read_manifest(directory).stage != "pair":
        raise UserError(f"{directory} holds no pairs: name an artefact of `sbp pair`")
    records = grain.sources.ArrayRecordDataSource([str(directory / PAIRS)])
    fields = ("seed_id", "target_id", "similarity", "inputs", "targets")
    found = (json.loads(records[i]) for i in range(len(records)))
    return [TextPair(*(record[name] for name in fields)) for record in found]


def draw_others(
    chosen: Sequence[TextPair], every: Sequence[TextPair], rng: np.random.Generator
) -> list[str]:
    """For each pair the text of a random other seed, which is not related to its d2.

    No seed that is paired with d2 is drawn, nor d2 itself, nor a text that is d1's or d2's.

    Raises:
      UserError: a target has no other seed.
    """
    texts = {pair.seed_id: pair.seed for pair in every}
    ids = list(texts)
    related: dict[str, set[str]] = {}
    for pair in every:
        related.setdefault(pair.target_id, set()).add(pair.seed_id)

    def fits(other: str, pair: TextPair) -> bool:
        is_related = other in related[pair.target_id]
        return not is_related and texts[other] not in (pair.seed, pair.target)

    found = []
    for pair in chosen:
        drawn = (ids[i] for i in rng.integers(len(ids), size=32))
        other = next((one for one in drawn if fits(one, pair)), None)
        if other is None:  # nearly all are related: look at each of the others
            left = [one for one in ids if fits(one, pair)]
            if not left:
                raise UserError(
                    f"conditioning: every seed is related to {pair.target_id!r}: there is none to "
                    "compare with; raise pair.alpha, or pair more documents"
                )
            other = left[rng.integers(len(left))]
        found.append(texts[other])
    return found


def pieces_of(
    chosen: Sequence[TextPair],
    others: Sequence[str],
    vocabulary: vocabularies.Vocabulary,
    seed_length: int,
    target_length: int,
) -> dict[str, list[Piece]]:
    """Each d2 after its d1, after another document, and alone; with loss on the same tokens.

    Returns:
      By condition, in the order of the pairs.
    """
    bos, eos = vocabulary.bos, vocabulary.eos
    seeds, random, targets = (
        vocabulary.encode_batch(texts)
        for texts in ([p.seed for p in chosen], others, [p.target for p in chosen])
    )
    after = {
        name: [
            row_format.pair_piece(d1, d2, bos, eos, seed_length, target_length)
            for d1, d2 in zip(read, targets, strict=True)
        ]
        for name, read in (("related", seeds), ("random", random))
    }
    # As the base model was trained: a document starts from BOS.
    alone = [Piece(np.array([*d2, eos][:target_length], np.int32), bos) for d2 in targets]
    return {**after, "alone": alone}


def summary(
    chosen: Sequence[TextPair], nats: dict[str, np.ndarray], tokens: np.ndarray
) -> dict[str, Any]:
    """Losses of all pairs together and by bands of similarity with about as many pairs each.

    Args:
      chosen: the pairs.
      nats: of each d2 by condition, float64 [pairs].
      tokens: of each d2, int [pairs].

    Returns:
      For all pairs, and for each of `bands` between `low` and `high`: `pairs`, `tokens`; nats per
      token `related`, `random` and `alone`; the `gain`, by how many nats per token d2 is better
      after its own d1 than after another document, and its standard error `gain_error`, for which
      pairs with one d2 are one observation (None if there is only one d2); `won`, the share of
      pairs that are better after their own.
    """
    similarities = np.array([pair.similarity for pair in chosen])
    edges = np.unique(np.quantile(similarities, np.linspace(0, 1, BANDS + 1)))
    band_of = np.searchsorted(edges[1:-1], similarities, "right")
    names = np.unique([pair.target_id for pair in chosen], return_inverse=True)[1]

    def scores(members: np.ndarray) -> dict[str, Any]:
        size = int(tokens[members].sum())
        better = nats["random"][members] - nats["related"][members]
        gain = float(better.sum()) / size
        _, place = np.unique(names[members], return_inverse=True)
        rest = np.bincount(place, better - gain * tokens[members])
        count = len(rest)
        error = np.sqrt(np.sum(rest**2) * count / (count - 1)) / size if count > 1 else None
        return {
            "pairs": len(members),
            "tokens": size,
            **{name: float(nats[name][members].sum()) / size for name in CONDITIONS},
            "gain": gain,
            "gain_error": None if error is None else float(error),
            "won": float(np.mean(better > 0)),
        }

    bands = []
    for number in range(max(len(edges) - 1, 1)):
        members = np.flatnonzero(band_of == number)
        if len(members):
            low, high = similarities[members].min(), similarities[members].max()
            bands.append({"low": float(low), "high": float(high), **scores(members)})
    return {**scores(np.arange(len(chosen))), "bands": bands}
