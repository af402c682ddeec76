"""The command `sbp export-corpus`: a synthetic corpus as files for other tools, with a card.

The folder is laid out as the Hugging Face hub reads it: `README.md`, whose header says what the
files in `data/` are, and the lineage in words and hashes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from absl import logging
from etils import epath

from sbp_jax import artifacts
from sbp_jax.errors import UserError
from sbp_jax.progress import progress
from sbp_jax.settings import configurable

FORMATS = ("jsonl.zst", "parquet")
CARD = "README.md"
DATA = "data"
# Of the hub's own classes of size.
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


@configurable
def export_corpus(
    corpus: str,
    format: str = "jsonl.zst",
    *,
    out: str | None = None,
    documents_per_file: int = 100_000,
) -> None:
    """Writes the documents of an artefact of `sbp synthesize`, all or none.

    Args:
      corpus: directory of the artefact.
      format: `jsonl.zst` or `parquet`.
      out: the folder, which must be empty or not there; by default `CORPUS.export`.
      documents_per_file: most documents of a file.

    Raises:
      UserError: there is no such artefact, its data are not what its manifest says, or the folder
        holds something.
    """
    if format not in FORMATS:
        raise UserError(f"--format={format}: expected one of {', '.join(FORMATS)}")
    if documents_per_file < 1:
        raise UserError(
            f"export_corpus.documents_per_file = {documents_per_file}: expected at least 1"
        )
    directory = epath.Path(corpus)
    manifest = artifacts.read_manifest(directory)
    if manifest.stage != "synthesize":
        raise UserError(
            f"{directory} was made by `sbp {manifest.stage}`: name an artefact of `sbp synthesize`"
        )
    target = epath.Path(out or f"{corpus.rstrip('/')}.export")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(
            f"{target} is there already: delete it, or set export_corpus.out to another folder"
        )
    # TFDS and Arrow take their time to load, and the command loads this module for every stage.
    from sbp_jax.synthesize import corpus as data
    from sbp_jax.synthesize import corpus_files

    work = artifacts.partial_directory(target)
    if work.exists():  # what an interrupted attempt left
        work.rmtree()
    (work / DATA).mkdir(parents=True)
    expected = manifest.counts["documents"]
    documents = progress(data.read(directory), desc=corpus, unit=" documents", total=expected)
    written = corpus_files.write(work / DATA, documents, expected, format, documents_per_file)
    if written != expected:
        raise UserError(
            f"{directory} holds {written} documents, its manifest says {expected}: it is damaged, "
            "so delete it and run sbp synthesize again"
        )
    features = [
        (field.name, str(field.type), data.FEATURES[field.name].description)
        for field in corpus_files.SCHEMA
    ]
    text = card(manifest, _ancestors(directory, manifest), features, format)
    artifacts.write_atomic(work / CARD, text)
    if target.exists():
        target.rmtree()  # it is empty
    work.rename(target)
    logging.info("%d documents of %s in %s", written, corpus, target)


def card(
    manifest: artifacts.Manifest,
    ancestors: Iterable[artifacts.Manifest],
    features: Sequence[tuple[str, str, str]],
    format: str,
) -> str:
    """The dataset card: Markdown, with the YAML header that the hub reads.

    Args:
      manifest: of the corpus.
      ancestors: manifests that it was made from, as far as they are known.
      features: name, type and description of each field.
      format: of the files.
    """
    counts = manifest.counts
    header = [
        "---",
        "tags:",
        "- synthetic",
        "size_categories:",
        f"- {size_category(counts['documents'])}",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        f"    path: {DATA}/*.{format}",
        "dataset_info:",
        "  features:",
        *(
            line
            for name, kind, _ in features
            for line in (f"  - name: {name}", f"    dtype: {_hub_type(kind)}")
        ),
        "  splits:",
        "  - name: train",
        f"    num_examples: {counts['documents']}",
        "---",
    ]
    body = f"""
# Synthetic corpus `{manifest.scope}`

{counts["documents"]:,} documents, {counts["tokens"]:,} tokens, {counts["bytes"]:,} bytes of text,
written by a language model from {counts["seeds"]:,} seed documents: Synthetic Bootstrapped
Pretraining ([arXiv 2509.15248](https://arxiv.org/abs/2509.15248)), by `sbp_jax`. No person has read
them all; what they say may be wrong. Their licence is for whoever owns the seed documents to say.

## Fields

{_table(("field", "type", "what it is"), features)}

## Filters

Of {counts["sampled_documents"]:,} sampled documents these were left out:

{_table(("filter", "documents"), counts["rejected"].items())}

## Lineage

With the synthesizer's checkpoint `{counts["checkpoint"]}`, a document's `seed_id` and `key`, and
the settings below, the same document can be written again, alone. It was made from these artefacts:

{_table(("input", "hash"), ((role, one["hash"]) for role, one in manifest.inputs.items()))}

And these are the manifests behind them:

{_lineage([manifest, *ancestors])}

The settings of `sbp synthesize`:

```json
{json.dumps(manifest.config, indent=2)}
```
"""
    return "\n".join(header) + "\n" + body


def size_category(documents: int) -> str:
    """The hub's class of a number of documents, as `10K<n<100K`."""
    below = next((i for i, _ in enumerate(_SIZES) if documents < 10 ** (3 + i)), None)
    if below is None:
        return f"n>{_SIZES[-1]}"
    return f"n<{_SIZES[0]}" if below == 0 else f"{_SIZES[below - 1]}<n<{_SIZES[below]}"


def _ancestors(directory: epath.Path, manifest: artifacts.Manifest) -> list[artifacts.Manifest]:
    try:
        found = artifacts.ancestry(directory).values()
    except UserError as error:
        logging.warning("the card tells the lineage of %s no further: %s", directory, error)
        return []
    return [one for one in found if one.identity != manifest.identity]


def _lineage(manifests: Iterable[artifacts.Manifest]) -> str:
    rows = (
        (one.scope, one.stage, one.hash, artifacts.digest(one.config), one.code)
        for one in manifests
    )
    return _table(("artefact", "stage", "hash", "configuration", "code"), rows)


def _table(names: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _hub_type(kind: str) -> str:
    return {"float": "float32"}.get(kind, kind)
