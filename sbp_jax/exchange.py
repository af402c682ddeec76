"""The commands `sbp import-hf` and `sbp export-hf`: checkpoints from and for Hugging Face."""

from __future__ import annotations

import dataclasses

import jax
from absl import logging
from etils import epath
from flax import nnx

from sbp_jax import artifacts
from sbp_jax.checkpoints import CHECKPOINTS, load_parameters, model_config, save_parameters
from sbp_jax.errors import UserError
from sbp_jax.model import hugging_face
from sbp_jax.model.decoder import parameter_count, structure
from sbp_jax.settings import configurable


def import_hf(run: artifacts.Run, directory: str) -> None:
    """Makes a checkpoint of a folder of weights: what `start_from` and `synthesize` can read.

    Args:
      run: names the artefact.
      directory: config.json and safetensors, Llama or Qwen3. One without an output layer, as
        embedding models are published, is taken for a tied one, and its logits mean nothing.
    """
    source = epath.Path(directory)
    config = hugging_face.read_config(source)
    if not config.tied and not hugging_face.has_head(source):
        logging.warning("%s has no output layer: it can embed, and not write", source)
        config = dataclasses.replace(config, tied=True)
    files = [p for p in sorted(source.iterdir()) if p.suffix in (".json", ".safetensors")]
    stage = artifacts.begin(
        run,
        "import_hf",
        config={"model": config},
        inputs={path.name: path for path in files},
        code=("sbp_jax.model.hugging_face", "sbp_jax.checkpoints"),
    )
    if stage.finished:
        return
    parameters = hugging_face.read_parameters(source, config)
    # In the host's memory: the whole of a large model fits no single device.
    save_parameters(stage.work / CHECKPOINTS, jax.device_put(parameters, _in_host_memory()))
    stage.commit({"parameters": parameter_count(config)})


@configurable
def export_hf(
    run: str, *, out: str | None = None, step: int | str = "last", dtype: str = "bfloat16"
) -> None:
    """Writes a checkpoint as a folder that `transformers` reads.

    Args:
      run: directory of the train artefact.
      out: the folder; by default `RUN.hf`.
      step: which checkpoint: `last`, `best`, or a step.
      dtype: of the tensors, `bfloat16`, `float16` or `float32`.
    """
    if dtype not in ("bfloat16", "float16", "float32"):
        raise UserError(f"export_hf.dtype = {dtype!r}: bfloat16, float16 or float32")
    config = model_config(run)
    everywhere = jax.tree.map(lambda _: _in_host_memory(), nnx.to_pure_dict(structure(config)[1]))
    parameters, info = load_parameters(run, step=step, shardings=everywhere)
    target = out or f"{run.rstrip('/')}.hf"
    files = hugging_face.write(target, config, parameters, dtype=dtype)
    logging.info("step %d of %s: %s in %s", info.step, run, ", ".join(files), target)


def _in_host_memory() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
