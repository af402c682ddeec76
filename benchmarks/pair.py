"""Pairs: recall, queries a second beside faiss at equal recall, memory, shards, near-duplicates.

    .venv/bin/python benchmarks/pair.py [--json] [--vectors=1000000] [--real=200000] [--peers=DIR]

Two sets of unit vectors of 256 dimensions: clustered synthetic ones, and TF-IDF + SVD of the
demo's docstrings, with pieces of the installed packages' source files up to the size. Queries are
held out. Each index is built once in a fresh process on all cores, and asked by a small grid of
settings; those that find 97% of the nearest ten the fastest are then timed in alternating rounds,
of which the medians count. `recall_at_10` is that of the project's defaults. Above the sets stand
the least of their recalls and ratios and the worst forecast.

Then parts of the clustered set are built for the forecast of memory; one is searched in eight
shards, by one worker on one core and by as many as there are cores; and of documents each pair is
held against its true Jaccard index.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from train import peer_python

HERE = pathlib.Path(__file__).parent
DIMENSIONS = 256
QUERIES = 2000
TARGET = 0.97
REPEATS = 3
PIECE = 800  # characters of a source file
PEERS = {"faiss": ["faiss-cpu==1.15.1", "numpy"]}
PARTS = (100_000, 300_000)  # of the clustered set, whose memory is forecast
SHARDED, SHARDS, ASKED = 200_000, 8, 100_000  # vectors in shards, and queries
DOCUMENTS = 5_000  # of which all pairs are compared
ROUNDS = 5
# Of leaves or lists those that are searched.
SHARES = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.2)
GRIDS: dict[str, list[dict[str, int]]] = {
    "hnsw": [{"efSearch": ef} for ef in (16, 24, 32, 40, 48, 56, 64, 96, 128, 256)],
}


def clustered(count: int) -> np.ndarray:
    """Unit vectors float32 [count, D] about centres of unequal weight, a hundred for each."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((max(40, count // 100), DIMENSIONS), dtype=np.float32)
    weights = rng.exponential(size=len(centers))
    chosen = rng.choice(len(centers), count, p=weights / weights.sum())
    vectors = np.empty((count, DIMENSIONS), np.float32)
    for start in range(0, count, 10_000):
        rows = slice(start, min(start + 10_000, count))
        vectors[rows] = centers[chosen[rows]]
        vectors[rows] += 0.7 * rng.standard_normal(vectors[rows].shape, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def pieces() -> Iterator[str]:
    """Parts of the installed packages' source files."""
    root = pathlib.Path(sysconfig.get_path("purelib"))
    for path in sorted(root.rglob("*.py")):
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError):
            continue
        yield from (text[i : i + PIECE] for i in range(0, len(text) - PIECE // 2, PIECE))


def real(count: int) -> np.ndarray:
    """Unit vectors float32 [n, D] of docstrings and pieces; n is `count`, or what there is."""
    from sbp_jax import artifacts
    from sbp_jax.pair.embedders import TfidfEmbedder
    from tasks import installed

    wanted = installed.Wanted(min_characters=400)
    texts = [document.text for document in installed.documents(wanted)][:count]
    texts += [text for text, _ in zip(pieces(), range(count - len(texts)), strict=False)]
    run = artifacts.Run(pathlib.Path(), "embed")  # which this embedder reads nothing of
    vectors = TfidfEmbedder(dimensions=DIMENSIONS).fit(run, texts)(texts).vectors
    vectors = vectors[vectors.any(axis=1)]
    return vectors[np.random.default_rng(0).permutation(len(vectors))]


def ours(case: dict[str, Any]) -> None:
    """The project's index as `peers/faiss_search.py` prints theirs."""
    from scann.scann_ops.py import scann_ops_pybind  # its memory is no part of the forecast

    from sbp_jax.pair import memory, search

    assert scann_ops_pybind
    folder = pathlib.Path(case["folder"])
    queries, truth = (np.load(folder / f"{name}.npy") for name in ("queries", "truth"))
    with PeakMemory() as peak:
        vectors = np.load(folder / "vectors.npy")
        started = time.perf_counter()
        index = search.ScannSearch().build(vectors, 10)
        seconds = time.perf_counter() - started
        index.find(queries, 10)
    default = index.plan
    grid = [default]
    if default.kind != "brute_force":
        leaves = [max(1, round(share * default.leaves)) for share in SHARES]
        grid += [
            dataclasses.replace(default, leaves_to_search=leaf, reorder=reorder)
            for leaf in (leaves if default.leaves else [0])
            for reorder in (50, 100, 200, 400)
        ]
    settings = []

    def ask(plan: Any) -> tuple[np.ndarray, float]:
        index.plan = plan
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            found, _ = index.find(queries, 10)
            times.append(time.perf_counter() - started)
        return found, len(queries) / statistics.median(times)

    for plan in grid:
        found, rate = ask(plan)
        hits = [len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)]
        settings.append(
            {**dataclasses.asdict(plan), "recall": float(np.mean(hits)), "queries_per_s": rate}
        )
    expected = memory.forecast(*vectors.shape, "scann", neighbours=10)
    result = {
        "build_seconds": seconds,
        "settings": settings,
        "recall_at_10": settings[0]["recall"],
        "rates": rates(vectors.shape, settings),
        "forecast_bytes": expected,
        "peak_bytes": peak.bytes,
        "memory_forecast_error": expected / peak.bytes - 1,
    }
    print(json.dumps(result), flush=True)
    for line in sys.stdin:
        print(ask(grid[int(line)])[1], flush=True)


def rates(shape: tuple[int, int], settings: list[dict[str, Any]]) -> dict[str, float] | None:
    """What `pair/cost.py` takes for granted, in bytes that a core reads a second."""
    from sbp_jax.pair import cost, scann_search

    names = [field.name for field in dataclasses.fields(scann_search.SearchPlan)]
    plans = [scann_search.SearchPlan(**{n: s[n] for n in names}) for s in settings]
    if len(plans) < 4:
        return None
    read = np.array([[*cost.read_by_query(*shape, plan), 1] for plan in plans], float)
    seconds = np.array([(os.cpu_count() or 1) / s["queries_per_s"] for s in settings])
    (hashed, ordered, _), *_ = np.linalg.lstsq(
        read / seconds[:, None], np.ones(len(plans)), rcond=None
    )
    return {"hashed": 1 / hashed, "ordered": 1 / ordered}


def forecast(case: dict[str, Any]) -> dict[str, Any]:
    """The memory of building and asking once."""
    from scann.scann_ops.py import scann_ops_pybind

    from sbp_jax.pair import memory, search

    assert scann_ops_pybind
    with PeakMemory() as peak:
        vectors = np.load(case["vectors"])
        started = time.perf_counter()
        index = search.ScannSearch().build(vectors, 10)
        seconds = time.perf_counter() - started
        index.find(vectors[:QUERIES], 10)
    expected = memory.forecast(*vectors.shape, "scann", neighbours=10)
    return {
        "vectors": len(vectors),
        "build_seconds": seconds,
        "forecast_bytes": expected,
        "peak_bytes": peak.bytes,
        "memory_forecast_error": expected / peak.bytes - 1,
    }


def searched(case: dict[str, Any]) -> dict[str, Any]:
    """Neighbours of stored vectors in so many shards by so many workers: seconds and recall."""
    from sbp_jax.pair import search
    from sbp_jax.pair.vectors import open_vectors

    if case["cores"] == 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    vectors = open_vectors(case["folder"], "train")
    asked = vectors.part(0, ASKED)
    started = time.perf_counter()
    found, _ = search.neighbours(
        vectors,
        asked,
        11,
        search.ScannSearch(),
        work=case["work"],
        identity={},
        shards=case["shards"],
        runner="inline" if case["cores"] == 1 else "DirectRunner",
    )
    seconds = time.perf_counter() - started
    found = found[:, 1:]  # each is its own nearest
    own = np.arange(len(found))[:, None]
    recall = search.recall(
        vectors, asked, np.concatenate([own, found], 1), sample=QUERIES, same=True
    )
    return {"seconds": seconds, "queries_per_s": ASKED / seconds, "recall_at_10": recall}


def shards(vectors: np.ndarray) -> dict[str, Any]:
    """One index, and shards by one worker and by several."""
    from etils import epath

    from sbp_jax.pair.vectors import write_shard

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = epath.Path(name) / "vectors"
        for number, part in enumerate(np.array_split(vectors, 4)):
            write_shard(folder, "train", number, [f"{number}-{i}" for i in range(len(part))], part)
        cores = os.cpu_count() or 1
        for part, count, workers in (
            ("one_index", 1, 1),
            ("one_worker", SHARDS, 1),
            ("all_workers", SHARDS, cores),
        ):
            work = os.path.join(name, part)
            case = {"folder": str(folder), "work": work, "shards": count, "cores": workers}
            found[part] = here("searched", case)
    one, all_ = found["one_worker"], found["all_workers"]
    return {
        "vectors": len(vectors),
        "shards": SHARDS,
        "queries": ASKED,
        "workers": cores,
        "throughput": all_["queries_per_s"] / one["queries_per_s"],
        "recall_difference": all_["recall_at_10"] - found["one_index"]["recall_at_10"],
        **found,
    }


def near_duplicates() -> dict[str, Any]:
    """The filter by signatures on all pairs, against the Jaccard index of all of them."""
    import scipy.sparse

    from sbp_jax.data.documents import Document
    from sbp_jax.pair import filters
    from sbp_jax.text.shingles import shingles
    from tasks import installed

    wanted = installed.Wanted(min_characters=400)
    texts = [document.text for document in installed.documents(wanted)]
    chosen = np.random.default_rng(0).permutation(len(texts))[:DOCUMENTS]
    documents = [Document(str(i), texts[i]) for i in chosen]
    sets = [shingles(document.text) for document in documents]
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    sizes = np.array([len(one) for one in sets])
    rows = np.repeat(np.arange(len(sets)), sizes)
    stands = scipy.sparse.csr_array((np.ones(len(rows), np.int32), (rows, columns)))
    shared = (stands @ stands.T).toarray()
    first, second = np.triu_indices(len(sets), 1)
    shared = shared[first, second]
    wanted = shared / (sizes[first] + sizes[second] - shared) > 0.5
    started = time.perf_counter()
    found = filters.near_duplicates(documents, documents, 0.5, "minhash", "jaccard")(first, second)
    return {
        "documents": len(sets),
        "pairs": len(first),
        "near_duplicates": int(wanted.sum()),
        "precision": float((found & wanted).sum() / found.sum()),
        "recall": float((found & wanted).sum() / wanted.sum()),
        "seconds": time.perf_counter() - started,
    }


ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": f"{HERE}:{HERE.parent}",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_PLATFORMS": "cpu",
}


