"""A plan whose loops are not all alike: rows with two, one and no network branch, a noise bank, and rounds that each
sample ends for itself. Built from calls by hand; its trajectory in numpy is worked out beside it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from small_plan import SmallPlan

from scoregraph.graph import noise
from scoregraph.passes.plan.pack_weights import PackWeights
from scoregraph.passes.plan.plan_memory import PlanMemory
from scoregraph.plan import files
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter, Value
from scoregraph.plan.schema import InputSpec, OutputSpec, Plan, Repeat

B, GUIDED = Batch(), Batch(2)
WIDTH, SITE, LIMIT = 12, 7, 8
KINDS = [1, 1, 0, 2, 1, 0]
"""Rows with two branches (1), with the second branch only (0), and with none (2)."""
DRAWS = [1, 0, 0, 2, 3, 0]
"""The bank's entry for each row that draws; entry 0 is where the loop starts."""
SLOTS = [-1, 0, -1, 1, -1, 2]
COLUMNS = ["t", "c_in", "a", "b0", "b1", "c", "variant", "draw", "slot", "f_x", "f_0", "f_1"]


def table() -> np.ndarray:
    """[rows, columns]."""
    made = np.zeros((len(KINDS), len(COLUMNS)), np.float32)
    rows = np.arange(len(KINDS))
    made[:, 0] = 1 - rows / len(KINDS)
    made[:, 1] = 1 / np.sqrt(1 + made[:, 0] ** 2)
    made[:, 2] = 0.9
    made[:, 3] = np.where(np.equal(KINDS, 1), -0.3, 0.0)
    made[:, 4] = np.where(np.equal(KINDS, 2), 0.0, 0.1 + 0.01 * rows)
    made[:, 5] = np.where(np.greater(DRAWS, 0), 0.2, 0.0)
    made[:, 6:9] = np.stack([KINDS, DRAWS, SLOTS], axis=1)
    made[:, 9:] = (1.0, 0.5, -0.25)
    return made


def weights() -> np.ndarray:
    return (np.random.default_rng(8).standard_normal((WIDTH, WIDTH)) / 3).astype(np.float32)


def plan(*, strict: bool = True) -> tuple[Plan, bytes]:
    """Inputs ``noise`` [B, 4, W], ``level`` [B, 1], ``rounds`` [B, 1]; outputs ``x`` [B, W], ``seen`` [B, 3, W], the
    states of rows 1, 3 and 5, and ``last`` [B, 1], the sum of a form at the last row with two branches."""
    d = Drafter("looping", "cpu")
    d.begin("start")
    given = {
        name: d.new(shape, name=name)
        for name, shape in {"noise": (B, 4, WIDTH), "level": (B, 1), "rounds": (B, 1)}.items()
    }
    d.inputs += [InputSpec(name=name, buffer=int(value.storage[1:])) for name, value in given.items()]
    d.bank = int(given["noise"].storage[1:])
    w = d.constant(weights(), "w")
    x, seen, left = d.new((B, WIDTH), name="x"), d.new((B, 3, WIDTH), name="seen"), d.new((B, 1), name="left")
    inputs = {0: d.new((B, WIDTH), name="xin0"), 1: d.new((GUIDED, WIDTH), name="xin1")}
    steps = d.table("steps", COLUMNS, table())
    start = {"site": SITE - 1, "micro": 0, "scale": 2.0, "draw": 0}
    d.call("noise", {"bank": given["noise"]}, {"x": x}, start, "start")
    d.call("fill", {}, {"x": seen}, {"value": 0.0}, "seen")
    d.call("copy", {"x": given["rounds"]}, {"y": left}, site="rounds")
    d.call("step_input", {"x": x}, {"xin": inputs[1]}, {"table": steps, "column": 1, "row": 0}, "start")
    last = _steps(d, steps, x, inputs, w, given, seen)
    _rounds(d, x, left, strict=strict)
    d.begin("end")
    out = d.new((B, WIDTH), name="out")
    d.call("copy", {"x": x}, {"y": out}, site="end")
    for name, value in {"x": out, "seen": seen, "last": last}.items():
        d.outputs.append(OutputSpec(name=name, buffer=int(value.storage[1:])))
    draft = PackWeights({"linear.w": "n16"}).run(d.build()).module
    draft = PlanMemory().run(draft).module
    return files.lay_out(draft.plan, draft.arrays)


