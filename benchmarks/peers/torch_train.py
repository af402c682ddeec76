"""A plain PyTorch loop over a Llama of transformers; prints the seconds of each step as JSON."""

from __future__ import annotations

import json
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def main() -> None:
    """Reads the model, the batch and the number of steps from the command line."""
    c = json.loads(sys.argv[1])
    torch.set_num_threads(c["threads"])
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c["vocab_size"],
            hidden_size=c["width"],
            num_hidden_layers=c["layers"],
            num_attention_heads=c["heads"],
            num_key_value_heads=c["kv_heads"],
            head_dim=c["head_size"],
            intermediate_size=c["hidden"],
            tie_word_embeddings=False,
            use_cache=False,
        )
    ).float()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    shape = (c["batch_size"], c["length"])
    seconds = []
    for _ in range(c["steps"]):
        tokens = torch.randint(0, c["vocab_size"], shape)
        start = time.perf_counter()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
