"""Transform the weights of 3x3 convolutions for minimal filtering, F(2x2, 3x3), where it is faster.

    y = conv(x, g)      ──▶      y = Aᵀ [u ⊙ (Bᵀ x B)] A  tile by tile,  u = G g Gᵀ

Four outputs take 16 multiplications instead of 36, or 9 where a nearest upsampling repeats every pixel
(docs/plan-format.md, Minimal filtering; Lavin & Gray 2016, "Fast Algorithms for Convolutional Neural Networks",
section 4.1). The weights take 16/9 of their memory, or as much as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scoregraph.passes.base import Fuel, Miss, PassResult
from scoregraph.plan.draft import Draft
from scoregraph.plan.schema import Call, Constant, Plan

_G = {
    4: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    3: np.array([[1, 0, 0], [1, 1, 1], [0, 0, 1]]),
}
"""G by the number of positions along an axis: 4, or 3 behind an upsampling."""

_FILTERS = 64
"""Filters that are transformed at a time: what float64 takes of memory."""

_LEAST_CHANNELS, _LEAST_FILTERS, _LEAST_TILES = 16, 16, 64
"""Below any of these the direct sums are as fast (AVX-512 and AVX2, one thread)."""


@dataclass(frozen=True)
class MinimalFiltering:
    """``conv2d`` in float32, 3x3, stride 1, of a constant weight → the same with ``winograd: 2``, w transformed."""

    name: ClassVar[str] = "winograd"

    def run(self, module: Draft, fuel: Fuel | None = None) -> PassResult[Draft]:
        """Rewrites: weights transformed. Counters: ``bytes`` they take more. Misses: weights that others read, too."""
        fuel = fuel or Fuel()
        plan = module.plan
        wanted = _wanted(plan)
        misses = [Miss("read elsewhere, too", plan.constants[number].name) for number, n in wanted.items() if n is None]
        constants, arrays, done = list(plan.constants), dict(module.arrays), set[str]()
        for number, points in wanted.items():
            if points is None:
                continue
            if not fuel.spend():
                break
            arrays[number] = transformed(arrays[number], points)
            constants[number] = constants[number].model_copy(update={"shape": arrays[number].shape})
            done.add(f"c{number}")
        if not done:
            return PassResult(module, misses=tuple(misses))
        more = sum(arrays[int(ref[1:])].nbytes - module.arrays[int(ref[1:])].nbytes for ref in done)

        def marked(call: Call) -> Call:
            filtered = call.op == "conv2d" and call.ins["w"] in done
            return call.model_copy(update={"attrs": {**call.attrs, "winograd": 2}}) if filtered else call

        segments = tuple(s.model_copy(update={"calls": tuple(map(marked, s.calls))}) for s in plan.segments)
        plan = plan.model_copy(update={"constants": tuple(constants), "segments": segments})
        return PassResult(Draft(plan, arrays), rewrites=len(done), counters={"bytes": more}, misses=tuple(misses))


def transformed(w: np.ndarray, points: int) -> np.ndarray:
    """G w Gᵀ of a weight [O, I, 3, 3], as [points, points, O, I]: computed in float64, rounded once."""
    filters, channels = w.shape[:2]
    both = np.kron(_G[points], _G[points])
    u = np.empty((points * points, filters, channels), np.float32)
    for first in range(0, filters, _FILTERS):
        part = w[first : first + _FILTERS].reshape(-1, 9).astype(np.float64)
        u[:, first : first + _FILTERS] = (both @ part.T).reshape(points * points, -1, channels)
    return u.reshape(points, points, filters, channels)


def _wanted(plan: Plan) -> Mapping[int, int | None]:
    """The constants that some call would rather have transformed, with the positions that all of their readers take.

    None where a reader takes them as they are, or in another number.
    """
    found: dict[int, set[int]] = {}
    for call in (call for segment in plan.segments for call in segment.calls):
        for role, ref in call.ins.items():
            if ref[0] == "c":
                takes = _points(plan, call, plan.constants[int(ref[1:])]) if role == "w" else 0
                found.setdefault(int(ref[1:]), set()).add(takes)
    for table in plan.tables:
        found.setdefault(table.constant, set()).add(0)
    return {n: takes.pop() if len(takes) == 1 else None for n, takes in found.items() if takes != {0}}


def _points(plan: Plan, call: Call, w: Constant) -> int:
    """The positions along an axis of the weight of ``call`` when it is transformed; 0 where it had better not be."""
    if call.op != "conv2d" or w.dtype != "f32" or w.layout != "plain" or tuple(w.shape[2:]) != (3, 3):
        return 0
    up, padding = tuple(call.attrs.get("up", (1, 1))), tuple(call.attrs["padding"])
    if tuple(call.attrs["stride"]) != (1, 1) or len(padding) != 4 or max(padding) > 2 or "winograd" in call.attrs:
        return 0
    filters, channels = w.shape[:2]
    rows, columns = (int(size) for size in plan.buffers[int(call.outs["y"][1:])].shape[2:])
    tiles = -(-rows // 2) * -(-columns // 2)
    if channels < _LEAST_CHANNELS or filters < _LEAST_FILTERS or tiles < _LEAST_TILES:
        return 0
    if up == (2, 2):
        return 3 if padding == (1, 1, 1, 1) else 0
    return 4 if up == (1, 1) else 0
