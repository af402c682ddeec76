"""Makes the models of this folder, in an environment of its own with torch and transformers.

    python tests/hugging_face/make.py

Each is tiny and random, written by `transformers` itself, with the logits that it gives for some
tokens: what `sbp import-hf` must give too.
"""

from __future__ import annotations

import pathlib

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

HERE = pathlib.Path(__file__).parent
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
MODELS = {
    "llama_untied": (
        LlamaForCausalLM,
        LlamaConfig(**SHAPE, rms_norm_eps=1e-5, rope_parameters=SCALED, tie_word_embeddings=False),
        "20KB",
    ),
    "llama_tied": (
        LlamaForCausalLM,
        LlamaConfig(**SHAPE, head_dim=16, rope_parameters=PLAIN, tie_word_embeddings=True),
        "5GB",
    ),
    "qwen3_tied": (
        Qwen3ForCausalLM,
        Qwen3Config(**SHAPE, head_dim=16, rope_parameters=PLAIN, tie_word_embeddings=True),
        "5GB",
    ),
    "qwen3_untied": (
        Qwen3ForCausalLM,
        Qwen3Config(**SHAPE, head_dim=8, rope_parameters=PLAIN, tie_word_embeddings=False),
        "20KB",
    ),
}


def main() -> None:
    """Writes all of them."""
    for name, (family, config, shard) in MODELS.items():
        torch.manual_seed(0)
        model = family(config).eval().float()
        with torch.no_grad():
            for parameter in model.parameters():
                scale, mean = (0.3, 0.0) if parameter.ndim > 1 else (0.2, 1.0)
                parameter.copy_(mean + scale * torch.randn_like(parameter))
            tokens = torch.randint(0, 64, (2, 40))
            logits = model(tokens).logits
        model.save_pretrained(HERE / name, max_shard_size=shard)
        (HERE / name / "generation_config.json").unlink()
        np.savez(HERE / name / "expected.npz", tokens=tokens.numpy(), logits=logits.numpy())


if __name__ == "__main__":
    main()
