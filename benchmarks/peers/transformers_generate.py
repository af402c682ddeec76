"""Sampling by `transformers.generate` in its best batch size; prints tokens a second as JSON.

A batch goes on until its last document has ended; prompts are padded on the left. Which size is
the best is tried on the first prompts.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

import torch
from transformers import AutoModelForCausalLM, GenerationConfig


def main() -> None:
    """Reads the case from the command line."""
    case = json.loads(sys.argv[1])
    torch.set_num_threads(case["threads"])
    folder = pathlib.Path(case["folder"])
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    prompts = json.loads((folder / "prompts.json").read_text())
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=0.9,
        top_k=0,
        max_new_tokens=case["longest"],
        eos_token_id=case["eos"],
        pad_token_id=case["pad"],
    )

    def rate(prompts: list[list[int]], batch: int) -> float:
        torch.manual_seed(0)
        tokens, started = 0, time.perf_counter()
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            longest = max(map(len, part))
            ids = torch.tensor([[case["pad"]] * (longest - len(p)) + p for p in part])
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in part])
            with torch.inference_mode():
                out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
            for row in out[:, longest:].tolist():
                tokens += row.index(case["eos"]) + 1 if case["eos"] in row else len(row)
        return tokens / (time.perf_counter() - started)

    tried = {batch: rate(prompts[: max(case["batches"])], batch) for batch in case["batches"]}
    best = max(tried, key=lambda batch: tried[batch])
    print(json.dumps({"tokens_per_s": rate(prompts, best), "batch": best, "tried": tried}))


if __name__ == "__main__":
    main()
