"""Where the values of a plan live while the reference runs it.

By default every buffer has storage of its own, filled with NaN, so a value that is read before it is written shows.
With ``planned=True`` buffers lie in the two arenas at the offsets the plan gives them, so that what the memory planner
decided can be checked against what it replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from scoregraph.backends.protocol import Constants
from scoregraph.plan.dims import at, parse_dim, per_unit
from scoregraph.plan.files import read_constant
from scoregraph.plan.layouts import STORED, logical
from scoregraph.plan.schema import Buffer, Plan

FIXED = {"i64": torch.int64, "u8": torch.uint8, "u7": torch.uint8, "bf16": torch.bfloat16}


def load_constants(plan: Plan, data: Constants, dtype: torch.dtype) -> dict[str, Tensor]:
    """All constants by reference (``c0`` …); float32 ones in ``dtype``."""
    loaded: dict[str, Tensor] = {}
    for constant in plan.constants:
        tensor = torch.from_numpy(logical(constant, read_constant(constant, data)).copy())
        match constant.dtype:
            case "f32":
                tensor = tensor.to(dtype)
            case "bf16":  # held as its bits
                tensor = tensor.view(torch.bfloat16)
            case _:
                pass
        loaded[f"c{constant.id}"] = tensor
    return loaded


def place_buffers(plan: Plan, batch: int, dtype: torch.dtype, *, planned: bool) -> dict[str, Tensor]:
    """The buffers in use, by reference (``b0`` …), for a run of ``batch`` samples; views share their base's storage."""
    make = _arenas(plan, batch, dtype) if planned else _separate(batch, dtype)
    by_id = {buffer.id: buffer for buffer in plan.buffers}
    placed: dict[str, Tensor] = {}

    def place(buffer: Buffer) -> Tensor:
        ref = f"b{buffer.id}"
        if ref not in placed:
            if buffer.view is None:
                placed[ref] = make(buffer)
            else:
                base = place(by_id[buffer.view.base])
                offset = base.storage_offset() + buffer.view.offset
                placed[ref] = base.as_strided(_shape(buffer, batch), buffer.view.strides, offset)
        return placed[ref]

    # Buffers that passes have orphaned have no place in planned memory.
    used = {
        ref for segment in plan.segments for call in segment.calls for ref in (*call.ins.values(), *call.outs.values())
    }
    used |= {f"b{spec.buffer}" for spec in (*plan.inputs, *plan.outputs)}
    for buffer in plan.buffers:
        if f"b{buffer.id}" in used:
            place(buffer)
    return placed


def _shape(buffer: Buffer, batch: int) -> tuple[int, ...]:
    return at((parse_dim(dim) for dim in buffer.shape), batch)


def _separate(batch: int, dtype: torch.dtype) -> Callable[[Buffer], Tensor]:
    def make(buffer: Buffer) -> Tensor:
        if buffer.dtype == "f32":
            return torch.full(_shape(buffer, batch), math.nan, dtype=dtype)
        return torch.zeros(_shape(buffer, batch), dtype=FIXED[buffer.dtype])

    return make


def _arenas(plan: Plan, batch: int, dtype: torch.dtype) -> Callable[[Buffer], Tensor]:
    # In float64 everything is twice as large, so all offsets double.
    factor = 2 if dtype == torch.float64 else 1
    sizes = {"batch": 0, "fixed": 0}
    for buffer in plan.buffers:
        if buffer.slot is not None:
            elements = per_unit(parse_dim(dim) for dim in buffer.shape)
            end = buffer.slot.offset + elements * STORED[buffer.dtype].itemsize
            sizes[buffer.slot.space] = max(sizes[buffer.slot.space], end)
    units: Mapping[str, int] = {"batch": batch, "fixed": 1}
    arenas = {
        space: torch.full((size * units[space] * factor,), 255, dtype=torch.uint8) for space, size in sizes.items()
    }

    def make(buffer: Buffer) -> Tensor:
        assert buffer.slot is not None, f"buffer b{buffer.id} has no place; plan its memory first"
        kind = dtype if buffer.dtype == "f32" else FIXED[buffer.dtype]
        shape = _shape(buffer, batch)
        start = buffer.slot.offset * units[buffer.slot.space] * factor
        nbytes = math.prod(shape) * kind.itemsize
        return arenas[buffer.slot.space][start : start + nbytes].view(kind).view(shape)

    return make