class PeakMemory:
    """By how much this process has grown at most, sampled."""

    def __enter__(self) -> PeakMemory:
        self.before, self.bytes, self.ended = _resident(), 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(0.01):
            self.bytes = max(self.bytes, _resident() - self.before)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


class Asked:
    """A process that holds an index; what it prints first is `found`."""

    def __init__(self, command: list[str], case: dict[str, Any]):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the process)
        self.process = subprocess.Popen(
            [*command, json.dumps(case)],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.found: dict[str, Any] = json.loads(self._line())

    def rate(self, setting: int) -> float:
        """Queries a second by one of the settings."""
        assert self.process.stdin is not None
        print(setting, file=self.process.stdin, flush=True)
        return float(self._line())

    def end(self) -> None:
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout is not None
        # Absl and TensorFlow may say something first.
        while line := self.process.stdout.readline():
            if line[0] in "{0123456789":
                return line
        self.process.wait()
        self.errors.seek(0)
        raise RuntimeError((self.errors.read().strip().splitlines() or ["no word"])[-1][:300])


def here(function: str, case: dict[str, Any]) -> dict[str, Any]:
    """What a function of this file gives in a fresh process."""
    code = f"import sys, json, pair; print(json.dumps(pair.{function}(json.loads(sys.argv[1]))))"
    asked = Asked([sys.executable, "-c", code], case)
    asked.end()
    return asked.found


def fastest(found: dict[str, Any]) -> int | None:
    """Of the settings that reach the recall the one with most queries a second."""
    enough = [i for i, setting in enumerate(found["settings"]) if setting["recall"] >= TARGET]
    return max(enough, key=lambda i: found["settings"][i]["queries_per_s"], default=None)


def compare(vectors: np.ndarray, peers: pathlib.Path) -> dict[str, Any]:
    """All searches over the same vectors and queries; why a peer has no ratio."""
    from sbp_jax.pair import search

    held_out, index = vectors[:QUERIES], vectors[QUERIES:]
    truth, _ = search.ExactSearch().build(index, 10).find(held_out, 10)
    lists = round(len(index) ** 0.5)
    grids = {
        **GRIDS,
        "ivfpq": [
            {"nprobe": max(1, round(share * lists)), "k_factor": factor}
            for share in SHARES
            for factor in (5, 10, 20, 40)
        ],
    }
    asked: dict[str, Asked] = {}
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for part, array in (("vectors", index), ("queries", held_out), ("truth", truth)):
            np.save(folder / f"{part}.npy", array)
        code = "import sys, json, pair; pair.ours(json.loads(sys.argv[1]))"
        asked["ours"] = Asked([sys.executable, "-c", code], {"folder": name})
        for kind, grid in grids.items():
            case = {"kind": kind, "folder": name, "grid": grid, "repeats": REPEATS}
            case["threads"] = os.cpu_count()
            try:
                python = peer_python("faiss", peers, PEERS["faiss"])
                script = str(HERE / "peers/faiss_search.py")
                asked[f"faiss_{kind}"] = Asked([python, script], case)
            except (RuntimeError, OSError, ValueError) as error:
                absent[f"faiss_{kind}"] = str(error)
    found = {part: one.found for part, one in asked.items()}
    best = {part: fastest(values) for part, values in found.items()}
    for part, setting in best.items():
        if setting is None:
            most = max(s["recall"] for s in found[part]["settings"])
            absent[part] = f"recall {most:.4f} at most, expected {TARGET}"
    chosen = {part: setting for part, setting in best.items() if setting is not None}
    rounds: dict[str, list[float]] = {part: [] for part in chosen}
    for _ in range(ROUNDS):
        for part, setting in chosen.items():
            rounds[part].append(asked[part].rate(setting))
    for one in asked.values():
        one.end()
    rates_ = {part: statistics.median(values) for part, values in rounds.items()}
    for part, setting in chosen.items():
        print(f"{part}: {found[part]['settings'][setting]}, {rates_[part]:.0f}/s", file=sys.stderr)
    ratio: dict[str, float | None] = {
        f"faiss_{kind}": rates_["ours"] / rates_[f"faiss_{kind}"]
        if {"ours", f"faiss_{kind}"} <= set(rates_)
        else None
        for kind in grids
    }
    return {
        "vectors": len(index),
        "dimensions": vectors.shape[1],
        "queries": len(held_out),
        "target_recall": TARGET,
        **{k: found["ours"][k] for k in ("recall_at_10", "memory_forecast_error", "rates")},
        "ratio": ratio,
        "best": {part: found[part]["settings"][setting] for part, setting in chosen.items()},
        "queries_per_s": rates_,
        "rounds": rounds,
        "build_seconds": {part: values["build_seconds"] for part, values in found.items()},
        "found": found,
        "absent": absent,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    parser.add_argument("--peers", type=pathlib.Path, default=pathlib.Path(cache) / "sbp_jax/peers")
    parser.add_argument("--vectors", type=int, default=1_000_000, help="synthetic ones; 0: none")
    parser.add_argument("--real", type=int, default=200_000, help="of texts; 0: none")
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sets, forecasts, sharded = {}, [], None
    if flags.vectors:
        vectors = clustered(flags.vectors + QUERIES)
        for part in (part for part in PARTS if part < flags.vectors):
            with tempfile.NamedTemporaryFile(suffix=".npy") as file:
                np.save(file, vectors[:part])
                file.flush()
                forecasts.append(here("forecast", {"vectors": file.name}))
        if len(vectors) >= SHARDED:
            sharded = shards(vectors[:SHARDED])
        sets["clustered"] = compare(vectors, flags.peers)
        del vectors
    if flags.real:
        sets["real"] = compare(real(flags.real + QUERIES), flags.peers)
    result = {**summary(sets, forecasts), "sets": sets, "forecasts": forecasts}
    result |= {"shards": sharded, "near_duplicates": near_duplicates()}
    print(json.dumps(result, indent=2) if flags.json else table(result))


def summary(sets: dict[str, Any], forecasts: list[dict[str, Any]]) -> dict[str, Any]:
    """The worst of all sets."""
    peers = {peer for values in sets.values() for peer in values["ratio"]}
    ratios = {peer: [v["ratio"][peer] for v in sets.values()] for peer in sorted(peers)}
    errors = [v["memory_forecast_error"] for v in [*sets.values(), *forecasts]]
    return {
        "recall_at_10": min((v["recall_at_10"] for v in sets.values()), default=None),
        "ratio": {peer: None if None in r else min(r) for peer, r in ratios.items()},
        "memory_forecast_error": max(errors, key=abs, default=None),
    }


def table(result: dict[str, Any]) -> str:
    """For people."""
    lines = []
    for name, values in result["sets"].items():
        lines += [
            f"{name}: {values['vectors']:,} vectors of {values['dimensions']} dimensions",
            f"  recall@10 by default     {values['recall_at_10']:.4f}",
            f"  forecast of memory       {100 * values['memory_forecast_error']:+.1f}%",
        ]
        for part, ratio in values["ratio"].items():
            shown = f"{ratio:.2f}" if ratio else f"none: {values['absent'].get(part)}"
            lines.append(f"  ratio to {part:<15} {shown}")
        for part, seconds in values["build_seconds"].items():
            lines.append(f"  {part} built in {seconds:.1f} s")
    for one in result["forecasts"]:
        error = 100 * one["memory_forecast_error"]
        lines.append(f"forecast of memory at {one['vectors']:,} vectors: {error:+.1f}%")
    if one := result["shards"]:
        lines.append(
            f"{one['shards']} shards: recall {one['recall_difference']:+.4f} beside one index, "
            f"{one['throughput']:.2f} × the queries a second with {one['workers']} workers"
        )
    one = result["near_duplicates"]
    lines.append(
        f"near-duplicates: precision {one['precision']:.4f}, recall {one['recall']:.4f} of "
        f"{one['near_duplicates']} among {one['pairs']:,} pairs"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
