"""Training tokens a second on the CPU, beside MaxText and a plain PyTorch loop, in one run.

    .venv/bin/python benchmarks/train.py [--json] [--rounds=3] [--steps=15] [--peers=DIR]

The same Llama (no query-key norm, untied, float32), the same batch, the same number of threads,
AdamW with clipping, rows without padding. Each round runs every one of them in a fresh process; of
a round the median step counts, after the first three steps, and of the rounds the median.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable

HERE = pathlib.Path(__file__).parent
CASE = {
    "vocab_size": 2048,
    "width": 256,
    "layers": 4,
    "heads": 4,
    "kv_heads": 2,
    "head_size": 64,
    "hidden": 704,
    "batch_size": 8,
    "length": 256,
    "threads": os.cpu_count(),
}
WARMING_STEPS = 3
PEERS = {
    "maxtext": ["maxtext[tpu]==0.2.5"],
    "torch": ["torch==2.13.0", "transformers==5.24.0", "numpy"],
}


def ours(case: dict) -> list[float]:
    """Seconds of each step of the trainer's own compiled step."""
    import jax
    import numpy as np

    from sbp_jax.data.rows import Row
    from sbp_jax.model.compute import ComputeConfig
    from sbp_jax.model.decoder import DecoderConfig
    from sbp_jax.parallel.mesh import MeshConfig, make_layout
    from sbp_jax.train.optimizer import OptimizerConfig, make_optimizer
    from sbp_jax.train.step import init_state, make_train_step

    names = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_size", "hidden")
    model = DecoderConfig(
        **{name: case[name] for name in names}, tied=False, qk_norm=False, dtype="float32"
    )
    layout = make_layout(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), 1000)
    state = init_state(model, optimizer, layout, seed=0)
    compute = ComputeConfig(scan_layers=False)  # as gin/hardware/cpu.gin has it
    step = make_train_step(model, optimizer, layout, compute=compute)
    rng = np.random.default_rng(0)
    shape = case["batch_size"], case["length"]
    seconds = []
    for index in range(case["steps"]):
        tokens = rng.integers(0, case["vocab_size"], shape).astype(np.int32)
        ones = np.ones(shape, np.int32)
        positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
        batch = Row(
            inputs=tokens,
            targets=np.roll(tokens, -1, 1),
            segment_ids=ones,
            positions=positions,
            loss_weights=ones.astype(np.float32),
        )
        start = time.perf_counter()
        placed = jax.device_put(batch, layout.sharding("batch"))
        state, metrics = step(state, placed, jax.random.key(0), index)
        float(metrics.loss)
        seconds.append(time.perf_counter() - start)
    return seconds


def run_ours(case: dict, _python: str) -> list[float]:
    """In a fresh process."""
    code = "import sys, json; import train; print(json.dumps(train.ours(json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", code, json.dumps(case)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{HERE}:{HERE.parent}"}
    return json.loads(_output(command, environment).splitlines()[-1])


def run_torch(case: dict, python: str) -> list[float]:
    """The PyTorch loop."""
    script = str(HERE / "peers/torch_train.py")
    return json.loads(_output([python, script, json.dumps(case)], {**os.environ}).splitlines()[-1])


def run_maxtext(case: dict, python: str) -> list[float]:
    """MaxText's trainer on its synthetic data; seconds a step as it logs them itself."""
    find = (
        "import maxtext, pathlib; print(pathlib.Path(maxtext.__file__).parent / 'configs/base.yml')"
    )
    settings = _output([python, "-c", find], {**os.environ}).splitlines()[-1]
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "run_name": "benchmark",
            "base_output_directory": folder,
            "hardware": "cpu",
            "dataset_type": "synthetic",
            "steps": case["steps"],
            "base_emb_dim": case["width"],
            "base_num_query_heads": case["heads"],
            "base_num_kv_heads": case["kv_heads"],
            "head_dim": case["head_size"],
            "base_mlp_dim": case["hidden"],
            "base_num_decoder_layers": case["layers"],
            "vocab_size": case["vocab_size"],
            "decoder_block": "llama2",
            "mlp_activations": '["silu","linear"]',
            "per_device_batch_size": case["batch_size"],
            "max_target_length": case["length"],
            "remat_policy": "none",
            "attention": "dot_product",
            "dtype": "float32",
            "weight_dtype": "float32",
            "enable_checkpointing": "False",
            "gradient_clipping_threshold": "1.0",
            "skip_jax_distributed_system": "True",
        }
        module = "maxtext.trainers.pre_train.train"
        command = [python, "-m", module, settings, *(f"{k}={v}" for k, v in options.items())]
        said = _output(command, {**os.environ, "JAX_PLATFORMS": "cpu"})
    return [float(s) for s in re.findall(r"completed step: \d+, seconds: ([\d.]+)", said)]


RUNNERS: dict[str, Callable[[dict, str], list[float]]] = {
    "ours": run_ours,
    "maxtext": run_maxtext,
    "torch": run_torch,
}


def _output(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout.strip().splitlines()[-1][:300])
    return done.stdout


def peer_python(name: str, folder: pathlib.Path, packages: list[str]) -> str:
    """The interpreter of a peer's environment, which is built if it is not there."""
    home = folder / name
    python = home / "bin/python"
    if not (home / ".ready").exists():
        venv.create(home, with_pip=True, clear=True)
        _output([str(python), "-m", "pip", "install", "--quiet", *packages], {**os.environ})
        (home / ".ready").touch()
    return str(python)


def measure(rounds: int, steps: int, peers: pathlib.Path) -> dict:
    """Tokens a second of each, by round; why a peer is absent."""
    case = {**CASE, "steps": steps}
    found: dict[str, list[float]] = {"ours": []}
    absent: dict[str, str] = {}
    pythons = {"ours": sys.executable}
    for name in PEERS:
        try:
            pythons[name] = peer_python(name, peers, PEERS[name])
            found[name] = []
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            absent[name] = str(error)
    for index in range(rounds):
        for name in list(found):
            try:
                seconds = RUNNERS[name](case, pythons[name])[WARMING_STEPS:]
                rate = case["batch_size"] * case["length"] / statistics.median(seconds)
            except (RuntimeError, ValueError, IndexError, statistics.StatisticsError) as error:
                if name == "ours":
                    raise
                absent[name] = str(error)
                del found[name]
                continue
            found[name].append(rate)
            print(f"round {index + 1}: {name} {rate:.0f} tokens/s", file=sys.stderr)
    rates = {name: statistics.median(values) for name, values in found.items()}
    return {
        "case": case,
        "tokens_per_s": rates["ours"],
        "peers_tokens_per_s": {name: rates.get(name) for name in PEERS},
        "ratio": {n: rates["ours"] / rates[n] if n in rates else None for n in PEERS},
        "rounds": found,
        "absent": absent,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    parser.add_argument("--peers", type=pathlib.Path, default=pathlib.Path(cache) / "sbp_jax/peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    result = measure(flags.rounds, flags.steps, flags.peers)
    if flags.json:
        print(json.dumps(result, indent=2))
        return
    print(f"sbp_jax  {result['tokens_per_s']:8.0f} tokens/s")
    for name, rate in result["peers_tokens_per_s"].items():
        if rate is None:
            print(f"{name:<8} absent: {result['absent'][name]}")
        else:
            print(f"{name:<8} {rate:8.0f} tokens/s, ratio {result['ratio'][name]:.2f}")


if __name__ == "__main__":
    main()