def _steps(
    d: Drafter, steps: int, x: Value, inputs: dict[int, Value], w: Value, given: dict[str, Value], seen: Value
) -> Value:
    """The loop over the table; returns ``last``."""
    d.begin("steps", steps, variant=6)
    step: dict[str, Any] = {
        "table": steps,
        "a": 2,
        "b": 3,
        "c": 5,
        "width": 2,
        "cin": 1,
        "draw": 7,
        "site": SITE,
    }
    state = {"r0": x, "bank": given["noise"]}
    outs = {"r0": x, "xin0": inputs[0], "xin1": inputs[1]}
    with d.only_in(0):
        d.evaluates("net", branches=1)
        single = d.new((B, WIDTH), name="single")
        d.call("linear", {"x": inputs[0], "w": w}, {"y": single}, {"act": "tanh"}, "net")
        d.call("sampler_step", {**state, "p0": single}, outs, {**step, "answers": [1]}, "step0")
    with d.only_in(2):
        d.call("sampler_step", state, outs, {**step, "answers": []}, "step2")
    with d.only_in(1):
        d.evaluates("net", branches=2)
        shifted, both = d.new((GUIDED, WIDTH), name="shifted"), d.new((GUIDED, WIDTH), name="both")
        moved, total, last = d.new((B, WIDTH)), d.new((B, 1), name="total"), d.new((B, 1), name="last")
        d.call("copy", {"x": inputs[1]}, {"y": shifted}, site="branches")
        conditional = Value(shifted.storage, (B, WIDTH), (2 * WIDTH, 1))
        level = Value(given["level"].storage, (B, WIDTH), (1, 0))
        d.call("pointwise", {"x0": conditional, "x1": level}, {"y": moved}, {"program": [["add", 0, 1]]}, "level")
        d.call("copy", {"x": moved}, {"y": conditional}, site="level")
        d.call("linear", {"x": shifted, "w": w}, {"y": both}, {"act": "tanh"}, "net")
        form = {"table": steps, "f": 9, "forms": 1, "stats": [[0]]}
        d.call("gram", {"r0": x, "p0": both}, {"g": total}, form, "total")
        doubled = {"table": steps, "program": [["in", 0, 0], ["row", 0], ["mul", 0, 1]], "results": [2]}
        d.call("scalars", {"x0": total}, {"y": last}, doubled, "last")
        d.call("sampler_step", {**state, "p0": both}, outs, {**step, "answers": [0, 1]}, "step1")
    d.call("record", {"x": x}, {"y": seen}, {"table": steps, "column": 8}, "seen")
    return last


def _rounds(d: Drafter, x: Value, left: Value, *, strict: bool) -> None:
    """While a sample has rounds left: x := x/2 + z/10."""
    one = d.table("round", ["none"], np.zeros((1, 1), np.float32))
    d.begin("rounds", one, repeat=Repeat(active=int(left.storage[1:]), limit=LIMIT, strict=strict))
    d.evaluates("corrector")
    coef, fewer = d.new((B, 2), name="coef"), d.new((B, 1), name="fewer")
    coefficients = [["in", 0, 0], ["const", 0.5], ["const", 1.0], ["where", 0, 1, 2], ["const", 0.1], ["const", 0.0]]
    coefficients += [["where", 0, 4, 5]]
    d.call("scalars", {"x0": left}, {"y": coef}, {"program": coefficients, "results": [3, 6]}, "coef")
    own = {"table": one, "a": 0, "b": 0, "c": 1, "site": SITE + 1}
    d.call("sampler_step", {"r0": x, "coef": coef}, {"r0": x}, own, "correct")
    less = [["const", -1.0], ["add", 0, 1], ["const", 0.0], ["max", 2, 3]]
    d.call("pointwise", {"x0": left}, {"y": fewer}, {"program": less}, "left")
    d.call("copy", {"x": fewer}, {"y": left}, site="left")


def looping_plan() -> SmallPlan:
    """The plan as JSON data with its constants."""
    made, constants = plan()
    return SmallPlan(json.loads(made.model_dump_json(exclude_defaults=True)) | {"version": 3}, constants)


def some_inputs(batch: int) -> dict[str, np.ndarray]:
    """Rounds 2, 5, 0, 3, 3, …"""
    rng = np.random.default_rng(4)
    rounds = np.array([2, 5, 0, *[3] * batch], np.float32)[:batch, None]
    return {
        "noise": rng.standard_normal((batch, 4, WIDTH)).astype(np.float32),
        "level": rng.standard_normal((batch, 1)).astype(np.float32),
        "rounds": rounds,
    }


def expected(inputs: dict[str, np.ndarray], seeds: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs in float64."""
    w = weights().astype(np.float64)
    bank, level = inputs["noise"].astype(np.float64), inputs["level"].astype(np.float64)
    x = 2 * bank[:, 0]
    seen, last = np.zeros((len(x), 3, WIDTH)), np.zeros((len(x), 1))
    for row, kind, draw, slot in zip(table().astype(np.float64), KINDS, DRAWS, SLOTS, strict=True):
        t, c_in, a, b0, b1, c = row[:6]
        m0, m1 = np.tanh((c_in * x + level) @ w.T), np.tanh(c_in * x @ w.T)
        if kind == 1:
            last = t * (row[9] * x + row[10] * m0 + row[11] * m1).sum(axis=1, keepdims=True)
        x = a * x + b0 * m0 + b1 * m1 + c * bank[:, draw]
        if slot >= 0:
            seen[:, slot] = x
    for turn in range(LIMIT):
        z = noise.normals(seeds, SITE + 1, turn, WIDTH).astype(np.float64)
        x = np.where(inputs["rounds"] > turn, 0.5 * x + np.float64(np.float32(0.1)) * z, x)
    return {"x": x, "seen": seen, "last": last}
