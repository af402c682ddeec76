"""Caching and reading rows, beside SeqIO's on-line pipeline and datatrove, in one run.

    .venv/bin/python benchmarks/data.py [--json] [--rounds=3] [--copies=4] [--peers=DIR]
    .venv/bin/python benchmarks/data.py --memory

The text is the demo's, every docstring of the environment, as JSON lines. Each measurement is a
fresh process; those of tokenising and packing are held to one core. Of the rounds the median
counts. --memory caches 10 MB and 1 GB of text instead, and says how much memory that takes.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from train import peer_python

HERE = pathlib.Path(__file__).parent
LENGTH = 4096
VOCAB_SIZE = 8192
EOS = "<|endoftext|>"
BATCH_SIZE = 8
PEERS = {"datatrove": ["datatrove[processing,io]==0.10.1", "tokenizers"]}


def write_corpus(folder: pathlib.Path, copies: int) -> int:
    """The docstrings of the environment, so many times; returns their bytes.

    A copy's documents differ in their ids and their first word.
    """
    from tasks import installed

    folder.mkdir()
    size = 0
    documents = installed.documents(installed.Wanted(min_characters=400))
    with (folder / "text.jsonl").open("w") as file:
        for copy in range(copies):
            for document in documents:
                text = f"{copy} {document.text}" if copy else document.text
                size += len(text.encode())
                entry = {"id": f"{copy}-{document.id}", "text": text}
                file.write(json.dumps(entry) + "\n")
    return size


def texts(folder: pathlib.Path) -> list[str]:
    """The first documents of a corpus, enough to learn a vocabulary from."""
    with (folder / "text.jsonl").open() as file:
        return [json.loads(line)["text"] for line, _ in zip(file, range(4000), strict=False)]


def write_vocabularies(folder: pathlib.Path, corpus: pathlib.Path) -> None:
    """A SentencePiece model and a `tokenizer.json`, learned from the corpus."""
    import tokenizers

    from sbp_jax.data import vocab

    found = texts(corpus)
    model = vocab.train(lambda: iter(found), VOCAB_SIZE, 0.9995, "corpus")
    (folder / "vocab.model").write_bytes(model)
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOS],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(found, trainer)
    made.save(str(folder / "tokenizer.json"))


def cache(case: dict[str, Any]) -> dict[str, float]:
    """What `sbp cache` does, once the process has loaded what it needs."""
    import gin
    from etils import epath

    import tasks.folder
    from sbp_jax import artifacts
    from sbp_jax.data import seqio_vocabularies, vocabularies
    from sbp_jax.data.cache import cache
    from sbp_jax.data.rows import open_rows

    assert tasks.folder
    gin.parse_config(
        [
            f"folder.directory = {case['folder']!r}",
            "folder.near_duplicates = False",
            "folder.heldout_share = 1e-9",
            "folder.dev_share = 1e-9",
        ]
    )
    seqio_vocabularies.seqio_vocabulary(vocabularies.load(case["vocab"]))
    run = artifacts.Run(epath.Path(case["out"]), "rows")
    started = time.perf_counter()
    cache(
        run,
        task="tasks.folder:train",
        length=LENGTH,
        vocab=case["vocab"],
        shards=case.get("shards", 1),
        runner=case.get("runner", "inline"),
    )
    seconds = time.perf_counter() - started
    (source,) = open_rows(run.out).sources.values()
    padding = source.rows * LENGTH - source.tokens
    return {
        "seconds": seconds,
        "tokens": source.tokens,
        "bytes": source.bytes,
        "packing_waste": padding / (source.rows * LENGTH),
    }


def seqio_online(case: dict[str, Any]) -> dict[str, float]:
    """SeqIO's pipeline as T5X uses it: tokenised and packed by tf.data, one pass, unshuffled."""
    import seqio
    import tensorflow as tf

    files = [str(path) for path in sorted(pathlib.Path(case["folder"]).glob("*.jsonl"))]

    def documents(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del split, shuffle_files, seed

        def read():
            for file in files:
                with open(file) as lines:
                    for line in lines:
                        yield {"targets": json.loads(line)["text"]}

        signature = {"targets": tf.TensorSpec([], tf.string)}
        return tf.data.Dataset.from_generator(read, output_signature=signature)

    vocabulary = seqio.SentencePieceVocabulary(case["vocab"], extra_ids=0)
    seqio.TaskRegistry.add(
        "text",
        source=seqio.FunctionDataSource(documents, splits=["train"]),
        preprocessors=[
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos,
        ],
        output_features={"targets": seqio.Feature(vocabulary, add_eos=True)},
    )
    vocabulary.encode("load it")
    started = time.perf_counter()
    dataset = seqio.get_dataset(
        "text",
        task_feature_lengths={"targets": LENGTH},
        dataset_split="train",
        shuffle=False,
        num_epochs=1,
        feature_converter=seqio.DecoderFeatureConverter(pack=True),
    )
    tokens = 0
    for row in dataset.as_numpy_iterator():
        tokens += int((row["decoder_segment_ids"] > 0).sum())
    return {"seconds": time.perf_counter() - started, "tokens": tokens}


def load(case: dict[str, Any]) -> dict[str, float]:
    """Batches of the row loader, read as the trainer does; and how long the first takes."""
    import numpy as np

    from sbp_jax.data import loader, mixture
    from sbp_jax.data.rows import open_rows

    artefact = open_rows(pathlib.Path(case["out"]) / "rows")
    steps = case["steps"]
    slots = np.arange(BATCH_SIZE)
    resumes = []
    for start in (0, steps // 2, steps - 1):
        started = time.perf_counter()
        mixed = mixture.plan({"rows": artefact}, {"rows": 1}, steps, BATCH_SIZE)
        order = loader.RowOrder(mixed, seed=0)
        next(loader.batches(order, slots, start, steps, loader.BadRows(0)))
        resumes.append(time.perf_counter() - started)
    started = time.perf_counter()
    tokens = 0
    for batch in loader.batches(order, slots, 0, min(steps, 400), loader.BadRows(0)):
        tokens += int((batch.segment_ids > 0).sum())
    return {
        "seconds": time.perf_counter() - started,
        "tokens": tokens,
        "resume_seconds": max(resumes),
        "resume_first_seconds": resumes[0],
    }


def fresh(name: str, case: dict[str, Any], one_core: bool) -> dict[str, float]:
    """Runs a function of this file in a process of its own."""
    code = (
        "import sys, json, data; "
        "print(json.dumps(getattr(data, sys.argv[1])(json.loads(sys.argv[2]))))"
    )
    environment = {"PYTHONPATH": f"{HERE}:{HERE.parent}", "CUDA_VISIBLE_DEVICES": ""}
    return run([sys.executable, "-c", code, name, json.dumps(case)], environment, one_core)


def run(command: list[str], environment: dict[str, str], one_core: bool) -> dict[str, float]:
    """A command that prints JSON in its last line."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
    if one_core:
        # Rayon would start a thread for each core of the machine.
        quiet |= {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    cores = {min(os.sched_getaffinity(0))} if one_core else os.sched_getaffinity(0)
    done = subprocess.run(
        command,
        env={**os.environ, **quiet, **environment},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no word"])[-1][:300])
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(rounds: int, copies: int, peers: pathlib.Path) -> dict[str, Any]:
    """Tokens a second of each, by round; why a peer is absent."""
    found: dict[str, list[dict[str, float]]] = {}
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        corpus = folder / "corpus"
        size = write_corpus(corpus, copies)
        write_vocabularies(folder, corpus)
        model, tokenizer = str(folder / "vocab.model"), str(folder / "tokenizer.json")
        for index in range(rounds):
            out = folder / f"round{index}"

            def case(part: str, vocab: str, out: pathlib.Path = out, **more: Any) -> dict[str, Any]:
                return {"folder": str(corpus), "vocab": vocab, "out": str(out / part), **more}

            measured = {
                "cache_sentencepiece": fresh("cache", case("a", model), one_core=True),
                "seqio_online": fresh("seqio_online", case("b", model), one_core=True),
                "cache_tokenizers": fresh("cache", case("c", tokenizer), one_core=True),
                "seqio_online_all_cores": fresh("seqio_online", case("e", model), one_core=False),
            }
            steps = int(measured["cache_sentencepiece"]["tokens"]) // (LENGTH * BATCH_SIZE)
            measured["loader"] = fresh("load", case("a", model, steps=steps), one_core=False)
            if "datatrove" not in absent:
                try:
                    python = peer_python("datatrove", peers, PEERS["datatrove"])
                    script = str(HERE / "peers/datatrove_tokenise.py")
                    asked = {**case("d", ""), "tokenizer": tokenizer, "eos": EOS}
                    measured["datatrove"] = run([python, script, json.dumps(asked)], {}, True)
                except (RuntimeError, OSError, ValueError) as error:
                    absent["datatrove"] = str(error)
            for part, values in measured.items():
                found.setdefault(part, []).append(values)
                rate = values["tokens"] / values["seconds"]
                print(f"round {index + 1}: {part} {rate:,.0f} tokens/s", file=sys.stderr)
    rates = {
        part: statistics.median(v["tokens"] / v["seconds"] for v in values)
        for part, values in found.items()
    }
    there = "datatrove" in rates
    return {
        "bytes": size,
        "length": LENGTH,
        "vocab_size": VOCAB_SIZE,
        "tokens_per_s": rates,
        "tokens": {part: values[0]["tokens"] for part, values in found.items()},
        "ratio": {
            "seqio_online": rates["cache_sentencepiece"] / rates["seqio_online"],
            "datatrove": rates["cache_tokenizers"] / rates["datatrove"] if there else None,
        },
        "loader_ratio": {"seqio_online": rates["loader"] / rates["seqio_online_all_cores"]},
        "packing_waste": max(v["packing_waste"] for v in found["cache_sentencepiece"]),
        "resume_seconds": max(v["resume_seconds"] for v in found["loader"]),
        "rounds": found,
        "absent": absent,
    }


def memory() -> dict[str, Any]:
    """Peak memory of caching 10 MB and 1 GB of text, of the process and what it starts."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        whole = folder / "whole"
        size = write_corpus(whole, 1)
        write_vocabularies(folder, whole)
        for wanted in (10**7, 10**9):
            corpus = folder / str(wanted)
            copies = -(-wanted // size)
            write_corpus(corpus, copies)
            if copies == 1:
                content = (corpus / "text.jsonl").read_text()[:wanted]
                (corpus / "text.jsonl").write_text(content[: content.rindex("\n") + 1])
            case = {
                "folder": str(corpus),
                "vocab": str(folder / "tokenizer.json"),
                "out": str(folder / f"out{wanted}"),
                "shards": 2,
                "runner": "DirectRunner",
            }
            with PeakMemory() as peak:
                values = fresh("cache", case, one_core=False)
            found[str(wanted)] = {**values, "peak_bytes": peak.bytes}
            print(f"{wanted:,} bytes: peak {peak.bytes / 1e6:,.0f} MB", file=sys.stderr)
    low, high = (found[key]["peak_bytes"] for key in ("10000000", "1000000000"))
    return {"memory": found, "memory_ratio": high / low}


class PeakMemory:
    """The largest sum of the memory of all child processes, sampled; shared pages count once."""

    def __enter__(self) -> PeakMemory:
        self.bytes, self.ended = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(0.5):
            self.bytes = max(self.bytes, sum(map(_proportional_bytes, _children(os.getpid()))))


def _children(process: int) -> list[int]:
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == process:
            child = int(path.parent.name)
            found += [child, *_children(child)]
    return found


def _proportional_bytes(process: int) -> int:
    try:
        lines = pathlib.Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cache_home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    default = pathlib.Path(cache_home) / "sbp_jax/peers"
    parser.add_argument("--peers", type=pathlib.Path, default=default)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=2, help="of the text, to be read")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    result = memory() if flags.memory else measure(flags.rounds, flags.copies, flags.peers)
    if flags.json or flags.memory:
        print(json.dumps(result, indent=2))
        return
    for part, rate in result["tokens_per_s"].items():
        print(f"{part:<24} {rate:12,.0f} tokens/s")
    print(f"ratio to SeqIO on-line   {result['ratio']['seqio_online']:.2f}")
    if result["ratio"]["datatrove"] is None:
        print(f"datatrove absent: {result['absent']['datatrove']}")
    else:
        print(f"ratio to datatrove       {result['ratio']['datatrove']:.2f}")
    print(f"loader over SeqIO        {result['loader_ratio']['seqio_online']:.0f}")
    print(f"padding                  {100 * result['packing_waste']:.2f}%")
    print(f"resume                   {result['resume_seconds']:.2f} s")


if __name__ == "__main__":
    main()
