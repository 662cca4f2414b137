"""Plans made call by call, for tests of single ops: the drafter of the compiler with buffers laid side by side."""

from __future__ import annotations

import numpy as np

from scoregraph.plan.dims import has_batch, parse_dim, per_unit
from scoregraph.plan.draft import Drafter, Value
from scoregraph.plan.files import lay_out
from scoregraph.plan.schema import InputSpec, OutputSpec, Plan, Slot


class Sketch(Drafter):
    """A plan for the CPU backend, its inputs and outputs named as they are added."""

    def __init__(self) -> None:
        super().__init__("sketch", "cpu")

    def input(self, name: str, *shape: object) -> Value:
        """A fresh input."""
        value = self.new(shape)  # pyright: ignore[reportArgumentType]
        self.inputs.append(InputSpec(name=name, buffer=int(value.storage[1:])))
        return value

    def output(self, name: str, value: Value) -> None:
        """A result."""
        self.outputs.append(OutputSpec(name=name, buffer=int(self.ref(value)[1:])))

    def data(self) -> tuple[Plan, bytes]:
        """The plan and its constants."""
        draft = self.build()
        ends = {"batch": 0, "fixed": 0}
        placed = []
        for buffer in draft.plan.buffers:
            if buffer.view is None:
                shape = [parse_dim(d) for d in buffer.shape]
                space = "batch" if has_batch(shape) else "fixed"
                placed.append(buffer.model_copy(update={"slot": Slot(space=space, offset=ends[space])}))
                ends[space] += -(-per_unit(shape) * 4 // 64) * 64
            else:
                placed.append(buffer)
        return lay_out(draft.plan.model_copy(update={"buffers": tuple(placed)}), draft.arrays)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Float32 normals, the same for the same shape and seed."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)
