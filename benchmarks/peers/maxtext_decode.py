"""MaxText's own decoding of a full batch, without an end; prints tokens a second as JSON.

Its engine's steps, as its decoding benchmark times them: prompts are read into all slots, then each
step gives a token a slot.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
import time

WARMING = 4
STEPS = 48


def main() -> None:
    """Reads the case from the command line."""
    case = json.loads(sys.argv[1])
    import jax
    import jax.numpy as jnp
    import maxtext
    from maxtext.configs import pyconfig
    from maxtext.inference.maxengine import maxengine

    # No JetStream that this MaxText needs has been published; its stand-in for the container of
    # results is none that a compiled function can return.
    jax.tree_util.register_pytree_node(
        maxengine.engine_api.ResultTokens,
        lambda found: ((found.data, found.log_prob), None),
        lambda _, parts: maxengine.engine_api.ResultTokens(data=parts[0], log_prob=parts[1]),
    )
    model = case["model"]
    settings = pathlib.Path(maxtext.__file__).parent / "configs/base.yml"
    found = {}
    for batch in case["batches"]:
        options = {
            "run_name": "benchmark",
            "base_output_directory": case["folder"],
            "hardware": "cpu",
            "base_emb_dim": model["width"],
            "base_num_query_heads": model["heads"],
            "base_num_kv_heads": model["kv_heads"],
            "head_dim": model["head_size"],
            "base_mlp_dim": model["hidden"],
            "base_num_decoder_layers": model["layers"],
            "vocab_size": model["vocab_size"],
            "decoder_block": "llama2",
            "mlp_activations": '["silu","linear"]',
            "per_device_batch_size": batch,
            "max_prefill_predict_length": case["prompt"],
            "max_target_length": case["prompt"] + case["longest"],
            "attention": "dot_product",
            "dtype": "float32",
            "weight_dtype": "float32",
            "scan_layers": "False",
            "decode_sampling_strategy": "nucleus",
            "decode_sampling_nucleus_p": "0.9",
            "decode_sampling_temperature": "1.0",
            "enable_checkpointing": "False",
            "skip_jax_distributed_system": "True",
        }
        config = pyconfig.initialize(
            ["decode", str(settings), *(f"{key}={value}" for key, value in options.items())]
        )
        engine = maxengine.MaxEngine(config)
        key = jax.random.key(0)
        parameters = engine.load_params(rng=key)
        state = engine.init_decode_state(rng=key)
        prompt = jnp.arange(3, 3 + case["prompt"])
        prefix, _ = engine.prefill(
            params=parameters, padded_tokens=prompt, true_length=case["prompt"], rng=key
        )
        for slot in range(batch):
            state = engine.insert(prefix, state, slot=slot)
        seconds = []
        for step in range(WARMING + STEPS):
            started = time.perf_counter()
            state, tokens = engine.generate(parameters, state, rng=jax.random.fold_in(key, step))
            jax.block_until_ready(tokens)
            seconds.append(time.perf_counter() - started)
        found[batch] = batch / statistics.median(seconds[WARMING:])
    print(json.dumps({"tokens_per_s": max(found.values()), "by_batch": found}))


if __name__ == "__main__":
    main()
