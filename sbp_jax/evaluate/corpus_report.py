"""The stage `sbp corpus-report`: what a synthetic corpus is like beside the real text it is from.

Real text is the yardstick: a figure of synthetic text alone says nothing. So every figure is taken
of as many documents of D_pretrain, drawn by a fixed seed. They are diagnostics: whether a corpus is
worth training on is told by training on it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gin
import numpy as np
from absl import logging
from etils import epath
from numpy.typing import ArrayLike

from sbp_jax import artifacts
from sbp_jax.checkpoints import load_parameters, model_config
from sbp_jax.data import loader, vocabularies
from sbp_jax.data import rows as row_format
from sbp_jax.data.documents import Document, Documents
from sbp_jax.data.vocabularies import Vocabulary
from sbp_jax.errors import UserError
from sbp_jax.evaluate import corpus_measures as measures
from sbp_jax.evaluate.piece_losses import make_piece_losses
from sbp_jax.pair import embedders
from sbp_jax.pair.embed import Texts
from sbp_jax.parallel.mesh import MeshConfig, make_layout
from sbp_jax.progress import progress
from sbp_jax.settings import configurable
from sbp_jax.text.compression import compression
from sbp_jax.text.repetition import repetition
from sbp_jax.text.shingles import containment, shingles, words
from sbp_jax.train.step import parameter_shardings

REPORT = "report.json"
PAGE = "report.html"
SYNTHETIC, REAL = 0, 1  # as every list of the two has them


@configurable
def corpus_report(
    run: artifacts.Run,
    *,
    synthetic: str = "synthetic",
    documents: str = "rows/real",
    vocab: str = "vocab",
    checkpoint: str | None = "pretrain",
    checkpoint_step: int | str = "last",
    length: int = gin.REQUIRED,
    embeddings: str | None = "embed",
    documents_at_most: int = 1000,
    corpus_at_most: int | None = 100_000,
    seed: int = 0,
    batch_size: int = 16,
    mesh: MeshConfig | None = None,
) -> None:
    """Leaves `report.json` and the page `report.html`.

    Args:
      run: names the artefact.
      synthetic: artefact of `sbp synthesize`.
      documents: rows artefact with the documents of D_pretrain, the seeds among them.
      vocab: the run's vocabulary, which counts tokens.
      checkpoint: train artefact under which losses are taken, the base model's; None for none.
      checkpoint_step: which of its checkpoints.
      length: of a document so many tokens are scored.
      embeddings: artefact of `sbp embed` whose embedder tells how near a document is to its seed;
        None to leave that out.
      documents_at_most: so many documents of either kind are drawn.
      corpus_at_most: in so many documents of D_pretrain, drawn at random, n-grams are looked up;
        None for all.
      seed: of what is drawn.
      batch_size: rows at a time; the losses do not depend on it.
      mesh: how parameters and batch are laid over the devices.

    Raises:
      UserError: an argument is out of range, an artefact is not of its kind, or they do not belong
        together.
    """
    for name, value in (
        ("length", length),
        ("documents_at_most", documents_at_most),
        ("corpus_at_most", corpus_at_most),
    ):
        if value is not None and value < 1:
            raise UserError(f"corpus_report.{name} = {value}: expected at least 1")
    layout = make_layout(mesh or MeshConfig())
    loader.check_batch(batch_size, layout.batch_shards)
    paths = {
        "synthetic": run.path(synthetic),
        "documents": run.path(documents),
        "vocab": run.path(vocab),
        **({"checkpoint": run.path(checkpoint)} if checkpoint else {}),
        **({"embeddings": run.path(embeddings)} if embeddings else {}),
    }
    manifest = artifacts.read_manifest(paths["synthetic"])
    if manifest.stage != "synthesize":
        raise UserError(
            f"{paths['synthetic']} was made by `sbp {manifest.stage}`: name an artefact of "
            "`sbp synthesize`"
        )
    embedder = _embedder(paths["embeddings"], paths["documents"]) if embeddings else None
    # Jinja takes its time to load, and the command loads this module for every stage.
    from sbp_jax.evaluate import corpus_page

    stage = artifacts.begin(
        run,
        "corpus_report",
        config={
            "checkpoint_step": checkpoint_step,
            "length": length,
            "documents_at_most": documents_at_most,
            "corpus_at_most": corpus_at_most,
            "seed": seed,
            "template": artifacts.digest(corpus_page.TEMPLATE.read_text()),
        },
        inputs={
            **paths,
            **{
                f"embedder/{role}": run.path(path)
                for role, path in (embedder.inputs.items() if embedder else ())
            },
        },
        code=(
            "sbp_jax.evaluate.corpus_report",
            "sbp_jax.evaluate.corpus_measures",
            "sbp_jax.evaluate.corpus_page",
            "sbp_jax.evaluate.piece_losses",
            "sbp_jax.synthesize.corpus",
            "sbp_jax.pair.embedders",
            "sbp_jax.pair.activations",
            "sbp_jax.model",
            "sbp_jax.text",
            "sbp_jax.data.rows",
            "sbp_jax.data.vocabularies",
        ),
    )
    if stage.finished:
        return
    sample = draw(
        paths["synthetic"],
        manifest.counts["documents"],
        Documents(paths["documents"]),
        documents_at_most,
        corpus_at_most,
        seed,
    )
    vocabulary = vocabularies.load(paths["vocab"])
    found = _figures(sample, vocabulary)
    if checkpoint:
        model = model_config(paths["checkpoint"])
        if vocabulary.size > model.vocab_size:
            raise UserError(
                f"{paths['vocab']} has {vocabulary.size} tokens, the model of "
                f"{paths['checkpoint']} {model.vocab_size}: name the vocabulary that it was "
                "trained with"
            )
        parameters, info = load_parameters(
            paths["checkpoint"], None, checkpoint_step, parameter_shardings(model, layout)
        )
        losses = make_piece_losses(parameters, model, layout, length=length, batch_size=batch_size)
        found["checkpoint"], found["scored_tokens"] = info.hash, length
        bos, eos = vocabulary.bos, vocabulary.eos
        for kind, texts in zip(found["kinds"], sample.texts, strict=True):
            tokens = vocabulary.encode_batch(texts)
            whole = (row_format.document_piece(ids, bos, eos) for ids in tokens)
            pieces = [next(row_format.split(piece, length)) for piece in whole]
            nats = losses(pieces, kind["name"])
            kind["loss"] = _figure(nats, [piece.loss_tokens for piece in pieces])
    found["seeds"] = _seeds(sample, embedder.fit(run, Texts(sample.corpus)) if embedder else None)
    artifacts.write_atomic(stage.work / REPORT, json.dumps(found, indent=2, allow_nan=False))
    artifacts.write_atomic(stage.work / PAGE, corpus_page.render(run.directory.name, found))
    stage.commit({"documents": found["documents"], "looked_up_in": found["looked_up_in"]})
    logging.info("corpus report: %s", run.out / PAGE)


class Sampled(NamedTuple):
    """What is looked at.

    Attributes:
      synthetic: documents with their `text` and `seed_id`, in a random order.
      real: as many documents of D_pretrain, in a random order.
      seeds: the seed of each synthetic document.
      corpus: D_pretrain.
      looked_up: places of its documents in which n-grams are looked up, those of `real` among them.
    """

    synthetic: list[dict[str, Any]]
    real: list[Document]
    seeds: list[Document]
    corpus: Documents
    looked_up: list[int]

    @property
    def texts(self) -> tuple[list[str], list[str]]:
        """Of the synthetic documents and of the real ones."""
        return [one["text"] for one in self.synthetic], [one.text for one in self.real]


def draw(
    directory: epath.Path,
    synthetic_documents: int,
    corpus: Documents,
    at_most: int,
    corpus_at_most: int | None,
    seed: int,
) -> Sampled:
    """Draws documents of both kinds, equally many; those without a word are passed over.

    Raises:
      UserError: a synthetic document's seed is not in the corpus, or there are no documents.
    """
    from sbp_jax.synthesize import corpus as data  # loads TensorFlow

    looked_up = np.random.default_rng([seed, REAL]).permutation(len(corpus))[:corpus_at_most]
    real: list[Document] = []
    for place in looked_up.tolist():
        if len(real) == min(at_most, synthetic_documents):
            break
        if words((document := corpus[place]).text):
            real.append(document)
    order = np.random.default_rng([seed, SYNTHETIC]).permutation(synthetic_documents)
    places = {int(place): rank for rank, place in enumerate(order[: len(real)])}
    fields = ("text", "seed_id")
    documents = progress(data.read(directory, fields), desc="read", unit=" documents")
    found = {places[i]: one for i, one in enumerate(documents) if i in places}
    synthetic = [found[rank] for rank in sorted(found)]
    if not synthetic:
        raise UserError(f"{corpus.directory} has no document with a word in it: name another")
    by_id = {identifier: place for place, identifier in enumerate(corpus.ids)}
    for one in synthetic:
        if one["seed_id"] not in by_id:
            raise UserError(
                f"{corpus.directory} does not hold {one['seed_id']!r}, a seed of {directory}: name "
                "as corpus_report.documents what it was written from"
            )
    seeds = [corpus[by_id[one["seed_id"]]] for one in synthetic]
    return Sampled(synthetic, real, seeds, corpus, sorted(looked_up.tolist()))


def _figures(sample: Sampled, vocabulary: Vocabulary) -> dict[str, Any]:
    """What needs no model; the document that `report.json` holds, but for losses and seeds."""
    texts = sample.texts
    lengths = [
        np.array([len(ids) + 1 for ids in vocabulary.encode_batch(one)], np.int64) for one in texts
    ]
    edges, counts = measures.histogram(lengths)
    equal = min(measures.word_count(one) for one in texts)
    looked_up = (sample.corpus[place].text for place in sample.looked_up)
    unseen = measures.new_ngrams(
        texts, progress(looked_up, desc="n-grams", unit=" documents"), own=(0, 1)
    )
    kinds = []
    for place, name in ((SYNTHETIC, "synthetic"), (REAL, "real")):
        one = texts[place]
        kinds.append(
            {
                "name": name,
                "repetition": _figure([repetition(text) for text in one]),
                "compression": _figure([compression(text) for text in one]),
                "compression_together": compression(measures.first_words(one, equal)),
                "duplicates": measures.duplicates(one),
                "distinct": measures.distinct(one, equal),
                "new_ngrams": {n: found._asdict() for n, found in unseen[place].items()},
                "tokens": _figure(lengths[place]),
                "token_quantiles": dict(
                    zip(
                        measures.QUANTILES,
                        np.quantile(lengths[place], measures.QUANTILES).tolist(),
                        strict=True,
                    )
                ),
                "token_counts": counts[place],
            }
        )
    return {
        "documents": len(sample.real),
        "words_compared": equal,
        "looked_up_in": len(sample.looked_up),
        "corpus_documents": len(sample.corpus),
        "token_edges": edges,
        "kinds": kinds,
    }


def _seeds(sample: Sampled, embed: Callable | None) -> dict[str, Any]:
    """How near documents are to their seeds, to other seeds, and real documents to each other."""
    rng = np.random.default_rng(0)
    texts, real = sample.texts
    others = [_other(sample.real, seed.id, rng) for seed in sample.seeds]
    strangers = [_other(sample.real, document.id, rng) for document in sample.real]
    pairs = {
        "own": (texts, [seed.text for seed in sample.seeds]),
        "other": (texts, [document.text for document in others]),
        "real": (real, [document.text for document in strangers]),
    }
    found: dict[str, Any] = {
        "copied": {
            name: _figure(
                [containment(shingles(a), shingles(b)) for a, b in zip(*two, strict=True)]
            )
            for name, two in pairs.items()
        }
    }
    if embed is not None:
        found["similarity"] = {
            name: _figure(np.sum(embed(first).vectors * embed(second).vectors, axis=1))
            for name, (first, second) in pairs.items()
        }
    return found


def _other(documents: Sequence[Document], identifier: str, rng: np.random.Generator) -> Document:
    """A random document with another id, where there is one."""
    place = int(rng.integers(len(documents)))
    if documents[place].id == identifier:
        place = (place + 1) % len(documents)
    return documents[place]


def _embedder(directory: epath.Path, documents: epath.Path) -> embedders.Embedder:
    """That of an artefact of `sbp embed`, which must have been fitted on these documents."""
    manifest = artifacts.read_manifest(directory)
    if manifest.stage != "embed":
        raise UserError(
            f"{directory} was made by `sbp {manifest.stage}`: name an artefact of `sbp embed`"
        )
    fitted = manifest.inputs[f"documents/{manifest.config['fit_on']}"]["hash"]
    if fitted != artifacts.input_hash(documents):
        raise UserError(
            f"{directory} was fitted on other documents than {documents}: name those, or set "
            "corpus_report.embeddings = None"
        )
    return embedders.from_manifest(manifest.config["embedder"])


def _figure(values: ArrayLike, weights: ArrayLike | None = None) -> dict[str, float]:
    return measures.figure(values, weights)._asdict()
