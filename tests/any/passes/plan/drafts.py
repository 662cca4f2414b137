"""Drafts to try plan passes on: written by hand, and random ones; and what running one gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import strategies as st

from scoregraph.backends.reference import Reference
from scoregraph.passes.lower import shape as shapes
from scoregraph.plan import files
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import InputSpec, OutputSpec

SEEDS = np.array([5, 6, 7], np.uint64)
ROWS = 3


def given(drafter: Drafter, name: str, *shape: int) -> Value:
    """An input [B, *shape]."""
    value = drafter.new((Batch(), *shape), name=name)
    drafter.inputs.append(InputSpec(name=name, buffer=int(value.storage[1:])))
    return value


def output(drafter: Drafter, name: str, value: Value) -> None:
    drafter.outputs.append(OutputSpec(name=name, buffer=int(drafter.ref(value)[1:])))


def pointwise(drafter: Drafter, program: Sequence[Sequence], *operands: Value) -> Value:
    made = drafter.new(operands[0].shape)
    ins = {f"x{i}": operand for i, operand in enumerate(operands)}
    drafter.call("pointwise", ins, {"y": made}, {"program": [list(step) for step in program]}, "pointwise")
    return made


def loop(drafter: Drafter, name: str = "loop") -> int:
    """Start a loop of three turns."""
    table = drafter.table(name, ("t",), np.arange(ROWS, dtype=np.float32)[:, None] + len(drafter.tables))
    drafter.begin(name, table)
    return table


def run(draft: Draft, *, planned: bool = False) -> dict[str, np.ndarray]:
    """The outputs in float64 for random inputs; ``planned`` runs in the memory that the plan states."""
    plan, constants = files.lay_out(draft.plan, draft.arrays)
    rng = np.random.default_rng(1)
    sizes = {spec.name: [3, *plan.buffers[spec.buffer].shape[1:]] for spec in plan.inputs}
    inputs = {name: rng.standard_normal(size) for name, size in sizes.items()}
    return Reference("float64", planned=planned).compile(plan, constants).run(inputs, SEEDS)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


SHAPES: tuple[tuple[int | Batch, ...], ...] = ((Batch(), 4), (Batch(2), 3), (Batch(), 8), (16,))
PROGRAMS = {1: ([["silu", 0]], [["square", 0]]), 2: ([["add", 0, 1]], [["tanh", 0], ["sub", 2, 1]])}


@st.composite
def drafts(draw: Callable) -> Draft:
    """Calls over fixed, batch and double-batch buffers in five segments, two of them loops that carry a buffer each."""
    d = Drafter("random", "reference")
    d.begin("prologue")
    known: list[Value] = [given(d, "a", 4), given(d, "b", 4), given(d, "wide", 8)]
    for shape in SHAPES:
        made = d.new(shape)
        d.call("fill", {}, {"x": made}, {"value": draw(st.sampled_from([0.5, -1.25]))}, "fill")
        known.append(made)
    body(draw, d, known)
    for name in ("first", "second"):
        carried = draw(st.sampled_from([value for value in known if value not in known[:3]]))
        table = loop(d, name)
        t = d.new((16,))
        d.call("step_time", {}, {"t": t}, {"table": table, "column": 0}, "time")
        inside = [*known, t]
        body(draw, d, inside)
        moved = pointwise(d, [["add", 0, 1], ["tanh", 2]], draw(like(carried, inside)), draw(like(carried, inside)))
        d.call("copy", {"x": moved}, {"y": carried}, site="carry")
        d.begin(f"after-{name}")
        known = inside
        body(draw, d, known)
    for i in range(draw(st.integers(1, 3))):
        output(d, f"out{i}", draw(st.sampled_from(known[3:])))
    return d.build()


def like(value: Value, known: list[Value]) -> st.SearchStrategy[Value]:
    return st.sampled_from([other for other in known if other.shape == value.shape])


def body(draw: Callable, d: Drafter, known: list[Value]) -> None:
    """A few calls; what they make is added to ``known``."""
    for kind in draw(st.lists(st.sampled_from(["one", "two", "permute", "halves"]), max_size=5)):
        first = draw(st.sampled_from(known))
        if kind == "one":
            known.append(pointwise(d, draw(st.sampled_from(PROGRAMS[1])), first))
        elif kind == "two":
            known.append(pointwise(d, draw(st.sampled_from(PROGRAMS[2])), first, draw(like(first, known))))
        elif kind == "permute" and first.shape == (Batch(), 4):
            split = shapes.view(d, first, (Batch(), 2, 2), "split")
            made = d.new((Batch(), 2, 2))
            d.call("copy", {"x": shapes.permute(split, (0, 2, 1))}, {"y": made}, site="permute")
            known.append(shapes.view(d, made, (Batch(), 4), "merge"))
        elif kind == "halves":
            parts = [draw(st.sampled_from([v for v in known if v.shape == (Batch(), 4)])) for _ in range(2)]
            known.append(shapes.concatenate(d, parts, 1, "halves"))
