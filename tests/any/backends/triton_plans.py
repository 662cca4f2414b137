"""Small plans for the Triton tests: a drafter whose buffers get places side by side, and one run of it."""

from __future__ import annotations

import numpy as np

from scoregraph.backends.triton import TritonBackend, TritonProgram
from scoregraph.plan.dims import has_batch, parse_dim, per_unit
from scoregraph.plan.draft import Drafter, Value
from scoregraph.plan.files import lay_out
from scoregraph.plan.schema import InputSpec, OutputSpec, Slot


class Sketch(Drafter):
    """A plan made call by call."""

    def __init__(self) -> None:
        super().__init__("sketch", "triton")

    def input(self, name: str, value: Value) -> Value:
        self.inputs.append(InputSpec(name=name, buffer=int(value.storage[1:])))
        return value

    def output(self, name: str, value: Value) -> None:
        self.outputs.append(OutputSpec(name=name, buffer=int(self.ref(value)[1:])))

    def program(self, *, interpret: bool = True) -> TritonProgram:
        draft = self.build()
        ends = {"batch": 0, "fixed": 0}
        placed = []
        for buffer in draft.plan.buffers:
            if buffer.view is None:
                shape = [parse_dim(d) for d in buffer.shape]
                space = "batch" if has_batch(shape) else "fixed"
                placed.append(buffer.model_copy(update={"slot": Slot(space=space, offset=ends[space])}))
                ends[space] += -(-per_unit(shape) * 8 // 64) * 64
            else:
                placed.append(buffer)
        plan, constants = lay_out(draft.plan.model_copy(update={"buffers": tuple(placed)}), draft.arrays)
        return TritonBackend(interpret=interpret).compile(plan, constants)

    def run(self, seeds: list[int] | None = None, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """One interpreted run; the batch is the number of seeds (one if not given)."""
        return self.program().run(inputs, np.array([0] if seeds is None else seeds, np.uint64))
