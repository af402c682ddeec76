"""How a pass is computed, as opposed to what: none of it changes the model that is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax

from sbp_jax.errors import UserError
from sbp_jax.model.attention import BACKENDS
from sbp_jax.settings import configurable

# What a block names, in the order in which it is computed; the backward pass takes each from memory
# or computes it again.
TENSORS = (
    "weights",  # of the block, gathered from the devices that hold them and in the compute dtype
    "attention_in",  # normed
    "query",  # products, before their norm and rotation
    "key",
    "value",
    "rotated_query",
    "rotated_key",
    "context",  # what attention gives, and its normaliser
    "attention_out",
    "mlp_in",  # normed
    "gate",
    "up",
    "gated",
    "mlp_out",
)
PRODUCTS = ("query", "key", "value", "context", "gate", "up")

# Remat policies: what is kept of a block beside its input. `none` keeps what autodiff asks for.
POLICIES: dict[str, Sequence[str]] = {"none": TENSORS, "minimal": PRODUCTS, "full": ()}


@configurable
@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """Memory against time, and which kernels.

    Attributes:
      attention: backend (`sbp_jax.model.attention`): `xla`, `splash`, `cudnn`, or `auto`, the
        fastest that the devices and shapes allow.
      remat: what the backward pass recomputes of each block: `none` (nothing), `minimal` (all but
        matrix products and attention), `full` (everything, from the block's input).
      save: names of `TENSORS` that are kept whatever `remat` says.
      offload: names of `TENSORS` that are kept in the host's memory.
      scan_layers: one compiled block for all layers. False compiles each by itself: the compiler
        takes as much longer as there are layers, and what is kept for the backward pass is not
        copied into a stack and out of it.
      loss_block: tokens whose logits a device has in memory at a time.
    """

    attention: str = "auto"
    remat: str = "none"
    save: Sequence[str] = ()
    offload: Sequence[str] = ()
    scan_layers: bool = True
    loss_block: int = 4096

    def __post_init__(self):
        if self.attention not in BACKENDS:
            raise UserError(
                f"ComputeConfig.attention = {self.attention!r}: expected one of {list(BACKENDS)}"
            )
        if self.remat not in POLICIES:
            raise UserError(
                f"ComputeConfig.remat = {self.remat!r}: expected one of {list(POLICIES)}"
            )
        if unknown := (set(self.save) | set(self.offload)) - set(TENSORS):
            raise UserError(
                f"ComputeConfig: save and offload know no {sorted(unknown)}: "
                f"expected some of {list(TENSORS)}"
            )
        if self.loss_block < 1:
            raise UserError(f"ComputeConfig.loss_block = {self.loss_block} must be at least 1")

    def remat_block(self, block: Callable) -> Callable:
        """The block, of which the backward pass keeps what the policy says."""
        if self.remat == "none" and not self.offload:
            return block
        kept = (set(POLICIES[self.remat]) | set(self.save)) - set(self.offload)
        policies = jax.checkpoint_policies
        policy = (
            policies.save_and_offload_only_these_names(
                names_which_can_be_saved=sorted(kept),
                names_which_can_be_offloaded=sorted(self.offload),
                offload_src="device",
                offload_dst="pinned_host",
            )
            if self.offload
            else policies.save_only_these_names(*sorted(kept))
        )
        # Under a scan nothing can be merged across its steps: the guard against that only costs.
        return jax.checkpoint(block, policy=policy, prevent_cse=not self.scan_layers)
