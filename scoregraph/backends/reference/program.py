"""Plans in torch: every call in order, each one the plain function of its op."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scoregraph.backends.protocol import COUNTERS, Cancel, Constants, Miss, Progress
from scoregraph.backends.reference.execution import Run
from scoregraph.backends.reference.memory import load_constants, place_buffers
from scoregraph.backends.reference.ops import OPS
from scoregraph.errors import BadInput, MissingInput
from scoregraph.plan.schema import Call, Plan

Precision = Literal["float32", "float64"]


@dataclass(frozen=True)
class Reference:
    """The backend. ``precision`` is that of all float32 values of a plan; ``planned`` uses the plan's own memory."""

    precision: Precision = "float32"
    planned: bool = False
    name: str = "reference"

    @property
    def capabilities(self) -> frozenset[str]:
        """Every op of docs/plan-format.md."""
        return frozenset(OPS)

    def supports(self, call: Call) -> Miss | None:
        """None for every op that exists."""
        return None if call.op in OPS else Miss(f"there is no op named {call.op!r}")

    def compile(self, plan: Plan, constants: Constants) -> ReferenceProgram:
        """Unpack the constants; nothing else is prepared."""
        dtype = {"float32": torch.float32, "float64": torch.float64}[self.precision]
        return ReferenceProgram(plan, load_constants(plan, constants, dtype), dtype, self.planned)


@dataclass(frozen=True)
class ReferenceProgram:
    """A plan that torch interprets."""

    plan: Plan
    constants: Mapping[str, Tensor]
    dtype: torch.dtype
    planned: bool
    counted: Counter[str] = field(default_factory=Counter[str])

    def run(
        self,
        inputs: Mapping[str, np.ndarray],
        seeds: np.ndarray,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> dict[str, np.ndarray]:
        """One run of ``len(seeds)`` samples; outputs in the program's precision."""
        storage = {
            **self.constants,
            **place_buffers(self.plan, len(seeds), self.dtype, planned=self.planned),
        }
        for spec in self.plan.inputs:
            if spec.name not in inputs:
                known = ", ".join(given.name for given in self.plan.inputs)
                raise MissingInput(name=spec.name, known=known)
            _fill_input(spec.name, storage[f"b{spec.buffer}"], inputs[spec.name])
        keys = torch.from_numpy(np.asarray(seeds, dtype=np.uint64).view(np.int64).copy())
        run = Run(self.plan, storage, keys, self.dtype, self.counted, progress, cancel)
        with torch.no_grad():
            for segment in self.plan.segments:
                run.segment(segment)
        self.counted["runs"] += 1
        return {spec.name: storage[f"b{spec.buffer}"].numpy().copy() for spec in self.plan.outputs}

    def counters(self) -> dict[str, int]:
        """What all runs so far have executed; every run places its buffers anew, which is a bind."""
        return {name: self.counted["runs" if name == "binds" else name] for name in COUNTERS}

    def source(self) -> str:
        """The calls, one a line, with the shapes of their operands."""
        shapes = {f"b{b.id}": b.shape for b in self.plan.buffers} | {f"c{c.id}": c.shape for c in self.plan.constants}

        def show(roles: Mapping[str, str]) -> str:
            return ", ".join(f"{role}={ref}[{'x'.join(map(str, shapes[ref]))}]" for role, ref in roles.items())

        lines: list[str] = []
        for segment in self.plan.segments:
            times = "once" if segment.table is None else f"per row of table {segment.table}"
            if segment.repeat is not None:
                times += f", while any of b{segment.repeat.active} is not 0, {segment.repeat.limit} times at most"
            lines.append(f"{segment.name}: {times}")
            for call in segment.calls:
                attrs = "".join(f" {key}={value}" for key, value in call.attrs.items())
                if call.variants:
                    attrs += f" in rows of variant {' or '.join(map(str, call.variants))}"
                lines.append(f"  {show(call.outs)} = {call.op}({show(call.ins)}){attrs}  # {call.site}")
        return "\n".join(lines)


def _fill_input(name: str, buffer: Tensor, value: np.ndarray) -> None:
    given = torch.from_numpy(np.ascontiguousarray(value))
    if tuple(given.shape) != tuple(buffer.shape):
        problem = f"its shape is {list(given.shape)}, expected {list(buffer.shape)}"
        raise BadInput(name=name, problem=problem, help="give one value per sample, in the shape of the input")
    if given.dtype.is_floating_point and not bool(torch.isfinite(given).all()):
        raise BadInput(name=name, problem="it holds NaN or an infinite number", help="give finite numbers")
    buffer.copy_(given)
