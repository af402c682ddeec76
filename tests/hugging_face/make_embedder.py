"""Makes the embedding model of this folder, in an environment with torch and transformers.

    python tests/hugging_face/make_embedder.py

It is tiny and random, and made as Qwen3-Embedding is published: tensors without the prefix
`model.` and without an output layer, and a tokenizer that ends texts with `<|endoftext|>`. Beside
it lie vectors for some texts, pooled as the model card of Qwen3-Embedding does.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import tokenizers
import torch
from transformers import AutoModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

HERE = pathlib.Path(__file__).parent / "qwen3_embedding"
TASK = "Given a web search query, retrieve relevant passages that answer the query"
END = "<|endoftext|>"
MAX_LENGTH = 128
DIMENSIONS = 8
TEXTS = [
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other.",
    "x",
    "def cumulative_sum(values):\n    total = 0\n    for value in values:\n        total += value",
    "naïve café, 東京, and an emoji 🙂",
    " ".join(str(number * 7919) for number in range(100)),
    "  spaces at both ends  ",
]


def make_tokenizer() -> None:
    """Bytes and a few merges, as GPT-2 and Qwen have it."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=318,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([END, "<|im_end|>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    tokenizer.save(str(HERE / "tokenizer.json"))


def make_model() -> None:
    """Random weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=False,
    )
    model = Qwen3Model(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            scale, mean = (0.3, 0.0) if parameter.ndim > 1 else (0.2, 1.0)
            parameter.copy_(mean + scale * torch.randn_like(parameter))
    model.save_pretrained(HERE)
    written = json.loads((HERE / "config.json").read_text())
    written["architectures"] = ["Qwen3ForCausalLM"]  # as the published config says
    (HERE / "config.json").write_text(json.dumps(written, indent=2) + "\n")


def last_token_pool(last_hidden_states: torch.Tensor, attention_mask: torch.Tensor):
    """The model card's function for texts that are padded on the left or the right."""
    left_padding = attention_mask[:, -1].sum() == attention_mask.shape[0]
    if left_padding:
        return last_hidden_states[:, -1]
    lengths = attention_mask.sum(dim=1) - 1
    return last_hidden_states[torch.arange(len(lengths)), lengths]


def embed(texts: list[str], dimensions: int | None = None) -> np.ndarray:
    """Vectors of texts."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(HERE / "tokenizer.json"), padding_side="left", pad_token=END
    )
    model = AutoModel.from_pretrained(HERE).eval()
    batch = tokenizer(
        texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    )
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    vectors = last_token_pool(states, batch["attention_mask"])[:, :dimensions]
    return torch.nn.functional.normalize(vectors, p=2, dim=1).numpy()


def main() -> None:
    """Writes all of it."""
    HERE.mkdir(exist_ok=True)
    make_tokenizer()
    make_model()
    np.savez(
        HERE / "expected.npz",
        texts=np.array(TEXTS),
        task=np.array(TASK),
        max_length=MAX_LENGTH,
        documents=embed(TEXTS),
        queries=embed([f"Instruct: {TASK}\nQuery:{text}" for text in TEXTS]),
        short=embed(TEXTS, DIMENSIONS),
    )


if __name__ == "__main__":
    main()
