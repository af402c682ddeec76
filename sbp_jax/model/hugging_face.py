"""Weights in and out of the Hugging Face format: safetensors and config.json of Llama and Qwen3.

A Llama is this decoder without query-key norm, a Qwen3 the same with it. Hugging Face keeps a
linear layer as [outputs, inputs], and rotates halves of a head as this decoder does, so that
weights are transposed and nothing else.

D width, N query heads, K key/value heads, H head size, F hidden, V vocabulary, layers counted by i.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.flax
from etils import epath
from flax import nnx

from sbp_jax.errors import UserError
from sbp_jax.model.decoder import DecoderConfig, RopeScaling, structure

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
ARCHITECTURES = {"LlamaForCausalLM": False, "Qwen3ForCausalLM": True}  # whether with query-key norm

# What a published config may ask for that this decoder does not compute: key → values that ask for
# nothing.
ABSENT: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "quantization_config": (None,),
    "partial_rotary_factor": (None, 1, 1.0),
    "num_local_experts": (None, 0),
    "num_experts": (None, 0),
    "hidden_act": ("silu", "swish"),
}


def read_config(directory: epath.PathLike) -> DecoderConfig:
    """The decoder that a `config.json` describes, computing in bfloat16.

    Raises:
      UserError: there is none, it is broken, or it asks for what this decoder does not have.
    """
    path = epath.Path(directory) / CONFIG
    try:
        found = json.loads(path.read_text())
        names = found.get("architectures") or ["none"]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: no readable Hugging Face config ({error}): name the folder of a model"
        ) from error
    if names[0] not in ARCHITECTURES:
        raise UserError(f"{path}: architecture {names[0]}: expected one of {list(ARCHITECTURES)}")
    for key, harmless in ABSENT.items():
        if key in found and found[key] not in harmless:
            raise UserError(f"{path}: {key} = {found[key]!r}: this decoder has no such thing")
    if kinds := set(found.get("layer_types") or ()) - {"full_attention"}:
        raise UserError(f"{path}: layer_types {sorted(kinds)}: this decoder has full_attention")
    try:
        width, heads = found["hidden_size"], found["num_attention_heads"]
        rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
        return DecoderConfig(
            vocab_size=found["vocab_size"],
            width=width,
            layers=found["num_hidden_layers"],
            heads=heads,
            kv_heads=found.get("num_key_value_heads") or heads,
            head_size=found.get("head_dim") or width // heads,
            hidden=found["intermediate_size"],
            rope_theta=float(rope.get("rope_theta") or found.get("rope_theta") or 10_000.0),
            rope_scaling=_rope_scaling(path, rope),
            norm_epsilon=found["rms_norm_eps"],
            qk_norm=ARCHITECTURES[names[0]],
            tied=found.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]} is missing") from error


def _rope_scaling(path: epath.Path, rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(f"{path}: rope_type {kind!r}: this decoder has `default` and `llama3`")
    return RopeScaling(
        factor=float(rope["factor"]),
        low_frequency_factor=float(rope["low_freq_factor"]),
        high_frequency_factor=float(rope["high_freq_factor"]),
        original_length=int(rope["original_max_position_embeddings"]),
    )


def read_parameters(directory: epath.PathLike, config: DecoderConfig) -> Any:
    """The decoder's parameters: nested dict of float32 NumPy arrays, layers stacked.

    Raises:
      UserError: a file or tensor is missing, damaged, left over, or of another shape.
    """
    directory = epath.Path(directory)
    files = _files(directory)
    used = set()
    bare = not any(name.startswith(_BASE) for name in files)

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        name = name.removeprefix(_BASE) if bare else name
        if name not in files:
            raise UserError(f"{directory}: no tensor {name} in its safetensors")
        used.add(name)
        try:
            with (
                jax.default_device(_host()),
                safetensors.safe_open(files[name], framework="flax") as file,
            ):
                value = np.asarray(file.get_tensor(name)).astype(np.float32)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{files[name]}: damaged or cut short ({error})") from error
        if value.shape != shape:
            raise UserError(f"{files[name]}: {name} has shape {value.shape}, expected {shape}")
        return value

    result: dict[str, Any] = {}
    for path, leaf in _leaves(config):
        stacked = path[0] == "blocks"
        shape = leaf.shape[1:] if stacked else leaf.shape
        to_ours, _, outside = _translation(path, shape)
        names = [_name(path, i) for i in range(config.layers)] if stacked else [_name(path)]
        values = [to_ours(tensor(name, outside)) for name in names]
        _put(result, path, np.stack(values) if stacked else values[0])
    if config.tied:
        used.add("lm_head.weight")  # some files keep the embedding a second time
    if extra := sorted(name for name in set(files) - used if not name.endswith("inv_freq")):
        raise UserError(f"{directory}: its tensor {extra[0]} is none that this decoder has")
    return result


def has_head(directory: epath.PathLike) -> bool:
    """Whether an output layer of its own is among a model's tensors.

    Raises:
      UserError: its files are missing or damaged.
    """
    return "lm_head.weight" in _files(epath.Path(directory))


def _files(directory: epath.Path) -> dict[str, str]:
    """The file of each tensor."""
    if (directory / INDEX).exists():
        try:
            names = json.loads((directory / INDEX).read_text())["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{directory / INDEX}: broken ({error!r})") from error
    elif (directory / SINGLE).exists():
        try:
            with safetensors.safe_open(directory / SINGLE, framework="flax") as file:
                names = dict.fromkeys(file.keys(), SINGLE)
        except safetensors.SafetensorError as error:
            raise UserError(f"{directory / SINGLE}: damaged or cut short ({error})") from error
    else:
        raise UserError(f"{directory}: neither {INDEX} nor {SINGLE} is there")
    if missing := sorted(f for f in set(names.values()) if not (directory / f).exists()):
        raise UserError(f"{directory}: {missing[0]} is missing")
    return {name: str(directory / file) for name, file in names.items()}


def write(
    directory: epath.PathLike,
    config: DecoderConfig,
    parameters: Any,
    *,
    dtype: str = "bfloat16",
    shard_bytes: int = 5_000_000_000,
) -> list[str]:
    """Writes config.json and safetensors as `transformers` reads them.

    Args:
      directory: is made; must not hold a model already.
      config: of the decoder.
      parameters: nested dict of arrays, layers stacked.
      dtype: of the tensors.
      shard_bytes: most of one file.

    Returns:
      The names of the safetensors files.
    """
    directory = epath.Path(directory)
    if (directory / CONFIG).exists():
        raise UserError(f"{directory} holds a model already: choose another folder")
    directory.mkdir(parents=True, exist_ok=True)
    item = jax.numpy.dtype(dtype).itemsize
    shards: list[list[_Tensor]] = [[]]
    size = total = 0
    for tensor in _outside(config):
        bytes_ = item * math.prod(tensor.shape)
        if shards[-1] and size + bytes_ > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size, total = size + bytes_, total + bytes_
    count = len(shards)
    files = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    files = files if count > 1 else [SINGLE]
    with jax.default_device(_host()):
        for file, tensors in zip(files, shards, strict=True):
            values = {t.name: jax.numpy.asarray(t.of(parameters), dtype) for t in tensors}
            data = safetensors.flax.save(values, {"format": "pt"})
            (directory / file).write_bytes(data)
    if count > 1:
        where = {t.name: f for f, tensors in zip(files, shards, strict=True) for t in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (directory / INDEX).write_text(json.dumps(index, indent=2))
    # Last, since it makes the folder a model.
    (directory / CONFIG).write_text(json.dumps(_config_json(config, dtype), indent=2))
    return files


def _host() -> jax.Device:
    return jax.local_devices(backend="cpu")[0]


class _Tensor(NamedTuple):
    """A tensor as Hugging Face has it: its name, its shape, and how to take it from parameters."""

    name: str
    shape: tuple[int, ...]
    of: Callable[[Any], np.ndarray]


def _outside(config: DecoderConfig) -> Iterator[_Tensor]:
    """All tensors, as Hugging Face has them."""
    for path, leaf in _leaves(config):
        stacked = path[0] == "blocks"
        _, to_theirs, shape = _translation(path, leaf.shape[1:] if stacked else leaf.shape)

        def take(parameters, index=None, path=path, to_theirs=to_theirs):
            value = _get(parameters, path)
            return to_theirs(np.asarray(value if index is None else value[index]))

        for index in range(config.layers) if stacked else (None,):
            yield _Tensor(_name(path, index), shape, functools.partial(take, index=index))


def _config_json(config: DecoderConfig, dtype: str) -> dict[str, Any]:
    c = config
    name = next(name for name, norm in ARCHITECTURES.items() if norm == c.qk_norm)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": c.rope_scaling.factor,
            "low_freq_factor": c.rope_scaling.low_frequency_factor,
            "high_freq_factor": c.rope_scaling.high_frequency_factor,
            "original_max_position_embeddings": c.rope_scaling.original_length,
        }
    return {
        "architectures": [name],
        "model_type": "qwen3" if c.qk_norm else "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_size,
        "intermediate_size": c.hidden,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_epsilon,
        "rope_theta": c.rope_theta,  # where versions of transformers before 5 look for it
        "rope_scaling": rope if c.rope_scaling else None,
        "rope_parameters": rope,
        "tie_word_embeddings": c.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": 131072,
        "torch_dtype": dtype,
    }


def _leaves(config: DecoderConfig) -> list[tuple[tuple[str, ...], Any]]:
    found = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(structure(config)[1]))
    return [(tuple(key.key for key in path), leaf) for path, leaf in found]


# Embedding models are published without an output layer, and their tensors without this prefix.
_BASE = "model."
_NAMES = {
    ("embedding",): "model.embed_tokens.weight",
    ("head",): "lm_head.weight",
    ("final_norm", "scale"): "model.norm.weight",
    ("attention_norm", "scale"): "input_layernorm.weight",
    ("mlp_norm", "scale"): "post_attention_layernorm.weight",
    ("attention", "query"): "self_attn.q_proj.weight",
    ("attention", "key"): "self_attn.k_proj.weight",
    ("attention", "value"): "self_attn.v_proj.weight",
    ("attention", "out"): "self_attn.o_proj.weight",
    ("attention", "query_norm", "scale"): "self_attn.q_norm.weight",
    ("attention", "key_norm", "scale"): "self_attn.k_norm.weight",
    ("mlp", "gate"): "mlp.gate_proj.weight",
    ("mlp", "up"): "mlp.up_proj.weight",
    ("mlp", "down"): "mlp.down_proj.weight",
}


def _name(path: tuple[str, ...], layer: int | None = None) -> str:
    return _NAMES[path] if layer is None else f"model.layers.{layer}.{_NAMES[path[1:]]}"


def _translation(
    path: tuple[str, ...], shape: tuple[int, ...]
) -> tuple[Callable, Callable, tuple[int, ...]]:
    """From theirs to ours, from ours to theirs, and the shape of theirs, of one layer's weight."""
    if path == ("embedding",) or len(shape) == 1:
        return np.asarray, np.asarray, shape
    inputs = shape[:2] if path[-1] == "out" else shape[:1]
    rows, columns = int(np.prod(inputs)), int(np.prod(shape[len(inputs) :]))

    def to_ours(value: np.ndarray) -> np.ndarray:
        return value.T.reshape(shape)

    def to_theirs(value: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(value.reshape(rows, columns).T)

    return to_ours, to_theirs, (columns, rows)


def _get(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
