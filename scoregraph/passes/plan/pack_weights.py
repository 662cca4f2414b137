"""Lay weights out once, at compile time, as the device's kernels read them; a saved plan maps them as they are.

The layouts are those of ``scoregraph.plan.layouts``. A backend names the one it wants for float32 weights of each role;
bf16 and integer weights of the same role come in that layout's counterpart, which keeps pairs and quads of inputs
together as the dot-product instructions take them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from scoregraph.passes.base import Fuel, Miss, PassResult
from scoregraph.plan.draft import Draft
from scoregraph.plan.layouts import pack, store

_OF_DTYPE = {"n16": {"f32": "n16", "bf16": "k2n16"}, "oc8": {"f32": "oc8"}}
_OF_INTEGERS = {"n16": "q4n16", "oc8": "q4oc8"}
_INTEGERS = ("i8", "i7", "i6", "i4", "i2")


def layout_for(wanted: str, dtype: str) -> str:
    """The layout of weights of ``dtype`` where float32 ones would come in ``wanted``; plain where there is none."""
    if dtype in _INTEGERS:
        return _OF_INTEGERS.get(wanted, "plain")
    return _OF_DTYPE.get(wanted, {}).get(dtype, "plain")


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
                        form = "transformed " if "winograd" in call.attrs else ""
                        roles.setdefault(int(ref[1:]), set()).add(f"{form}{call.op}.{role}")
        for table in module.plan.tables:
            roles.setdefault(table.constant, set()).add("the rows of a table")
        constants, arrays, misses = list(module.plan.constants), dict(module.arrays), list[Miss]()
        packed = 0
        for number, used in roles.items():
            dtype = constants[number].dtype
            wanted = {layout_for(self.layouts.get(role, "plain"), dtype) for role in used}
            if wanted == {"plain"} or constants[number].layout != "plain":
                continue
            if len(wanted) > 1:
                misses.append(Miss(f"read as {' and '.join(sorted(used))}", constants[number].name))
                continue
            if not fuel.spend():
                break
            layout = wanted.pop()
            arrays[number] = store(pack(arrays[number], layout), dtype)
            constants[number] = constants[number].model_copy(update={"layout": layout})
            packed += 1
        plan = module.plan.model_copy(update={"constants": tuple(constants)})
        return PassResult(Draft(plan, arrays), rewrites=packed, misses=tuple(misses))
