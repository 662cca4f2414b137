"""Plans of loops by hand, for every backend: rows of three variants, and rounds while something is active."""

from __future__ import annotations

import numpy as np
from triton_plans import Sketch

from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Value
from scoregraph.plan.schema import Repeat

B = Batch(1)


def guided_then_single_then_noise() -> Sketch:
    """x' = x + b0 m0 + b1 m1 + c z over four rows: two branches, two, one, none. A branch j of x is (j + 1) x_in."""
    s = Sketch()
    rows = [
        # variant, c_in, a, b0, b1, c
        [0.0, 1.0, 1.0, 3.0, -2.0, 0.0],
        [0.0, 0.5, 1.0, 0.25, 0.5, 0.125],
        [1.0, 2.0, 0.5, 1.0, 0.0, 0.0],
        [2.0, 1.0, 1.0, 0.0, 0.0, 4.0],
    ]
    loop = s.table("loop", ["variant", "c_in", "a", "b0", "b1", "c"], np.array(rows, np.float32))
    x = s.input("x", s.new((B, 3)))
    both, one = s.new((Batch(2), 3)), s.new((B, 3))
    m_both, m_one = s.new((Batch(2), 3)), s.new((B, 3))
    s.begin("before")
    s.call("step_input", {"x": x}, {"xin": both}, {"table": loop, "column": 1, "row": 0})
    s.begin("loop", loop, variant=0)
    attrs = {"table": loop, "a": 2, "b": 3, "c": 5, "cin": 1, "width": 2, "site": 4}
    with s.only_in(0):
        s.evaluates("net", branches=2)
        s.call("copy", {"x": both}, {"y": m_both})
        second = Value(m_both.storage, (B, 3), (6, 1), 3)
        s.call("pointwise", {"x0": second}, {"y": second}, {"program": [["add", 0, 0]]})
        s.call("sampler_step", {"r0": x, "p0": m_both}, {"r0": x, "xin0": both, "xin1": one}, attrs)
    with s.only_in(1):
        s.evaluates("net")
        s.call("copy", {"x": one}, {"y": m_one})
        s.call("sampler_step", {"r0": x, "p0": m_one}, {"r0": x}, {**attrs, "answers": [0]})
    with s.only_in(2):
        s.call("sampler_step", {"r0": x}, {"r0": x}, {**attrs, "answers": []})
    s.output("x", x)
    return s


def halving(limit: int, *, strict: bool = False, table: bool = True) -> Sketch:
    """While any x is at least 1: two rows of x' = x/2 (+ z/8 in the first)."""
    s = Sketch()
    x = s.input("x", s.new((B,)))
    active = s.input("active", s.new((B,)))
    if table:
        loop = s.table("loop", ["a", "c"], np.array([[0.5, 0.125], [0.5, 0.0]], np.float32))
    s.begin("loop", loop if table else None, repeat=Repeat(active=int(active.storage[1:]), limit=limit, strict=strict))
    s.evaluates("net", branches=3)
    if table:
        s.call("sampler_step", {"r0": x}, {"r0": x}, {"table": loop, "a": 0, "b": 1, "c": 1, "cin": -1, "site": 4})
    else:
        s.call("pointwise", {"x0": x}, {"y": x}, {"program": [["const", 0.25], ["mul", 0, 1]]})
    # Not (x < 1): 1 - less(x, 1)
    still = [["const", 1.0], ["less", 0, 1], ["sub", 1, 2]]
    s.call("pointwise", {"x0": x}, {"y": active}, {"program": still})
    s.output("x", x)
    return s


# --- A step with everything that may belong to one ------------------------------------------------

ROWS, R, K, E, Y, DRAWS = 3, 2, 3, 2, 2, 4
SIZES = {
    "c_in": 1,
    "draw": 1,
    "slot": 1,
    "a": R * R,
    "b": R * K,
    "c": R,
    "e": E * (R + K),
    "h": R * Y,
    "f": 2 * (R + K),
}
OFFSETS = dict(zip(SIZES, np.cumsum([0, *SIZES.values()]).tolist(), strict=False))
# Over e_0, e_1, z and two extras: y_0 = clamp(e_0, -1, 1) x_0, y_1 = (e_1 z + row's c_in) x_1.
PROGRAM = [["const", 1.0], ["neg", 5], ["max", 0, 6], ["min", 7, 5], ["mul", 8, 3], ["mul", 1, 2], ["row", 0]]
PROGRAM += [["add", 10, 11], ["mul", 12, 4]]
STEP = {name: OFFSETS[name] for name in ("a", "b", "c", "e", "h")}
STEP |= {"estimates": E, "program": PROGRAM, "results": [9, 13], "draws": True, "cin": 0, "site": 7}


