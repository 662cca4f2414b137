"""Lay weights out once, at compile time, as the device's kernels read them; a saved plan maps them as they are.

``n16``: W [N, K] → [ceil(N/16)][K][16], so that a GEMM reads 16 output columns of one k from one cache line.
``oc8``: W [O, I, kh, kw] → [ceil(O/8)][I][kh][kw][8], so that a convolution broadcasts 8 output channels of one tap.
Padding is zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scoregraph.passes.base import Fuel, Miss, PassResult
from scoregraph.plan.draft import Draft


def pack(array: np.ndarray, layout: str) -> np.ndarray:
    """``array`` in ``layout``."""
    if layout == "plain":
        return array
    width = {"n16": 16, "oc8": 8}[layout]
    rows = -(-array.shape[0] // width)
    padded = np.zeros((rows * width, *array.shape[1:]), array.dtype)
    padded[: array.shape[0]] = array
    return np.ascontiguousarray(np.moveaxis(padded.reshape(rows, width, *array.shape[1:]), 1, -1))


@dataclass(frozen=True)
class PackWeights:
    """Constants read in one role only → the layout the backend wants for that role (``"linear.w"`` → ``"n16"``)."""

    layouts: Mapping[str, str]
    name: ClassVar[str] = "pack-weights"

    def run(self, module: Draft, fuel: Fuel | None = None) -> PassResult[Draft]:
        """Misses: a constant that is also read in another role stays plain."""
        fuel = fuel or Fuel()
        roles: dict[int, set[str]] = {}
        for segment in module.plan.segments:
            for call in segment.calls:
                for role, ref in call.ins.items():
                    if ref[0] == "c":
                        roles.setdefault(int(ref[1:]), set()).add(f"{call.op}.{role}")
        for table in module.plan.tables:
            roles.setdefault(table.constant, set()).add("the rows of a table")
        constants, arrays, misses = list(module.plan.constants), dict(module.arrays), list[Miss]()
        packed = 0
        for number, used in roles.items():
            wanted = {self.layouts.get(role, "plain") for role in used}
            if wanted == {"plain"} or constants[number].layout != "plain":
                continue
            if len(wanted) > 1:
                misses.append(Miss(f"read as {' and '.join(sorted(used))}", constants[number].name))
                continue
            if not fuel.spend():
                break
            layout = wanted.pop()
            arrays[number] = pack(arrays[number], layout)
            constants[number] = constants[number].model_copy(update={"layout": layout})
            packed += 1
        plan = module.plan.model_copy(update={"constants": tuple(constants)})
        return PassResult(Draft(plan, arrays), rewrites=packed, misses=tuple(misses))
