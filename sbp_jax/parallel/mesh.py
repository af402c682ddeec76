"""Mesh and logical axis rules: which dimension of an array lies along which axis of the mesh.

Arrays name their dimensions logically (`batch`, `embed`, `heads`, `mlp`, `vocab`); rules map the
names to the mesh axes `slice`, `data`, `fsdp` and `tensor`. Another layout is another rule, not
other code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sbp_jax.errors import UserError
from sbp_jax.settings import configurable

AXES = ("slice", "data", "fsdp", "tensor")

# Logical name → mesh axes. `embed` over `fsdp` shards every weight and its optimizer state. Slices
# are joined by a slow network: only gradients cross it.
DEFAULT_RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("batch", ("slice", "data", "fsdp")),
    ("embed", ("fsdp",)),
    ("heads", ("tensor",)),
    ("kv_heads", ("tensor",)),
    ("mlp", ("tensor",)),
    ("vocab", ("tensor",)),
)


@configurable
@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The shape of the mesh and the rules that lay arrays on it.

    Attributes:
      slices: TPU slices of the job, over which the batch is split; their devices lie in order.
      data: devices of a slice along which only the batch is split; -1 for all that the others
        leave.
      fsdp: devices along which the batch, the weights and the optimizer state are split.
      tensor: devices along which heads, hidden units and the vocabulary are split.
      rules: pairs of a logical name and the mesh axes it is laid along.
    """

    slices: int = 1
    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: Sequence[tuple[str, Sequence[str]]] = DEFAULT_RULES


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh with its rules.

    Attributes:
      mesh: devices by (`slice`, `data`, `fsdp`, `tensor`).
      rules: logical name → mesh axes.
    """

    mesh: Mesh
    rules: dict[str, tuple[str, ...]]

    def sharding(self, *names: str | None) -> NamedSharding:
        """How an array lies whose dimensions have these logical names."""
        return NamedSharding(
            self.mesh, PartitionSpec(*[self.rules.get(n) if n else None for n in names])
        )

    def constrain(self, x: jax.Array, *names: str | None) -> jax.Array:
        """Holds an intermediate result to this layout, under jit."""
        return jax.lax.with_sharding_constraint(x, self.sharding(*names))

    def gather(self, weights: jax.Array, names: Sequence[str | None], dtype: Any) -> jax.Array:
        """Weights as a product with a part of the batch needs them: whole along the batch's axes.

        They travel in `dtype`, and so does their gradient on its way back, which is summed and
        split in one step (a reduce-scatter): each device gets the part of it that it updates.
        """
        batch = self.rules["batch"]
        kept = [tuple(a for a in self.rules.get(n or "", ()) if a not in batch) for n in names]
        whole = NamedSharding(self.mesh, PartitionSpec(*kept))
        stored = self.sharding(*names)
        constrain = jax.lax.with_sharding_constraint

        @jax.custom_vjp
        def gather(x):
            return constrain(constrain(x.astype(dtype), stored), whole)

        gather.defvjp(
            lambda x: (gather(x), None),
            lambda _, gradient: (constrain(gradient, stored).astype(weights.dtype),),
        )
        return gather(weights)

    def parameter_shardings(self, parameters: Any) -> Any:
        """Shardings for a pytree of NNX variables (or their shapes) that carry `axes`.

        A variable's `axes` name its last dimensions; those before (stacked layers) stay whole.

        Raises:
          UserError: a dimension cannot be divided among its devices.
        """

        def one(path, variable):
            axes = variable.get_metadata()["axes"]
            missing = len(variable.shape) - len(axes)
            for size, axis in zip(variable.shape[missing:], axes, strict=True):
                parts = math.prod(self.mesh.shape[a] for a in self.rules.get(axis, ()))
                if size % parts:
                    name = jax.tree_util.keystr(path, simple=True, separator=".")
                    raise UserError(
                        f"{name}: its dimension {axis} of {size} cannot be divided among {parts} "
                        f"devices ({' × '.join(self.rules[axis])}): change the model or MeshConfig"
                    )
            return variable.replace(self.sharding(*(None,) * missing, *axes))

        return jax.tree_util.tree_map_with_path(
            one, parameters, is_leaf=lambda x: hasattr(x, "get_metadata")
        )

    @property
    def batch_shards(self) -> int:
        """Into how many parts the batch is split."""
        return math.prod(self.mesh.shape[axis] for axis in self.rules["batch"])


def make_layout(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Layout:
    """Builds the mesh over all devices of all processes.

    Raises:
      UserError: the axes do not multiply to the number of devices, or a rule names no axis.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.slices, config.data, config.fsdp, config.tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(
            f"MeshConfig: slices, data, fsdp, tensor = {sizes}: each is a positive number, "
            "and at most one is -1 (what the others leave)"
        )
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"MeshConfig: a mesh of slices × data × fsdp × tensor = {sizes} does not fit "
            f"{len(devices)} device(s): their product must be {len(devices)}"
        )
    rules = {name: tuple(axes) for name, axes in config.rules}
    for name, axes in rules.items():
        if unknown := set(axes) - set(AXES):
            raise UserError(
                f"MeshConfig.rules: {name} is laid along {sorted(unknown)}, "
                f"which is no mesh axis: expected some of {AXES}"
            )
    rules.setdefault("batch", ())
    mesh = Mesh(_arrange(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return Layout(mesh, rules)


def _arrange(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices by slice, data, fsdp, tensor: neighbours in an axis are neighbours in a slice.

    Raises:
      UserError: the devices lie in another number of slices.
    """
    slices, *inner = sizes
    found = len({getattr(device, "slice_index", 0) for device in devices})
    if found > 1 and found != slices:
        raise UserError(
            f"MeshConfig: slices = {slices}, and the devices lie in {found} slices: set it to that"
        )
    if found > 1:
        return mesh_utils.create_hybrid_device_mesh((1, *inner), (slices, 1, 1, 1), devices)
    return mesh_utils.create_device_mesh(sizes, devices)
