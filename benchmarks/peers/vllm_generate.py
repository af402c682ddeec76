"""Sampling by vLLM's CPU build, its continuous batching over all prompts; prints JSON."""

from __future__ import annotations

import json
import pathlib
import sys
import time


def main() -> None:
    """Reads the case from the command line."""
    case = json.loads(sys.argv[1])
    from vllm import LLM, SamplingParams

    folder = pathlib.Path(case["folder"])
    prompts = json.loads((folder / "prompts.json").read_text())
    model = LLM(
        str(folder / "model"),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=case["prompt"] + case["longest"],
        max_num_seqs=max(case["batches"]),
        enable_prefix_caching=False,
        seed=0,
    )
    settings = SamplingParams(
        temperature=1.0,
        top_p=0.9,
        max_tokens=case["longest"],
        stop_token_ids=[case["eos"]],
        detokenize=False,
    )
    model.generate([{"prompt_token_ids": prompts[0]}], settings, use_tqdm=False)
    started = time.perf_counter()
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    found = model.generate(asked, settings, use_tqdm=False)
    seconds = time.perf_counter() - started
    tokens = sum(len(one.outputs[0].token_ids) for one in found)
    print(json.dumps({"tokens_per_s": tokens / seconds, "tokens": tokens}))


if __name__ == "__main__":
    main()
