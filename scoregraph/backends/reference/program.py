"""Plans in torch: every call in order, each one the plain function of its op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scoregraph.backends.protocol import Cancel, Constants, Miss, Progress
from scoregraph.backends.reference.memory import load_constants, place_buffers
from scoregraph.backends.reference.ops import OPS, Frame
from scoregraph.errors import BadInput, Cancelled, MissingInput
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
        tables = {table.id: self.constants[f"c{table.constant}"] for table in self.plan.tables}
        rows = {table.id: table.rows for table in self.plan.tables}
        total = sum(rows[segment.table] for segment in self.plan.segments if segment.table is not None)
        done = 0
        with torch.no_grad():
            for segment in self.plan.segments:
                if segment.table is None:
                    for call in segment.calls:
                        self._call(call, storage, tables, None, keys)
                    continue
                for row in range(rows[segment.table]):
                    if cancel is not None and cancel.is_set():
                        raise Cancelled(done=done, total=total)
                    for call in segment.calls:
                        self._call(call, storage, tables, row, keys)
                    done += 1
                    if progress is not None:
                        progress(done, total)
        return {spec.name: storage[f"b{spec.buffer}"].numpy().copy() for spec in self.plan.outputs}

    def _call(
        self, call: Call, storage: Mapping[str, Tensor], tables: Mapping[int, Tensor], row: int | None, seeds: Tensor
    ) -> None:
        ins = {role: storage[ref] for role, ref in call.ins.items()}
        outs = {role: storage[ref] for role, ref in call.outs.items()}
        shapes = {role: tuple(out.shape) for role, out in outs.items()}
        made = OPS[call.op](ins, call.attrs, Frame(shapes, tables, row, seeds, self.dtype, call.site))
        results = {next(iter(outs)): made} if isinstance(made, Tensor) else made
        for role, value in results.items():
            if tuple(value.shape) != shapes[role]:
                raise AssertionError(
                    f"{call.op} at {call.site}: {role} is {tuple(value.shape)}, planned {shapes[role]}"
                )
            outs[role].copy_(value)

    def source(self) -> str:
        """The calls, one a line, with the shapes of their operands."""
        shapes = {f"b{b.id}": b.shape for b in self.plan.buffers} | {f"c{c.id}": c.shape for c in self.plan.constants}

        def show(roles: Mapping[str, str]) -> str:
            return ", ".join(f"{role}={ref}[{'x'.join(map(str, shapes[ref]))}]" for role, ref in roles.items())

        lines: list[str] = []
        for segment in self.plan.segments:
            times = "once" if segment.table is None else f"per row of table {segment.table}"
            lines.append(f"{segment.name}: {times}")
            for call in segment.calls:
                attrs = "".join(f" {key}={value}" for key, value in call.attrs.items())
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
