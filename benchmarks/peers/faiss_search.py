"""faiss's HNSW or IVF-PQ over vectors of a file; runs in an environment of its own.

    python faiss_search.py CASE, as JSON: kind, folder, grid, threads, repeats

Prints the seconds of building, and for each setting the recall@10 and queries a second. Then, for
each line that it reads, a number, the queries a second of that setting again.
"""

import json
import pathlib
import statistics
import sys
import time

import faiss
import numpy as np


def build(kind: str, vectors: np.ndarray):
    """An index by inner product, and the part of it whose settings are tried."""
    count, dimensions = vectors.shape
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimensions, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 100
        index.add(vectors)
        return index, index.hnsw
    lists = round(count**0.5)
    coarse = faiss.IndexFlatIP(dimensions)
    # Hashes as ScaNN's, four bits for two dimensions, and the exact product of candidates after.
    hashed = faiss.IndexIVFPQFastScan(
        coarse, dimensions, lists, dimensions // 2, 4, faiss.METRIC_INNER_PRODUCT
    )
    index = faiss.IndexRefineFlat(hashed)
    index.train(vectors)
    index.add(vectors)
    return index, hashed


def main() -> None:
    """Builds once and asks by each setting."""
    case = json.loads(sys.argv[1])
    faiss.omp_set_num_threads(case["threads"])
    folder = pathlib.Path(case["folder"])
    vectors, queries, truth = (
        np.load(folder / f"{name}.npy", allow_pickle=False)
        for name in ("vectors", "queries", "truth")
    )
    started = time.perf_counter()
    index, part = build(case["kind"], vectors)
    found = {"build_seconds": time.perf_counter() - started, "settings": []}

    def ask(setting: dict):
        """Neighbours, and queries a second."""
        if case["kind"] == "hnsw":
            part.efSearch = setting["efSearch"]
        else:
            part.nprobe = setting["nprobe"]
            index.k_factor = setting["k_factor"]
        seconds = []
        for _ in range(case["repeats"]):
            started = time.perf_counter()
            _, indices = index.search(queries, 10)
            seconds.append(time.perf_counter() - started)
        return indices, len(queries) / statistics.median(seconds)

    for setting in case["grid"]:
        indices, rate = ask(setting)
        hits = [len(set(a) & set(b)) / 10 for a, b in zip(indices, truth, strict=True)]
        found["settings"].append({**setting, "recall": float(np.mean(hits)), "queries_per_s": rate})
    print(json.dumps(found), flush=True)
    for line in sys.stdin:
        print(ask(case["grid"][int(line)])[1], flush=True)


if __name__ == "__main__":
    main()