def table() -> np.ndarray:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((ROWS, sum(SIZES.values()))).astype(np.float32)
    rows[:, OFFSETS["draw"]] = [2, 0, 3]
    rows[:, OFFSETS["slot"]] = [2, -1, 0]
    # A row without plain noise, one in which an answer is not read, one in which a register stays.
    rows[0, OFFSETS["c"] : OFFSETS["e"]] = 0
    rows[1, OFFSETS["b"] + 1] = 0
    rows[2, OFFSETS["a"] : OFFSETS["b"]] = [1, 0, 0, 1]
    return rows


def everything(n: int, *, per_sample: bool = False, bank: bool = False, some: bool = False) -> Sketch:
    """A loop of [record x, gram, scalars, step]; p1 has strided rows, extras are broadcast."""
    s = Sketch()
    loop = s.table("loop", [f"k{i}" for i in range(sum(SIZES.values()))], table())
    registers = {f"r{j}": s.input(f"r{j}", s.new((B, n, 4))) for j in range(R)}
    pair, wide = s.input("p0", s.new((Batch(2), n, 4))), s.input("p1", s.new((B, 2, n, 4)))
    whole, line = s.input("x0", s.new((B, n))), s.input("x1", s.new((4,)))
    shape = (B, n, 4)
    answers = {"p0": pair, "p1": Value(wide.storage, shape, (2 * n * 4, 4, 1), n * 4)}
    extras = {"x0": Value(whole.storage, shape, (n, 1, 0)), "x1": Value(line.storage, shape, (0, 0, 1))}
    noise = s.input("bank", s.new((B, DRAWS, n, 4))) if bank else None
    x_in, seen = s.new((Batch(2), n, 4)), s.new((B, ROWS, n, 4))
    sums, made = s.new((B, 3)), s.new((B, sum(SIZES.values())))
    attrs: dict = {"table": loop}
    if some:
        answers, attrs = {"p0": answers["p1"]}, {"table": loop, "answers": [2], "width": K}
    s.begin("before")
    s.call("fill", {}, {"x": seen}, {"value": -1.0})
    s.call("fill", {}, {"x": x_in}, {"value": 0.0})
    s.begin("loop", loop)
    s.call("record", {"x": registers["r0"]}, {"y": seen}, {"table": loop, "column": OFFSETS["slot"]})
    gram = {**attrs, "f": OFFSETS["f"], "forms": 2, "stats": [[0, 0], [0, 1], [1]]}
    s.call("gram", {**registers, **answers}, {"g": sums}, gram)
    # Every entry of the row, the first of them scaled by 1 / (1 + |<v0, v1>|).
    program: list = [["in", 0, 1], ["abs", 0], ["const", 1.0], ["add", 1, 2], ["reciprocal", 3]]
    program += [["row", i] for i in range(sum(SIZES.values()))]
    first = len(program)
    program += [["mul", 4, 5 + OFFSETS["a"]]]
    results = [5 + i for i in range(sum(SIZES.values()))]
    results[OFFSETS["a"]] = first
    s.call("scalars", {"x0": sums}, {"y": made}, {"table": loop, "program": program, "results": results})
    ins = {**registers, **answers, **extras, "coef": made if per_sample else None, "bank": noise}
    draw = {"draw": OFFSETS["draw"]} if bank else {}
    s.call("sampler_step", ins, {**registers, "xin0": x_in}, {**attrs, **STEP, **draw}, site="step")
    for name, value in (*registers.items(), ("x_in", x_in), ("seen", seen), ("sums", sums), ("made", made)):
        s.output(name, value)
    return s


def inputs(sketch: Sketch, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    shapes = {b.id: b.shape for b in sketch.build().plan.buffers}
    sizes = {
        name: [d if isinstance(d, int) else batch * int(d[:-1] or 1) for d in shapes[i]] for name, i in given(sketch)
    }
    return {name: rng.standard_normal(size, dtype=np.float32) for name, size in sizes.items()}


def given(sketch: Sketch) -> list[tuple[str, int]]:
    return [(spec.name, spec.buffer) for spec in sketch.inputs]
