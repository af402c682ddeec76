"""Metrics of a run: JSON lines and TensorBoard, exact across restarts; the devices' peak rate."""

from __future__ import annotations

import json
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath
from tensorboardX import SummaryWriter

from sbp_jax import artifacts

FILE = "metrics.jsonl"

# Dense bf16 peak of a chip in FLOP/s, by JAX's device kind (the makers' data sheets).
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops() -> float | None:
    """Peak FLOP/s of one device; on CPU the rate of a large float32 matrix product, measured.

    None for a device that is not in the table.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return PEAK_FLOPS.get(device.device_kind)
    size = 1024
    a = jax.device_put(jnp.ones((size, size)), device)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    # All virtual devices share the machine's cores.
    return 2 * size**3 / min(seconds) / jax.local_device_count()


class MetricsWriter:
    """Appends metrics of steps; what a restart repeats is taken back first.

    Args:
      directory: of the run; gets `metrics.jsonl` and `tensorboard/`.
      step: the step resumed from: later lines of an interrupted attempt are dropped.
    """

    def __init__(self, directory: epath.Path, step: int):
        self.path = directory / FILE
        kept = [line for line in read_metrics(directory) if line["step"] <= step]
        artifacts.write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = self.path.open("a")
        self.tensorboard = SummaryWriter(
            str(directory / "tensorboard"), purge_step=step + 1 if step else None
        )

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exception) -> None:
        self.file.close()
        self.tensorboard.close()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line of JSON, and every number to TensorBoard."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        for name, value in _flat(values):
            self.tensorboard.add_scalar(name, value, step)


def read_metrics(directory: epath.PathLike) -> list[dict[str, Any]]:
    """All lines of a run's metrics; a last line cut by a crash is left out."""
    path = epath.Path(directory) / FILE
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            logging.warning("%s: a line cut short is dropped: %r", path, text[:80])
    return lines


def _flat(values: dict[str, Any], prefix: str = ""):
    for name, value in values.items():
        if isinstance(value, list):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, value
