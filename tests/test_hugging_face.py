"""Weights in and out of the Hugging Face format, against models that `transformers` wrote."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import gin
import jax
import numpy as np
import pytest
import safetensors.flax
from flax import nnx

from sbp_jax import cli
from sbp_jax.checkpoints import load_parameters, model_config
from sbp_jax.errors import UserError
from sbp_jax.model import hugging_face
from sbp_jax.model.decoder import structure

MODELS = pathlib.Path(__file__).parent / "hugging_face"
NAMES = ["llama_untied", "llama_tied", "qwen3_tied", "qwen3_untied"]


def sbp(*arguments: str) -> int:
    gin.clear_config()
    return cli.main([*arguments])


def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= safetensors.flax.load_file(file)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name):
    config = dataclasses.replace(hugging_face.read_config(MODELS / name), dtype="float32")
    parameters = hugging_face.read_parameters(MODELS / name, config)
    expected = np.load(MODELS / name / "expected.npz")
    model = nnx.merge(structure(config)[0], parameters)
    tokens = expected["tokens"]
    positions = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
    found = jax.jit(model)(tokens, np.ones_like(tokens), positions)
    assert np.abs(expected["logits"]).max() > 1
    np.testing.assert_allclose(found, expected["logits"], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_in_and_out_again_nothing_has_changed(tmp_path, name):
    run = f"--run_dir={tmp_path}/run"
    assert sbp("import-hf", str(MODELS / name), run, "--scope=base") == 0
    config = model_config(tmp_path / "run/base")
    assert config == hugging_face.read_config(MODELS / name)
    parameters, _ = load_parameters(tmp_path / "run/base")
    hugging_face.write(tmp_path / "out", config, parameters, dtype="float32", shard_bytes=15_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    before, after = tensors(MODELS / name), tensors(tmp_path / "out")
    assert set(before) == set(after)
    for tensor, value in before.items():
        np.testing.assert_array_equal(value, after[tensor])
    assert hugging_face.read_config(tmp_path / "out") == config
    again = hugging_face.read_parameters(tmp_path / "out", config)
    jax.tree.map(np.testing.assert_array_equal, again, jax.device_get(parameters))


def test_an_embedding_model_has_no_output_layer(tmp_path):
    """As Qwen3-Embedding is published: untied by its config, no prefix in its tensors' names."""
    folder = MODELS / "qwen3_embedding"
    assert not hugging_face.read_config(folder).tied
    assert sbp("import-hf", str(folder), f"--run_dir={tmp_path}", "--scope=embedder") == 0
    assert model_config(tmp_path / "embedder").tied
    parameters, _ = load_parameters(tmp_path / "embedder")
    there = tensors(folder)
    np.testing.assert_array_equal(parameters["embedding"], there["embed_tokens.weight"])
    # One with an output layer keeps it.
    assert hugging_face.has_head(MODELS / "qwen3_untied")


def test_the_command_writes_a_folder_and_never_over_one(tmp_path, capfd):
    base = tmp_path / "run/base"
    sbp("import-hf", str(MODELS / "qwen3_tied"), f"--run_dir={tmp_path}/run", "--scope=base")
    assert sbp("export-hf", str(base)) == 0
    config = json.loads((tmp_path / "run/base.hf/config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert all(t.dtype == "bfloat16" for t in tensors(tmp_path / "run/base.hf").values())
    capfd.readouterr()
    assert sbp("export-hf", str(base)) == 2
    assert "holds a model already" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "architecture MixtralForCausalLM"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
        ({"hidden_size": None}, "hidden_size"),
        ({"intermediate_size": 56}, r"down_proj.weight has shape \(32, 48\), expected \(32, 56\)"),
        ({"num_hidden_layers": 3}, "no tensor model.layers.2"),
        ({"num_hidden_layers": 1}, "its tensor model.layers.1.* is none that this decoder has"),
    ],
)
def test_what_the_decoder_lacks_is_refused_by_name(tmp_path, change, message):
    folder = tmp_path / "model"
    shutil.copytree(MODELS / "llama_tied", folder)
    config = json.loads((folder / "config.json").read_text()) | change
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as caught:
        hugging_face.read_parameters(folder, hugging_face.read_config(folder))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("what", ["cut", "gone", "no config"])
def test_a_broken_folder_is_one_line(tmp_path, capfd, what):
    folder = tmp_path / "model"
    shutil.copytree(MODELS / "llama_tied", folder)
    weights = folder / "model.safetensors"
    if what == "cut":
        weights.write_bytes(weights.read_bytes()[:-500])
    elif what == "gone":
        weights.unlink()
    else:
        (folder / "config.json").unlink()
    assert sbp("import-hf", str(folder), f"--run_dir={tmp_path}/run") == 2
    (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith("sbp ")]
    assert str(folder) in line
    assert not (tmp_path / "run/import_hf").exists()


def test_a_path_where_none_belongs(tmp_path, capfd):
    assert sbp("import-hf", f"--run_dir={tmp_path}") == 2
    assert "needs a path" in capfd.readouterr().err
