"""Drafts to try plan passes on: written by hand, and random ones; and what running one gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from hypothesis import strategies as st

from scoregraph.backends.reference import Reference
from scoregraph.passes.lower import shape as shapes
from scoregraph.plan import files
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import Call, InputSpec, OutputSpec, Repeat

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


KINDS = 3
"""Variants of the rows of random loops; not every one occurs."""


@st.composite
def drafts(draw: Callable) -> Draft:
    """Calls over fixed, batch and double-batch buffers in five segments, two of them loops that carry a buffer each.

    A loop may have rows of several variants, with calls of their own, and may go round after round.
    """
    d = Drafter("random", "reference")
    d.begin("prologue")
    known: list[Value] = [given(d, "a", 4), given(d, "b", 4), given(d, "wide", 8)]
    for shape in SHAPES:
        made = d.new(shape)
        d.call("fill", {}, {"x": made}, {"value": draw(st.sampled_from([0.5, -1.25]))}, "fill")
        known.append(made)
    body(draw, d, known)
    for name in ("first", "second"):
        known += draw(st.sampled_from([plain_loop, variant_loop, repeated_loop]))(draw, d, known, name)
        d.begin(f"after-{name}")
        body(draw, d, known)
    for i in range(draw(st.integers(1, 3))):
        output(d, f"out{i}", draw(st.sampled_from(known[3:])))
    return d.build()


def plain_loop(draw: Callable, d: Drafter, known: list[Value], name: str) -> list[Value]:
    """Three rows of one kind. Returns what it made."""
    carried = draw(st.sampled_from(known[3:]))
    made = [clock(d, loop(d, name))]
    turn(draw, d, known, made, carried)
    return made


def variant_loop(draw: Callable, d: Drafter, known: list[Value], name: str) -> list[Value]:
    """Rows of several kinds. What a kind makes is read in its own rows, in those of kinds that come later, and behind
    the loop, which then sees an earlier row's value."""
    carried = draw(st.sampled_from(known[3:]))
    rows = draw(st.lists(st.integers(0, KINDS - 1), min_size=1, max_size=5))
    cells = [(float(i), float(kind)) for i, kind in enumerate(rows)]
    table = d.table(name, ("t", "kind"), np.array(cells, np.float32))
    d.begin(name, table, variant=1)
    made = [clock(d, table)]
    for kind in dict.fromkeys(rows):  # in the order of their first rows
        with d.only_in(kind):
            turn(draw, d, known, made, carried)
    if draw(st.booleans()):
        turn(draw, d, known, made[:1], carried)
    return made


def repeated_loop(draw: Callable, d: Drafter, known: list[Value], name: str) -> list[Value]:
    """Nought to three rounds. Behind it, only what had a value before it has one."""
    carried = draw(st.sampled_from(known[3:]))
    left = d.new((Batch(), 1))
    d.call("fill", {}, {"x": left}, {"value": float(draw(st.integers(0, 3)))}, "rounds")
    repeat = Repeat(active=int(left.storage[1:]), limit=3, strict=draw(st.booleans()))
    table = None
    if draw(st.booleans()):
        table = d.table(name, ("t",), np.arange(2, dtype=np.float32)[:, None])
    d.begin(name, table, repeat=repeat)
    made = [] if table is None else [clock(d, table)]
    turn(draw, d, known, made, carried)
    step = 1.0 if table is None else 0.5  # the rows of a round together take 1
    fewer = pointwise(d, [["const", step], ["sub", 0, 1]], left)
    d.call("copy", {"x": fewer}, {"y": left}, site="fewer")
    return []


def clock(d: Drafter, table: int) -> Value:
    t = d.new((16,))
    d.call("step_time", {}, {"t": t}, {"table": table, "column": 0}, "time")
    return t


def turn(draw: Callable, d: Drafter, known: list[Value], made: list[Value], carried: Value) -> None:
    """Calls that end in a new value of ``carried``; what they make is added to ``made``."""
    inside = [*known, *made]
    before = len(inside)
    body(draw, d, inside)
    moved = pointwise(d, [["add", 0, 1], ["tanh", 2]], draw(like(carried, inside)), draw(like(carried, inside)))
    d.call("copy", {"x": moved}, {"y": carried}, site="carry")
    made += inside[before:]


def trace(draft: Draft) -> list[Call | int]:
    """The calls in the order in which they run; a number is a look at that buffer, whether there is another round."""
    plan, ran = draft.plan, list[Call | int]()
    filled = {int(c.outs["x"][1:]): c.attrs["value"] for s in plan.segments for c in s.calls if c.op == "fill"}
    for segment in plan.segments:
        if segment.table is None:
            rows = [0]
        else:
            cells = draft.arrays[plan.tables[segment.table].constant]
            rows = [0 if segment.variant is None else int(row[segment.variant]) for row in cells]
        rounds = 1 if segment.repeat is None else int(filled[segment.repeat.active])
        for _ in range(rounds):
            if segment.repeat is not None:
                ran.append(segment.repeat.active)
            ran += [call for row in rows for call in segment.calls if not call.variants or row in call.variants]
        if segment.repeat is not None:
            ran.append(segment.repeat.active)
    return ran


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


