"""What int8 weights and an int8 cache cost: held-out nats a token by the sampler's own steps.

    .venv/bin/python benchmarks/int8.py --run_dir=runs/demo [--scope=pretrain]
        [--seeds=rows/real] [--held_out=rows/dev] [--documents=64] [--json]

Each held-out document's first tokens are read as a prompt, and the next ones are told to the decode
step one after the other, which says how probable each is: once with weights and cache in the
model's dtype, then with either or both as int8. The scales of the cache are found on seeds, as
`sbp synthesize` finds them. What is printed is the mean difference, and its standard error over
documents.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).parent
ROWS = 16  # documents at a time
CASES = {
    "weights": {"weight_dtype": "int8"},
    "cache": {"cache_dtype": "int8"},
    "both": {"weight_dtype": "int8", "cache_dtype": "int8"},
}


def losses(
    model: Any,
    parameters: Any,
    documents: list[list[int]],
    calibration: list[list[int]],
    lengths: tuple[int, int],
    **dtypes: str,
) -> np.ndarray:
    """Mean nats of each document's tokens behind its prompt, float64 [documents].

    Args:
      model: its shape.
      parameters: of it.
      documents: tokens, at least as many as both lengths together.
      calibration: prompts for the cache's scales.
      lengths: of the prompt, and of what is scored.
      dtypes: fields of `SamplerConfig`.
    """
    import jax
    import jax.numpy as jnp

    from sbp_jax.synthesize import decode
    from sbp_jax.synthesize.sampler import Prompts, Sampler, SamplerConfig

    prompt, scored = lengths
    config = SamplerConfig(
        prompt_length=prompt,
        max_length=scored,
        temperature=1.0,
        top_p=1.0,
        eos=0,
        never=(),
        slots=ROWS,
        prefill_rows=ROWS,
        **dtypes,
    )
    sampler = Sampler(model, parameters, config, jax.devices()[:1], calibration)
    programs = sampler.programs
    weights = jax.tree.map(lambda a: a[0], sampler.weights)

    @jax.jit
    def score(weights, tokens_SL):
        slots = jnp.arange(ROWS)
        lengths = jnp.full(ROWS, prompt)
        both = jnp.concatenate([slots, slots + ROWS])
        state = programs.prefill(
            weights,
            programs.empty(),
            Prompts(
                tokens_RP=tokens_SL[:, :prompt],
                length_R=lengths,
                slot_R=slots,
                last_E=jnp.tile(tokens_SL[:, prompt - 1], 2),
                length_E=jnp.tile(lengths, 2),
                slot_E=both,
                source_E=both,
                keys_E2=jnp.zeros((2 * ROWS, 2), jnp.uint32),
            ),
        )

        def step(cache, index):
            tokens_S = tokens_SL[:, index]
            running = jnp.ones(ROWS, bool)
            logits_SV, cache = decode.decode(
                programs.build(weights),
                cache,
                tokens_S,
                lengths * 0 + index,
                running,
                1,
                weights.scales,
            )
            log_p = jax.nn.log_softmax(logits_SV)
            return cache, jnp.take_along_axis(log_p, tokens_SL[:, index + 1, None], axis=1)[:, 0]

        steps = jnp.arange(prompt - 1, prompt + scored - 1)
        return -jax.lax.scan(step, state.cache, steps)[1].mean(axis=0)

    tokens = np.array([document[: prompt + scored] for document in documents], np.int32)
    parts = [score(weights, tokens[i : i + ROWS]) for i in range(0, len(tokens), ROWS)]
    return np.concatenate(parts).astype(np.float64)


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Losses of all cases."""
    from etils import epath

    from sbp_jax.checkpoints import load_parameters, model_config
    from sbp_jax.data import vocabularies
    from sbp_jax.data.documents import Documents

    run = epath.Path(flags.run_dir)
    model = model_config(run / flags.scope)
    parameters, _ = load_parameters(run / flags.scope)
    vocabulary = vocabularies.load(run / "vocab")

    def tokens(name: str) -> list[list[int]]:
        texts = [document.text for document in Documents(run / name)]
        return [[vocabulary.bos, *found] for found in vocabulary.encode_batch(texts)]

    calibration = [found[: flags.prompt] for found in tokens(flags.seeds)[:64]]
    documents = [one for one in tokens(flags.held_out) if len(one) >= flags.prompt + flags.scored]
    documents = documents[: min(flags.documents, len(documents)) // ROWS * ROWS]
    if not documents:
        raise SystemExit(f"{flags.held_out} has no {ROWS} documents that are long enough")
    lengths = flags.prompt, flags.scored
    plain = losses(model, parameters, documents, calibration, lengths)
    found: dict[str, Any] = {
        "documents": len(documents),
        "nats": plain.mean(),
        "dtype": model.dtype,
    }
    for name, dtypes in CASES.items():
        more = losses(model, parameters, documents, calibration, lengths, **dtypes) - plain
        error = more.std(ddof=1) / len(more) ** 0.5
        found[name] = {"more_nats": more.mean(), "standard_error": error}
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run_dir", required=True)
    parser.add_argument("--scope", default="pretrain")
    parser.add_argument("--seeds", default="rows/real")
    parser.add_argument("--held_out", default="rows/dev")
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=48)
    parser.add_argument("--scored", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    found = measure(flags)
    if flags.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['nats']:.4f} nats a token in {found['dtype']}, {found['documents']} documents")
    for name in CASES:
        print(
            f"int8 {name:<8} {found[name]['more_nats']:+.5f} ± {found[name]['standard_error']:.5f}"
        )


if __name__ == "__main__":
    main()
