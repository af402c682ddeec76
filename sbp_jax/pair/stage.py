"""The stage `sbp pair`: vectors become pairs of related documents, as a SeqIO task reads them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import gin
import numpy as np
from absl import logging
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from sbp_jax import artifacts
from sbp_jax.data import engine, vocabularies
from sbp_jax.data import excluded as excluded_texts
from sbp_jax.data.documents import Document, Documents
from sbp_jax.errors import UserError
from sbp_jax.pair import filters
from sbp_jax.pair import pairs as pairs_module
from sbp_jax.pair import search as search_module
from sbp_jax.pair.vectors import open_vectors
from sbp_jax.progress import progress
from sbp_jax.settings import configurable
from sbp_jax.text.ngram_index import NgramIndex
from sbp_jax.text.shingles import MEASURES

PAIRS = "pairs.array_record"
STATISTICS = "statistics.json"
SEARCH = tuple(
    f"sbp_jax.pair.{name}" for name in ("search", "sharded", "exact", "scann_search", "vectors")
)


@configurable
def pair(
    run: artifacts.Run,
    inspect: str | None = None,
    *,
    embeddings: str = "embed",
    documents: Mapping[str, str] = gin.REQUIRED,
    index: str = "train",
    queries: str = "train",
    alpha: float | None = None,
    upper_bound: float | None = None,
    neighbours: int = 200,
    mutual_only: bool = False,
    same_feature: Sequence[str] = (),
    vocab: str = "vocab",
    seed_tokens: int | None = None,
    target_tokens: int | None = None,
    exclude: Sequence[str] = (),
    exclude_overlap: float = 0.5,
    near_duplicate_measure: str = "containment",
    near_duplicate_threshold: float = 0.5,
    near_duplicate_method: str = "exact",
    max_pairs_per_document: int | None = None,
    max_per_seed: int | None = None,
    search: str = "scann",
    recall_queries: int = 1000,
    shards: int = 1,
    runner: str = engine.LOCAL,
    runner_options: Sequence[str] = (),
) -> None:
    """Leaves pairs d1 → d2 and statistics about them; or a page to choose α by.

    The filters below are applied in the order in which they stand here, after a document has been
    taken from its own neighbours; what each took is counted (`pairs.Removed`).

    Args:
      run: names the artefact.
      inspect: a file to write a page to, of all neighbours and what pairs of each similarity are
        like (`inspect_pairs`), in the place of the artefact; the filters are left aside.
      embeddings: artefact of `sbp embed`.
      documents: rows artefact with documents for each split that is named below.
      index: the split of the seeds d1, which is indexed.
      queries: the split of the targets d2. The same as `index` for training pairs, which then are
        kept in both directions; another for pairs to validate on.
      alpha: similarity above which a pair is kept (α; the paper's is remembered as 0.75 with its
        own embedder, and says nothing about another). Only `inspect` needs none.
      upper_bound: similarity above which it is not, if given.
      neighbours: how many of each target are looked at.
      mutual_only: whether d1 and d2 must each be among the other's neighbours.
      same_feature: features of the documents, as `package` or `url`, of which d1 and d2 must not
        have the same value.
      vocab: counts tokens for the next two.
      seed_tokens: d1 has at most so many; `cache.seed_length`, if nothing is to be cut.
      target_tokens: d2 has at most so many, its end among them; likewise `cache.target_length`.
      exclude: splits of `documents`, or SeqIO tasks with all their splits, whose texts neither d1
        nor d2 may contain.
      exclude_overlap: how much is contained: as `cache.overlap`, the share of the smaller text's
        runs of 13 words that stand in the other.
      near_duplicate_measure: of the 13-word shingles that d1 and d2 share: `containment` is their
        share of the smaller document's, `jaccard` of all that either has.
      near_duplicate_threshold: above which the two are near-duplicates and no pair. Ours, as the
        measure.
      near_duplicate_method: `exact` compares shingles; `minhash` compares signatures, and shingles
        where those leave a doubt, in a small part of the memory.
      max_pairs_per_document: a document has at most so many partners, the most similar ones; None
        for all.
      max_per_seed: at most so many targets a seed, the most similar ones; None for all.
      search: `scann`, or `exact` on JAX's devices.
      recall_queries: of so many targets the recall is measured against exact search.
      shards: parts of the index, each the work of one process.
      runner: Apache Beam's: `DirectRunner` works on all cores here; `inline` on one, without Beam.
      runner_options: for that runner, as `--project=mine`.
    """
    for name in (index, queries):
        if name not in documents:
            raise UserError(f"pair: split {name!r} is not among pair.documents, {list(documents)}")
    if alpha is None and inspect is None:
        raise UserError(
            "pair.alpha is not set: look with `sbp pair --inspect=FILE.html` what pairs of each "
            "similarity are like, and set the least that is wanted"
        )
    limits = {
        "neighbours": neighbours,
        "seed_tokens": seed_tokens,
        "target_tokens": target_tokens,
        "max_pairs_per_document": max_pairs_per_document,
        "max_per_seed": max_per_seed,
        "recall_queries": recall_queries,
        "shards": shards,
    }
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise UserError(f"pair.{name} = {limit}: expected at least 1")
    for name, value in {"same_feature": same_feature, "exclude": exclude}.items():
        if isinstance(value, str):  # a sequence too, of its letters
            raise UserError(f"pair.{name} = {value!r}: expected a list, as [{value!r}]")
    if near_duplicate_measure not in MEASURES:
        raise UserError(
            f"pair.near_duplicate_measure = {near_duplicate_measure!r}: expected one of "
            f"{list(MEASURES)}"
        )
    if near_duplicate_method not in ("exact", "minhash"):
        raise UserError(
            f"pair.near_duplicate_method = {near_duplicate_method!r}: expected exact or minhash"
        )
    if not 0 < exclude_overlap <= 1:
        raise UserError(
            f"pair.exclude_overlap = {exclude_overlap}: expected a share above 0 and up to 1"
        )
    if mutual_only and index != queries:
        raise UserError(
            f"pair.mutual_only: only {queries!r} is searched for, in {index!r}: set pair.queries "
            "to the same split, or mutual_only to False"
        )
    kind = search_module.search(search)
    paths = {name: run.path(documents[name]) for name in {index, queries}}
    excluded = _excluded(run, exclude, documents, (index, queries))
    counts_tokens = seed_tokens is not None or target_tokens is not None
    if inspect is None:
        stage = artifacts.begin(
            run,
            "pair",
            config={
                "index": index,
                "queries": queries,
                "alpha": alpha,
                "upper_bound": upper_bound,
                "neighbours": neighbours,
                "mutual_only": mutual_only,
                "same_feature": same_feature,
                "seed_tokens": seed_tokens,
                "target_tokens": target_tokens,
                "exclude": exclude,
                "exclude_overlap": exclude_overlap if exclude else None,
                "excluded_corpora": excluded.fingerprints,
                "near_duplicate_measure": near_duplicate_measure,
                "near_duplicate_threshold": near_duplicate_threshold,
                "near_duplicate_method": near_duplicate_method,
                "max_pairs_per_document": max_pairs_per_document,
                "max_per_seed": max_per_seed,
                "search": {kind.name: kind.settings},
                "recall_queries": recall_queries,
                "shards": shards,
            },
            inputs={
                "embeddings": run.path(embeddings),
                **{f"documents/{name}": path for name, path in sorted(paths.items())},
                **excluded.inputs,
                **({"vocab": run.path(vocab)} if counts_tokens else {}),
            },
            code=(
                "sbp_jax.pair.stage",
                "sbp_jax.pair.pairs",
                "sbp_jax.pair.filters",
                *SEARCH,
                "sbp_jax.text",
                "sbp_jax.data.excluded",
                *excluded.code,
            ),
        )
        if stage.finished:
            return
    artifacts.read_manifest(run.path(embeddings))  # or there is nothing to look for vectors in
    same_corpus = index == queries
    of_seeds = open_vectors(run.path(embeddings), index)
    of_targets = open_vectors(run.path(embeddings), queries)
    if of_seeds.dimensions != of_targets.dimensions:
        raise UserError(
            f"{run.path(embeddings)}: vectors of {index!r} have {of_seeds.dimensions} "
            f"dimensions, those of {queries!r} {of_targets.dimensions}: run sbp embed again"
        )
    seeds = _by_vectors(Documents(paths[index]), of_seeds.ids, index)
    targets = (
        seeds if same_corpus else _by_vectors(Documents(paths[queries]), of_targets.ids, queries)
    )
    # Beside the artefact's own files: another alpha needs no other search.
    searched = epath.Path(f"{run.out}.search")
    found, products = search_module.neighbours(
        of_seeds,
        of_targets,
        neighbours + same_corpus,  # a target is its own nearest, and must not cost it one
        kind,
        work=searched,
        identity={
            "embeddings": artifacts.input_hash(run.path(embeddings)),
            "index": index,
            "queries": queries,
            "code": artifacts.code_hash(SEARCH),
        },
        shards=shards,
        runner=runner,
        runner_options=runner_options,
    )

    if inspect is not None:
        # The command loads this module for every stage, and jinja2 only this needs.
        from sbp_jax.pair import inspect_pairs

        looked_at = pairs_module.candidates(found, products, same_corpus=same_corpus)
        inspection = inspect_pairs.inspect(
            looked_at,
            seeds,
            targets,
            neighbours=neighbours,
            measure=near_duplicate_measure,
            threshold=near_duplicate_threshold,
        )
        artifacts.write_atomic(epath.Path(inspect), inspect_pairs.render(run.scope, inspection))
        logging.info("%s: what is near is shown in %s", run.scope, inspect)
        return
    assert alpha is not None
    recall = search_module.recall(
        of_seeds, of_targets, found, sample=recall_queries, same=same_corpus
    )
    chosen, removed = pairs_module.select(
        found,
        products,
        same_corpus=same_corpus,
        alpha=alpha,
        upper_bound=upper_bound,
        mutual_only=mutual_only,
        same_feature=filters.same_feature(seeds, targets, same_feature) if same_feature else None,
        too_long=(
            filters.too_long(
                seeds, targets, vocabularies.load(run.path(vocab)), seed_tokens, target_tokens
            )
            if counts_tokens
            else None
        ),
        held_out=(
            filters.held_out(seeds, targets, NgramIndex(excluded.texts()), exclude_overlap)
            if exclude
            else None
        ),
        near_duplicate=filters.near_duplicates(
            seeds,
            targets,
            near_duplicate_threshold,
            near_duplicate_method,
            near_duplicate_measure,
        ),
        max_pairs_per_document=max_pairs_per_document,
        max_per_seed=max_per_seed,
    )
    if not chosen:
        raise UserError(_no_pair(found, products, removed, same_corpus, alpha))
    writer = ArrayRecordWriter(str(stage.work / PAIRS), "group_size:1,zstd:3")
    for one in progress(chosen, desc=run.scope, unit=" pairs"):
        seed, target = seeds[one.seed], targets[one.target]
        record = {
            "id": f"{seed.id}-{target.id}",
            "seed_id": seed.id,
            "target_id": target.id,
            "similarity": one.similarity,
            "inputs": seed.text,
            "targets": target.text,
        }
        writer.write(json.dumps(record).encode())
    writer.close()
    found_statistics = pairs_module.statistics(
        chosen, removed, products, seeds=len(seeds), alpha=alpha
    )
    artifacts.write_atomic(stage.work / STATISTICS, json.dumps(found_statistics, indent=2))
    logging.info("%s: removed %s", run.scope, removed)
    told = ("pairs", "candidates", "seeds", "documents", "filters")
    stage.commit({**{key: found_statistics[key] for key in told}, "recall_at_10": recall})
    if searched.exists():
        searched.rmtree()


def _excluded(
    run: artifacts.Run,
    exclude: Sequence[str],
    documents: Mapping[str, str],
    used: Sequence[str],
) -> excluded_texts.Excluded:
    for name in exclude:
        if name in used:
            raise UserError(
                f"pair.exclude: {name!r} is what the pairs are made of: exclude other splits"
            )
        if name not in documents and ":" not in name:
            raise UserError(
                f"pair.exclude: {name!r} is no split of pair.documents, {list(documents)}, and no "
                "task as module:attribute"
            )
    places = {name: run.path(path) for name, path in documents.items()}
    return excluded_texts.find(run, exclude, places)


def _no_pair(
    found: np.ndarray,
    products: np.ndarray,
    removed: pairs_module.Removed,
    same_corpus: bool,
    alpha: float,
) -> str:
    """Why nothing is left, and what to change."""
    others = pairs_module.candidates(found, products, same_corpus=same_corpus)
    if same_corpus:
        others = others.where(others.seeds != others.targets)
    numbers = others.similarities[np.isfinite(others.similarities)]
    largest = float(numbers.max()) if len(numbers) else float("nan")
    told = f"the largest similarity of two documents is {largest:.4f}"
    if not largest > alpha:
        return f"pair: no pair lies above alpha = {alpha}: {told}; lower pair.alpha"
    taken = {name: count for name, count in dataclasses.asdict(removed).items() if count}
    counts = ", ".join(f"{name} {count}" for name, count in taken.items())
    return (
        f"pair: no pair above alpha = {alpha} is left by the filters ({counts}), and {told}: "
        "loosen the filter that took most, or lower pair.alpha"
    )


def _by_vectors(documents: Documents, ids: list[str], split: str) -> list[Document]:
    """The documents, which must be those that were embedded, in their order."""
    if documents.ids != ids:
        raise UserError(
            f"{documents.directory} does not hold the documents that were embedded as {split!r}: "
            "run sbp embed again, or name the artefact that it read"
        )
    return list(documents)
