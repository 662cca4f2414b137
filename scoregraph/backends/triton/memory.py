"""A plan's buffers and constants as torch tensors: two arenas, and windows onto them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scoregraph.backends.protocol import Constants
from scoregraph.plan.dims import at, parse_dim, per_unit
from scoregraph.plan.files import read_constant
from scoregraph.plan.schema import Buffer, Plan

if TYPE_CHECKING:
    import torch

ITEM_BYTES = {"f32": 4, "i64": 8, "u8": 1}


def torch_dtype(name: str) -> torch.dtype:
    """The torch type of a plan's dtype."""
    import torch

    return {"f32": torch.float32, "i64": torch.int64, "u8": torch.uint8}[name]


def shape_at(buffer: Buffer, batch: int) -> tuple[int, ...]:
    """The shape of ``buffer`` in a run of ``batch`` samples."""
    return at((parse_dim(d) for d in buffer.shape), batch)


def unit_bytes(buffer: Buffer) -> int:
    """Bytes of a planned buffer per unit of B (or in all, without B)."""
    return per_unit([parse_dim(d) for d in buffer.shape]) * ITEM_BYTES[buffer.dtype]


def load_constants(plan: Plan, constants: Constants, device: torch.device) -> dict[str, torch.Tensor]:
    """The constants by ref, on ``device``; packed layouts stay what they are, flat."""
    import numpy as np
    import torch

    loaded: dict[str, torch.Tensor] = {}
    for constant in plan.constants:
        # A copy: the mapped file is read-only, and torch has no tensors that are.
        tensor = torch.from_numpy(np.array(read_constant(constant, constants)))
        shaped = tensor.view(constant.shape) if constant.layout == "plain" else tensor
        loaded[f"c{constant.id}"] = shaped.to(device)
    return loaded


@dataclass(frozen=True)
class Memory:
    """What calls name, for one batch size: ``memory["b3"]`` and ``memory["c0"]`` are tensors on one device.

    Args:
        batch: B.
        seeds: int64 [B], the bits of each sample's noise key.
    """

    batch: int
    seeds: torch.Tensor
    tensors: Mapping[str, torch.Tensor]

    def __getitem__(self, ref: str) -> torch.Tensor:
        return self.tensors[ref]


def allocate(plan: Plan, constants: Mapping[str, torch.Tensor], batch: int, device: torch.device) -> Memory:
    """Both arenas for ``batch`` samples, every buffer a window onto one of them."""
    import torch

    planned = [(b, b.slot) for b in plan.buffers if b.slot is not None]
    ends = {"batch": 0, "fixed": 0}
    for buffer, slot in planned:
        ends[slot.space] = max(ends[slot.space], slot.offset + unit_bytes(buffer))
    scales = {"batch": batch, "fixed": 1}
    arenas = {space: torch.empty(ends[space] * scales[space], dtype=torch.uint8, device=device) for space in ends}
    tensors = dict(constants)
    for buffer, slot in planned:
        start = slot.offset * scales[slot.space]
        window = arenas[slot.space][start : start + unit_bytes(buffer) * scales[slot.space]]
        tensors[f"b{buffer.id}"] = window.view(torch_dtype(buffer.dtype)).view(shape_at(buffer, batch))
    for buffer in plan.buffers:
        if buffer.view is not None:
            base = tensors[f"b{buffer.view.base}"]
            tensors[f"b{buffer.id}"] = base.as_strided(
                shape_at(buffer, batch), buffer.view.strides, base.storage_offset() + buffer.view.offset
            )
    return Memory(batch, torch.empty(batch, dtype=torch.int64, device=device), tensors)
