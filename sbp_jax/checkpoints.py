"""Checkpoints: training state saved and restored by Orbax on any mesh, or parameters alone.

A checkpoint of step t holds three items: `parameters`, `optimizer`, and `progress` (JSON: the
step, which is the row position as well; tokens seen per source; held-out loss).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import nnx
from orbax.checkpoint import checkpoint_managers

from sbp_jax import artifacts
from sbp_jax.errors import Stopped, UserError
from sbp_jax.model.decoder import DecoderConfig, RopeScaling, structure
from sbp_jax.parallel import processes

CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """Where parameters came from.

    Attributes:
      directory: the train artefact.
      manifest_hash: hash of its manifest.
      step: of the checkpoint.
      progress: what the trainer recorded with it.
    """

    directory: epath.Path
    manifest_hash: str
    step: int
    progress: dict[str, Any]

    @property
    def hash(self) -> str:
        """Identifies the parameters: the train artefact and the step."""
        return artifacts.digest({"train": self.manifest_hash, "step": self.step})


class Checkpointer:
    """Saves training state without holding up the steps.

    Kept are the latest two, the best (lowest `dev_loss` in its progress), and those of every
    `keep_every`th step. Use as a context manager: leaving it waits for the last save.
    """

    def __init__(self, directory: epath.PathLike, keep_every: int | None = None):
        self.directory = epath.Path(directory).absolute()
        permanent = [checkpoint_managers.EveryNSteps(keep_every)] if keep_every else []
        options = {
            "best_fn": lambda metrics: metrics["dev_loss"],
            "best_mode": "min",
            "preservation_policy": checkpoint_managers.AnyPreservationPolicy(
                [
                    *permanent,
                    checkpoint_managers.LatestN(2),
                    checkpoint_managers.BestN(
                        get_metric_fn=lambda metrics: metrics["dev_loss"],
                        reverse=True,
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
        }
        self.manager = ocp.CheckpointManager(
            self.directory, options=ocp.CheckpointManagerOptions(**options)
        )

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *exception) -> None:
        self.manager.wait_until_finished()
        self.manager.close()

    def save(
        self,
        step: int,
        parameters: Any,
        optimizer: Any,
        progress: dict[str, Any],
        dev_loss: float | None = None,
    ) -> None:
        """Starts to save; returns when the arrays may be overwritten.

        `dev_loss` is of this very step; a checkpoint without one is never the best.
        """
        self.manager.save(
            step,
            args=ocp.args.Composite(
                parameters=ocp.args.StandardSave(parameters),
                optimizer=ocp.args.StandardSave(optimizer),
                progress=ocp.args.JsonSave(progress),
            ),
            metrics=None if dev_loss is None else {"dev_loss": dev_loss},
        )

    def restore(self, parameters: Any, optimizer: Any) -> tuple[Any, Any, dict] | None:
        """The newest checkpoint that can be read, onto the given shapes and shardings.

        Newer ones that cannot are then set aside as `STEP.damaged`. If none can be read, storage or
        memory are at fault rather than each of them, and all are left as they are.

        Args:
          parameters: pytree of arrays, real or abstract.
          optimizer: the same.

        Returns:
          Parameters, optimizer state and progress; None if there is no checkpoint.

        Raises:
          Stopped: there are checkpoints, and none can be read.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        for place, step in enumerate(steps):
            restored = None
            try:
                restored = self.manager.restore(
                    step,
                    args=ocp.args.Composite(
                        parameters=ocp.args.StandardRestore(parameters),
                        optimizer=ocp.args.StandardRestore(optimizer),
                        progress=ocp.args.JsonRestore(),
                    ),
                )
            except Exception as error:  # whatever a damaged file makes its reader raise
                logging.warning(
                    "checkpoint %d of %s cannot be read (%s): trying the one before",
                    step,
                    self.directory,
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                )
            if processes.all_of(restored is not None):
                assert restored is not None
                self._set_aside(steps[:place])
                return restored["parameters"], restored["optimizer"], restored["progress"]
        if steps:
            raise Stopped(
                f"none of the checkpoints {sorted(steps)} of {self.directory} can be read: see why "
                "above; nothing was changed. To start anew, delete them"
            )
        return None

    def _set_aside(self, steps: Sequence[int]) -> None:
        if not steps:
            return
        if processes.is_writer():
            for step in steps:
                (self.directory / str(step)).rename(self.directory / f"{step}.damaged")
        processes.wait_for_all(f"checkpoints {steps} are set aside")
        self.manager.reload()


