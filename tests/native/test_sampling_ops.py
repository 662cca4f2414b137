"""The ops of sampling loops in plans written by hand, against the reference backend in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from sketch import Sketch, normal

from scoregraph.backends.cpu import Cpu
from scoregraph.errors import PlanCorrupt
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Value
from scoregraph.plan.schema import Plan

pytestmark = pytest.mark.native

torch = pytest.importorskip("torch")

B = Batch(1)
BATCH, ROWS = 3, 4
SEEDS = np.array([5, 6, 2**63 + 1], dtype=np.uint64)
SHAPE = (2, 5, 7)
R, K, E, Y = 2, 3, 2, 2
SIZES = {
    "c_in": 1,
    "draw": 1,
    "slot": 1,
    "a": R * R,
    "b": R * K,
    "c": R,
    "e": E * (R + K),
    "h": R * Y,
    "f": 3 * (R + K),
}
AT = dict(zip(SIZES, np.cumsum([0, *SIZES.values()]).tolist(), strict=False))
COLUMNS = [f"{name}{i}" for name, size in SIZES.items() for i in range(size)]
STATS = [[0, 0], [0, 1], [1, 2], [2]]
# y_0 = clamp(e_0, -q, q) / q with the quantile q = x1; y_1 = e_1 exp(row's c_in * z) where x0 < 0, else z
ELEMENTWISE = [
    ["neg", 4],
    ["max", 0, 5],
    ["min", 6, 4],
    ["div", 7, 4],
    ["row", AT["c_in"]],
    ["mul", 9, 2],
    ["exp", 10],
    ["mul", 1, 11],
    ["const", 0.0],
    ["less", 3, 13],
    ["where", 14, 12, 2],
]


def table(seed: int = 1) -> np.ndarray:
    """Four rows of everything; coefficients small, some 0; every second row records."""
    rows = 0.3 * normal(ROWS, len(COLUMNS), seed=seed)
    rows[:, 3:][np.abs(rows[:, 3:]) < 0.1] = 0.0
    rows[:, AT["draw"]] = [2, 0, 1, 3]
    rows[:, AT["slot"]] = [1, -1, 0, -1]
    rows[2, AT["c"] : AT["c"] + R] = 0.0
    return rows


def whole_loop(*, own: bool = True, bank: bool = False) -> Sketch:
    """Gram, scalars, quantile, the step and a record, over two registers, two branches and a strided third answer."""
    s = Sketch()
    loop = s.table("loop", COLUMNS, table())
    registers = {"r0": s.input("x", B, *SHAPE), "r1": s.input("memory", B, *SHAPE)}
    answers, wide = s.input("answers", Batch(2), *SHAPE), s.input("wide", B, 2, *SHAPE)
    mask = s.input("mask", 7)
    size = int(np.prod(SHAPE))
    p1 = Value(wide.storage, (B, *SHAPE), (2 * size, size // 2, 7, 1), size)
    x0 = Value(mask.storage, (B, *SHAPE), (0, 0, 0, 1))
    banked = s.input("bank", B, ROWS, *SHAPE) if bank else None
    operands = {**registers, "p0": answers, "p1": p1}
    xin, g, q = s.new((Batch(2), *SHAPE)), s.new((B, len(STATS))), s.new((B, 1))
    machine = sum(SIZES[name] for name in ("a", "b", "c", "e", "h"))
    coef, kept = s.new((B, machine + 1)), s.new((B, 2, *SHAPE))
    s.begin("before")
    s.call("fill", {}, {"x": kept}, {"value": 0.0})
    s.begin("loop", loop)
    s.call("gram", operands, {"g": g}, {"table": loop, "f": AT["f"], "forms": 3, "stats": STATS})
    # Each coefficient of the table times 1 / (1 + |statistic|), and the sum of two statistics behind them.
    program: list[list[Any]] = [["in", 0, 0], ["in", 0, 1], ["abs", 1], ["const", 1.0], ["add", 2, 3], ["div", 3, 4]]
    results = []
    for column in range(AT["a"], AT["a"] + machine):
        program += [["row", column], ["mul", 5, len(program)]]
        results.append(len(program) - 1)
    program += [["in", 0, 3], ["next", AT["c_in"]], ["mul", len(program), len(program) + 1]]
    results.append(len(program) - 1)
    s.call("scalars", {"x0": g}, {"y": coef}, {"table": loop, "program": program, "results": results})
    offset = AT["a"] if own else 0
    places = {name: AT[name] - offset for name in ("a", "b", "c", "e", "h")}
    chosen = {"coef": coef} if own else {}
    s.call("quantile", {**operands, **chosen}, {"y": q}, {"table": loop, "e": places["e"], "q": 0.9})
    x1 = Value(q.storage, (B, *SHAPE), (1, 0, 0, 0))
    attrs = {**places, "table": loop, "estimates": E, "program": ELEMENTWISE, "results": [8, 15], "draws": True}
    attrs |= {"cin": AT["c_in"], "site": 9, "draw": AT["draw"] if bank else -1}
    ins = {**operands, **chosen, "x0": x0, "x1": x1, "bank": banked}
    s.call("sampler_step", ins, {**registers, "xin0": xin}, attrs)
    s.call("record", {"x": registers["r0"]}, {"y": kept}, {"table": loop, "column": AT["slot"]})
    for name, value in {**registers, "xin": xin, "g": g, "q": q, "coef": coef, "kept": kept}.items():
        s.output(name, value)
    return s


def values(*, bank: bool) -> dict[str, np.ndarray]:
    """One value for each input."""
    given = {"x": normal(3, *SHAPE), "memory": normal(3, *SHAPE, seed=1), "answers": normal(6, *SHAPE, seed=2)}
    given |= {"wide": normal(3, 2, *SHAPE, seed=3), "mask": normal(7, seed=4)}
    return {**given, **({"bank": normal(3, ROWS, *SHAPE, seed=5)} if bank else {})}


@pytest.mark.parametrize("isa", ["scalar", None])
@pytest.mark.parametrize("bank", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_a_loop_of_every_op_is_that_of_the_reference(own, bank, isa):
    from scoregraph.backends.reference import Reference

    plan, constants = whole_loop(own=own, bank=bank).data()
    given = values(bank=bank)
    exact = Reference("float64").compile(plan, constants).run(given, SEEDS)
    made = Cpu(1, isa).compile(plan, constants).run(given, SEEDS)
    twice = Cpu(2, None).compile(plan, constants).run(given, SEEDS)
    for name, want in exact.items():
        error = np.abs(made[name] - want).max() / max(1.0, np.abs(want).max())
        assert error <= 3e-6, name
        assert np.array_equal(made[name], twice[name]), f"{name} depends on threads or on the instruction set"


def test_a_sample_alone_has_its_bits_of_the_batch():
    plan, constants = whole_loop().data()
    given = values(bank=False)
    program = Cpu(2).compile(plan, constants)
    batch = program.run(given, SEEDS)
    alone = {name: array if name == "mask" else array[2 * len(array) // 3 :].copy() for name, array in given.items()}
    for name, one in program.run(alone, SEEDS[2:]).items():
        assert np.array_equal(batch[name][2 * len(batch[name]) // 3 :], one), name


def test_numbers_of_each_sample():
    """A time, a factor of the network's input and a point of a curve, all from the sample's own row."""
    s = Sketch()
    time, coef, x = s.input("time", B), s.input("coef", B, 2), s.input("x", B, 5)
    xs, ys = s.constant(np.array([-1.0, 0.0, 2.0]), "xs"), s.constant(np.array([3.0, 1.0, 2.0]), "ys")
    t, xin, y = s.new((Batch(2),)), s.new((Batch(2), 5)), s.new((B,))
    s.begin("only")
    s.call("step_time", {"time": time}, {"t": t})
    s.call("step_input", {"x": x, "coef": coef}, {"xin": xin}, {"column": 1})
    s.call("interpolate", {"x": time, "xs": xs, "ys": ys}, {"y": y})
    for name, value in {"t": t, "xin": xin, "y": y}.items():
        s.output(name, value)
    given = {"time": np.array([-2.0, -0.5, 1.0], np.float32), "coef": normal(3, 2), "x": normal(3, 5)}
    made = Cpu(1).compile(*s.data()).run(given, SEEDS)
    assert made["t"].tolist() == [-2.0, -2.0, -0.5, -0.5, 1.0, 1.0]
    assert np.array_equal(made["xin"], np.repeat(given["coef"][:, 1:] * given["x"], 2, axis=0))
    assert made["y"].tolist() == [3.0, 2.0, 1.5]


def test_noise_from_a_bank():
    s = Sketch()
    bank, x = s.input("bank", B, 2, 5), s.new((B, 5))
    s.begin("only")
    s.call("noise", {"bank": bank}, {"x": x}, {"site": 0, "micro": 0, "scale": 2.0, "draw": 1})
    s.output("x", x)
    given = {"bank": normal(3, 2, 5)}
    assert np.array_equal(Cpu(1).compile(*s.data()).run(given, SEEDS)["x"], 2 * given["bank"][:, 1])


def edited(op: str, **attrs: Any) -> tuple[Plan, bytes]:
    """The whole loop with other attributes of one call; None removes one."""
    plan, constants = whole_loop(bank=True).data()
    body = copy.deepcopy(plan.model_dump())
    for call in body["segments"][1]["calls"]:
        if call["op"] == op:
            merged = {**call["attrs"], **attrs}
            call["attrs"] = {name: value for name, value in merged.items() if value is not None}
    return Plan.model_validate(body), constants


@pytest.mark.parametrize(
    ("op", "attrs", "message"),
    [
        ("gram", {"f": len(COLUMNS) - 1}, "attribute f"),
        ("gram", {"forms": 2}, "stats"),
        ("gram", {"forms": 17}, "forms"),
        ("gram", {"stats": [[0, 0]]}, "g has the shape"),
        ("gram", {"stats": []}, "stats"),
        ("gram", {"stats": [[0, -1]] * 4}, "stats"),
        ("gram", {"answers": [0, 1]}, "answers"),
        ("gram", {"answers": [0, 1, 3]}, "answers"),
        ("gram", {"width": 2}, "answers"),
        ("quantile", {"q": 1.5}, "attribute q"),
        ("quantile", {"q": "NaN"}, "attribute q"),
        ("quantile", {"e": 10**6}, "attribute e"),
        ("scalars", {"program": [["in", 0, 4]], "results": [0]}, "instruction 0"),
        ("scalars", {"program": [["in", 1, 0]], "results": [0]}, "instruction 0"),
        ("scalars", {"program": [["row", len(COLUMNS)]], "results": [0]}, "instruction 0"),
        ("scalars", {"program": [["const", 1.0], ["exp", 1]], "results": [0]}, "instruction 1"),
        ("scalars", {"program": [["const", 1.0], ["where", 0, 0, 2]], "results": [0]}, "instruction 1"),
        ("scalars", {"program": [["const", 1.0]], "results": [0]}, "y has the shape"),
        ("scalars", {"program": [["const", 1.0]], "results": [1]}, "results"),
        ("scalars", {"table": None}, "instruction"),
        ("scalars", {"row": ROWS}, "row"),
        ("sampler_step", {"a": 10**6}, "attribute a"),
        ("sampler_step", {"h": 24}, "attribute h"),
        ("sampler_step", {"e": 18}, "attribute e"),
        ("sampler_step", {"estimates": 99}, "estimates"),
        ("sampler_step", {"draws": False}, "reads z"),
        ("sampler_step", {"draws": "yes"}, "draws"),
        ("sampler_step", {"program": None}, "program"),
        ("sampler_step", {"results": [8, 16]}, "value 16"),
        ("sampler_step", {"program": [["row", len(COLUMNS)]], "results": [5, 5]}, "program"),
        ("sampler_step", {"program": [["coef", 10**4]], "results": [5, 5]}, "program"),
        ("sampler_step", {"program": [["exp", 5]], "results": [5, 5]}, "instruction 0"),
        ("sampler_step", {"draw": -1}, "draw"),
        ("sampler_step", {"draw": len(COLUMNS)}, "draw"),
        ("sampler_step", {"cin": -1}, "cin"),
        ("sampler_step", {"cin": len(COLUMNS)}, "cin"),
        ("sampler_step", {"width": 2, "answers": [0, 1, 2]}, "answers"),
        ("sampler_step", {"colour": 3}, "colour"),
        ("record", {"column": len(COLUMNS)}, "column"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(op, attrs, message):
    plan, constants = edited(op, **attrs)
    with pytest.raises(PlanCorrupt, match=message):
        Cpu(1).compile(plan, constants)


@pytest.mark.parametrize(("column", "value"), [("slot", 2.0), ("slot", 0.5), ("draw", 4.0), ("draw", -1.0)])
def test_a_table_that_points_outside_stops_the_run(column, value):
    """Tables are looked at row by row, as the loop comes to them."""
    s = whole_loop(bank=True)
    rows = s.arrays[0].copy()
    rows[1, AT[column]] = value
    s.arrays[0] = rows
    with pytest.raises(PlanCorrupt, match=column):
        Cpu(1).compile(*s.data()).run(values(bank=True), SEEDS)
