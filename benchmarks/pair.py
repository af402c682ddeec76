"""Neighbour search: recall, queries a second beside faiss at equal recall, memory as forecast.

    .venv/bin/python benchmarks/pair.py [--json] [--vectors=200000 | --million] [--real=100000]
        [--peers=DIR]

Two sets of unit vectors of 256 dimensions: clustered synthetic ones, and TF-IDF + SVD of the
demo's docstrings, with pieces of the installed packages' source files up to the size. Queries are
held out. Each index is built once in a fresh process on all cores, and asked by a small grid of
settings; of those that find 97% of the nearest ten the fastest counts. `recall_at_10` is that of
the project's defaults.
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
SHARES = (0.01, 0.03, 0.1, 0.2, 0.4)  # of leaves or lists that are searched
GRIDS: dict[str, list[dict[str, int]]] = {
    "hnsw": [{"efSearch": ef} for ef in (16, 32, 64, 128, 256, 512)],
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
    from tasks import docstrings

    texts = [document.text for document in docstrings.documents(min_characters=400)][:count]
    texts += [text for text, _ in zip(pieces(), range(count - len(texts)), strict=False)]
    run = artifacts.Run(pathlib.Path(), "embed")  # which this embedder reads nothing of
    vectors = TfidfEmbedder(dimensions=DIMENSIONS).fit(run, texts)(texts)
    vectors = vectors[vectors.any(axis=1)]
    return vectors[np.random.default_rng(0).permutation(len(vectors))]


def ours(case: dict[str, Any]) -> dict[str, Any]:
    """The project's index: what it takes to build, what it finds, and how fast."""
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
    for plan in grid:
        index.plan = plan
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            found, _ = index.find(queries, 10)
            times.append(time.perf_counter() - started)
        hits = [len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)]
        rate = len(queries) / statistics.median(times)
        settings.append(
            {**dataclasses.asdict(plan), "recall": float(np.mean(hits)), "queries_per_s": rate}
        )
    expected = memory.forecast(*vectors.shape, "scann", neighbours=10)
    return {
        "build_seconds": seconds,
        "settings": settings,
        "recall_at_10": settings[0]["recall"],
        "forecast_bytes": expected,
        "peak_bytes": peak.bytes,
        "memory_forecast_error": expected / peak.bytes - 1,
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


def output(command: list[str]) -> dict[str, Any]:
    """What a command prints as JSON in its last line."""
    environment = {"PYTHONPATH": f"{HERE}:{HERE.parent}", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no word"])[-1][:300])
    return json.loads(done.stdout.strip().splitlines()[-1])


def fastest(found: dict[str, Any]) -> dict[str, Any] | None:
    """Of the settings that reach the recall the one with most queries a second."""
    enough = [setting for setting in found["settings"] if setting["recall"] >= TARGET]
    return max(enough, key=lambda setting: setting["queries_per_s"], default=None)


def compare(vectors: np.ndarray, peers: pathlib.Path) -> dict[str, Any]:
    """All searches over the same vectors and queries; why a peer has no ratio."""
    from sbp_jax.pair import search

    held_out, index = vectors[:QUERIES], vectors[QUERIES:]
    truth, _ = search.neighbours(index, held_out, 10, search.ExactSearch())
    lists = round(len(index) ** 0.5)
    grids = {
        **GRIDS,
        "ivfpq": [
            {"nprobe": max(1, round(share * lists)), "k_factor": factor}
            for share in SHARES
            for factor in (5, 10, 20, 40)
        ],
    }
    found: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for part, array in (("vectors", index), ("queries", held_out), ("truth", truth)):
            np.save(folder / f"{part}.npy", array)
        code = "import sys, json, pair; print(json.dumps(pair.ours(json.loads(sys.argv[1]))))"
        found["ours"] = output([sys.executable, "-c", code, json.dumps({"folder": name})])
        for kind, grid in grids.items():
            case = {"kind": kind, "folder": name, "grid": grid, "repeats": REPEATS}
            case["threads"] = os.cpu_count()
            try:
                python = peer_python("faiss", peers, PEERS["faiss"])
                script = str(HERE / "peers/faiss_search.py")
                found[f"faiss_{kind}"] = output([python, script, json.dumps(case)])
            except (RuntimeError, OSError, ValueError) as error:
                absent[f"faiss_{kind}"] = str(error)
    best = {part: fastest(values) for part, values in found.items()}
    for part, setting in best.items():
        print(f"{part}: {setting}", file=sys.stderr)
        if setting is None:
            most = max(s["recall"] for s in found[part]["settings"])
            absent[part] = f"recall {most:.4f} at most, expected {TARGET}"
    ratio: dict[str, float | None] = {}
    mine = best["ours"]
    for kind in grids:
        other = best.get(f"faiss_{kind}")
        rates = mine and other and mine["queries_per_s"] / other["queries_per_s"]
        ratio[f"faiss_{kind}"] = rates or None
    return {
        "vectors": len(index),
        "dimensions": vectors.shape[1],
        "queries": len(held_out),
        "target_recall": TARGET,
        **{k: found["ours"][k] for k in ("recall_at_10", "memory_forecast_error")},
        "ratio": ratio,
        "best": best,
        "build_seconds": {part: values["build_seconds"] for part, values in found.items()},
        "found": found,
        "absent": absent,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    parser.add_argument("--peers", type=pathlib.Path, default=pathlib.Path(cache) / "sbp_jax/peers")
    parser.add_argument("--vectors", type=int, default=200_000, help="synthetic ones; 0 for none")
    parser.add_argument("--million", action="store_true", help="of synthetic ones")
    parser.add_argument("--real", type=int, default=100_000, help="of texts; 0 for none")
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    result = {}
    if count := 1_000_000 if flags.million else flags.vectors:
        result["clustered"] = compare(clustered(count + QUERIES), flags.peers)
    if flags.real:
        result["real"] = compare(real(flags.real + QUERIES), flags.peers)
    if flags.json:
        print(json.dumps(result, indent=2))
        return
    for name, values in result.items():
        print(f"{name}: {values['vectors']:,} vectors of {values['dimensions']} dimensions")
        print(f"  recall@10 by default     {values['recall_at_10']:.4f}")
        print(f"  forecast of memory       {100 * values['memory_forecast_error']:+.1f}%")
        for part, ratio in values["ratio"].items():
            shown = f"{ratio:.2f}" if ratio else f"none: {values['absent'].get(part)}"
            print(f"  ratio to {part:<15} {shown}")
        for part, seconds in values["build_seconds"].items():
            print(f"  {part} built in {seconds:.1f} s")


if __name__ == "__main__":
    main()