def model_config(directory: epath.PathLike) -> DecoderConfig:
    """The model of a finished train artefact, from its manifest.

    Raises:
      UserError: there is none, or it is the artefact of another stage.
    """
    manifest = artifacts.read_manifest(directory)
    if manifest.stage not in ("train", "import_hf"):
        raise UserError(
            f"{directory} was made by `sbp {manifest.stage}`: expected the directory of `sbp train`"
        )
    fields = _fields(manifest.config["model"])
    scaling = fields.pop("rope_scaling", None)
    return DecoderConfig(
        **fields, rope_scaling=RopeScaling(**_fields(scaling)) if scaling else None
    )


def _fields(value: Mapping[str, Any]) -> dict[str, Any]:
    """Of a dataclass as a manifest holds it, without its name."""
    return {name: item for name, item in value.items() if name}


def save_parameters(directory: epath.PathLike, parameters: Any) -> None:
    """A checkpoint of step 0 of parameters that were not trained here."""
    with ocp.CheckpointManager(epath.Path(directory).absolute()) as manager:
        manager.save(
            0,
            args=ocp.args.Composite(
                parameters=ocp.args.StandardSave(parameters),
                progress=ocp.args.JsonSave({"step": 0}),
            ),
        )
        manager.wait_until_finished()


def load_parameters(
    directory: epath.PathLike,
    config: DecoderConfig | None = None,
    step: int | str = "last",
    shardings: Any = None,
) -> tuple[Any, CheckpointInfo]:
    """Parameters of a finished train artefact.

    Args:
      directory: the artefact.
      config: the model they are for; None for the artefact's own (`model_config`).
      step: `last`, `best` (lowest held-out loss in training), or a step that was kept.
      shardings: nested dict of shardings like the parameters; None for the first local device.

    Returns:
      The parameters, a nested dict of float32 arrays, and where they came from.

    Raises:
      UserError: no such checkpoint, or it is of a model of another shape.
    """
    directory = epath.Path(directory)
    own = model_config(directory)
    manifest = artifacts.read_manifest(directory)
    abstract = nnx.to_pure_dict(structure(own)[1])
    if config is not None:
        _check_shapes(directory, abstract, nnx.to_pure_dict(structure(config)[1]))
    if shardings is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, abstract)
    target = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
    )
    path = (directory / CHECKPOINTS).absolute()
    if not path.exists():
        raise UserError(f"{directory} has no {CHECKPOINTS}/: run its `sbp train` again")
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(path, options=options) as manager:
        steps = sorted(manager.all_steps())
        named = {"last": steps[-1] if steps else None, "best": manifest.counts.get("best_step")}
        wanted = named.get(step, step) if isinstance(step, str) else step
        if not isinstance(wanted, int) or wanted not in steps:
            raise UserError(f"{directory} has no checkpoint {step!r}: expected one of {steps}")
        restored = manager.restore(
            wanted,
            args=ocp.args.Composite(
                parameters=ocp.args.StandardRestore(target), progress=ocp.args.JsonRestore()
            ),
        )
    info = CheckpointInfo(directory, manifest.hash, wanted, restored["progress"])
    return restored["parameters"], info


def _check_shapes(directory: epath.Path, found: Any, wanted: Any) -> None:
    """Names the first parameter that differs."""
    shapes = [
        {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in tree}
        for tree in map(jax.tree_util.tree_leaves_with_path, (found, wanted))
    ]
    for name in [*shapes[1], *shapes[0]]:
        old, new = (side.get(name) for side in shapes)
        if old != new:
            raise UserError(
                f"{directory} is the checkpoint of another model: {name} has shape {old}, "
                f"this model's has {new}: set DecoderConfig as it was there"
            )
