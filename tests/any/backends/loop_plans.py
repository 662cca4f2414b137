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