def product(d: Drafter, x: Value, width: int, *, act: str = "none", site: str = "linear", **roles: Value) -> Value:
    """x w^T + b with random weights of so many rows."""
    rng = np.random.default_rng(len(d.constants))
    depth = x.shape[-1]
    assert isinstance(depth, int)
    w = d.constant(rng.standard_normal((width, depth)).astype(np.float32) / depth**0.5, f"{site}.w")
    b = d.constant(rng.standard_normal(width).astype(np.float32), f"{site}.b")
    y = d.new((*x.shape[:-1], width), name=site)
    d.call("linear", {"x": x, "w": w, "bias": b, **roles}, {"y": y}, {"act": act}, site)
    return y


def evaluate(draft: Draft, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs in float64, one row per sample: what ``tabulate-time`` is given."""
    plan, constants = files.lay_out(draft.plan, draft.arrays)
    samples = np.zeros(max((len(value) for value in inputs.values()), default=1), np.uint64)
    return Reference("float64").compile(plan, constants).run(inputs, samples)


def conditioned(branches: int = 2, *, kinds: Sequence[int] = (), rounds: bool = False) -> Draft:
    """A block of a network in a loop: modulation of the state by the sum of a time's and a label's embedding.

    With ``kinds`` the rows are of these variants, all of them but 1 evaluate the block. With ``rounds`` the loop goes
    round after round.
    """
    d = Drafter("conditioned", "reference")
    d.begin("before")
    label, state = given(d, "label", 6), d.new((Batch(), 4, 8), name="state")
    wide = d.new((Batch(branches), 6), name="labels")
    split = shapes.view(d, wide, (Batch(), branches, 6), "labels")
    for j in range(branches):
        d.call("copy", {"x": label}, {"y": shapes.select(split, 1, j)}, site="labels")
    d.call("noise", {}, {"x": state}, {"site": 0, "micro": 0, "scale": 1.0}, "noise")
    left = d.new((Batch(), 1), name="left")
    d.call("fill", {}, {"x": left}, {"value": float(rounds)}, "left")
    rows = len(kinds) or ROWS
    cells = [(0.3 + i, float(kind)) for i, kind in zip(range(rows), kinds or [0] * rows, strict=True)]
    table = d.table("steps", ("t", "kind"), np.array(cells, np.float32))
    repeat = Repeat(active=int(left.storage[1:]), limit=2) if rounds else None
    d.begin("steps", table, variant=1 if kinds else None, repeat=repeat)
    with d.only_in(*([kind for kind in sorted(set(kinds)) if kind != 1] if kinds else [])):
        t = d.new((Batch(branches),), name="t")
        d.call("step_time", {}, {"t": t}, {"table": table, "column": 0}, "time")
        waves = [pointwise(d, [[op, 0]], shapes.unsqueeze(t, 1)) for op in ("sin", "cos")]
        time = product(d, shapes.concatenate(d, waves, 1, "waves"), 8, act="silu", site="time")
        embedded = product(d, wide, 8, site="label", residual=product(d, time, 8, site="time2"))
        modulation = product(d, pointwise(d, [["silu", 0]], embedded), 16, site="modulation")
        parts = shapes.split(modulation, [8, 8], 1)
        states = d.new((Batch(branches), 4, 8), name="states")
        each = shapes.view(d, states, (Batch(), branches, 4, 8), "states")
        for j in range(branches):
            d.call("copy", {"x": state}, {"y": shapes.select(each, 1, j)}, site="states")
        y = d.new(states.shape, name="norm")
        ins = {"x": states, "scale": parts[0], "shift": parts[1]}
        d.call("layer_norm", ins, {"y": y}, {"eps": 1e-6, "act": "none"}, "norm")
        q, k, v = (product(d, y, 8, site=name) for name in "qkv")
        mixed = d.new((Batch(branches), 1, 4, 8), name="attention")
        heads = {name: shapes.unsqueeze(part, 1) for name, part in zip("qkv", (q, k, v), strict=True)}
        d.call("attention", heads, {"y": mixed}, {"scale": 0.3}, "attention")
        back = shapes.view(d, mixed, (Batch(), branches, 4, 8), "back")
        d.call("copy", {"x": shapes.select(back, 1, branches - 1)}, {"y": state}, site="carry")
    if rounds:
        d.call("fill", {}, {"x": left}, {"value": 0.0}, "stop")
    d.begin("after")
    output(d, "y", state)
    return d.build()
