"""Plans that break a rule: each is refused with the place and the rule, and nothing runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from looping_plan import looping_plan
from small_plan import small_plan

from scoregraph import _native

pytestmark = pytest.mark.native

Body = dict[str, Any]
SMALL, LOOPING = small_plan(), looping_plan()


def call(body: Body, segment: int, op: str) -> Body:
    return next(c for c in body["segments"][segment]["calls"] if c["op"] == op)


def named(body: Body, name: str) -> Body:
    return next(b for b in body["buffers"] if b["name"] == name)


def swap(target: Body, key: Any, value: Any) -> None:
    target[key] = value


CASES: list[tuple[str, str, str, Callable[[Body], None]]] = [
    ("newer version", "version", "format version 4", lambda p: swap(p, "version", 4)),
    ("not a plan", "json", "not a scoregraph plan", lambda p: swap(p, "format", "onnx")),
    ("unknown field", "json", "unknown field `colour`", lambda p: swap(p, "colour", 1)),
    ("negative size", "json", "invalid", lambda p: swap(p["buffers"][0], "shape", ["B", -1])),
    ("zero times B", "json", "is not a size", lambda p: swap(p["buffers"][0], "shape", ["0B", 1])),
    ("id twice", "plan", "used twice", lambda p: swap(p["buffers"][1], "id", 0)),
    ("two batch sizes", "plan", "more than one dimension grows", lambda p: swap(p["buffers"][0], "shape", ["B", "B"])),
    ("inner batch", "plan", "not its outermost", lambda p: swap(p["buffers"][0], "shape", [2, "B"])),
    ("wrong arena", "plan", "arena", lambda p: swap(p["buffers"][0]["slot"], "space", "fixed")),
    ("odd offset", "memory", "multiple of 64", lambda p: swap(p["buffers"][0]["slot"], "offset", 4)),
    ("huge offset", "memory", "too large", lambda p: swap(p["buffers"][0]["slot"], "offset", 2**63)),
    ("two owners", "memory", "needed at the same time", lambda p: swap(named(p, "hidden")["slot"], "offset", 64)),
    ("view too far", "memory", "reaches beyond", lambda p: swap(named(p, "half")["view"], "offset", 3)),
    ("view too wide", "memory", "reaches beyond", lambda p: swap(named(p, "half")["view"], "strides", [48, 2])),
    ("view of a view", "plan", "itself a view", lambda p: swap(named(p, "half")["view"], "base", 9 + 2)),
    ("view of nothing", "plan", "does not exist", lambda p: swap(named(p, "half")["view"], "base", 99)),
    ("strides short", "plan", "1 strides for 2", lambda p: swap(named(p, "half")["view"], "strides", [1])),
    ("constant too long", "constants", "of a file of", lambda p: swap(p["constants"][4], "offset", 1 << 20)),
    ("constant unaligned", "plan", "multiple of 64", lambda p: swap(p["constants"][1], "offset", 4)),
    ("constant bytes", "plan", "its shape and layout need", lambda p: swap(p["constants"][1], "nbytes", 8)),
    ("constant layout", "plan", "does not fit the shape", lambda p: swap(p["constants"][1], "layout", "n16")),
    ("table rows", "plan", "has 9 rows", lambda p: swap(p["tables"][0], "rows", 9)),
    ("no table", "plan", "no table 3", lambda p: swap(p["segments"][1], "table", 3)),
    ("unknown op", "plan", "no op named", lambda p: swap(call(p, 1, "linear"), "op", "linaer")),
    ("unknown role", "plan", "no role named z", lambda p: swap(call(p, 1, "linear")["ins"], "z", "b0")),
    ("missing role", "plan", "operand w is missing", lambda p: call(p, 1, "linear")["ins"].pop("w")),
    ("unknown attribute", "plan", "no attribute named eps", lambda p: swap(call(p, 1, "linear")["attrs"], "eps", 1)),
    ("activation", "plan", "activation", lambda p: swap(call(p, 1, "linear")["attrs"], "act", "swish")),
    ("wrong depth", "plan", "w takes", lambda p: swap(call(p, 1, "linear")["ins"], "w", "c2")),
    ("wrong bias", "plan", "bias has the shape", lambda p: swap(call(p, 1, "linear")["ins"], "bias", "c3")),
    ("write a constant", "memory", "cannot be written", lambda p: swap(call(p, 1, "linear")["outs"], "y", "c1")),
    ("read before write", "memory", "before anything is written", lambda p: p["segments"][0]["calls"].pop(1)),
    ("in place", "memory", "overlaps the operand p0", lambda p: swap(call(p, 1, "sampler_step")["outs"], "xin0", "b7")),
    ("column", "plan", "columns", lambda p: swap(call(p, 1, "step_time")["attrs"], "column", 12)),
    ("b columns", "plan", "columns", lambda p: swap(call(p, 1, "sampler_step")["attrs"], "b", 10)),
    ("fixed row", "plan", "row is 8", lambda p: swap(call(p, 0, "step_input")["attrs"], "row", 8)),
    ("row missing", "plan", "not in a loop", lambda p: call(p, 0, "step_input")["attrs"].pop("row")),
    ("program", "plan", "instruction", lambda p: swap(call(p, 1, "pointwise")["attrs"], "program", [["add", 0]])),
    ("program value", "plan", "", lambda p: swap(call(p, 1, "pointwise")["attrs"], "program", [["add", 0, 9]])),
    ("input is a view", "plan", "memory of its own", lambda p: swap(p["inputs"][0], "buffer", 12)),
    ("output unwritten", "memory", "nothing writes", lambda p: p["segments"].pop(2)),
    ("dtype", "plan", "is i64, not f32", lambda p: swap(named(p, "summed"), "dtype", "i64")),
]


def repeat(body: Body) -> Body:
    return body["segments"][2]["repeat"]


def only_in(body: Body, site: str, *variants: int) -> None:
    for found in body["segments"][1]["calls"]:
        if found["site"] == site:
            found["variants"] = list(variants)


def network(body: Body, number: int) -> Body:
    return body["segments"][1]["networks"][number]


LOOPING_CASES: list[tuple[str, str, str, Callable[[Body], None]]] = [
    ("no such column", "plan", "column 12 of a table of 12", lambda p: swap(p["segments"][1], "variant", 12)),
    ("a column of fractions", "plan", "row 1 is of variant 0.8", lambda p: swap(p["segments"][1], "variant", 0)),
    ("variants without a column", "plan", "no column says", lambda p: p["segments"][1].pop("variant")),
    ("a column without a table", "plan", "no table", lambda p: swap(p["segments"][0], "variant", 0)),
    ("variant 64", "plan", "variant 64", lambda p: only_in(p, "step2", 64)),
    ("variant -1", "json", "invalid value", lambda p: only_in(p, "step2", -1)),
    ("no branches", "plan", "has 0 branches", lambda p: swap(network(p, 0), "branches", 0)),
    ("a network of no variant", "plan", "variant 99", lambda p: swap(network(p, 0), "variants", [99])),
    ("an answer nobody wrote", "memory", "read before anything is written", lambda p: only_in(p, "net", 2)),
    ("read in an earlier row", "memory", "row 0", lambda p: only_in(p, "total", 0)),
    ("no rounds", "plan", "0 rounds", lambda p: swap(repeat(p), "limit", 0)),
    ("endless rounds", "plan", "rounds of 1 rows", lambda p: swap(repeat(p), "limit", 2**32)),
    ("negative rounds", "json", "invalid value", lambda p: swap(repeat(p), "limit", -1)),
    ("an unknown word", "json", "unknown field", lambda p: swap(repeat(p), "until", 3)),
    ("no condition", "json", "missing field `active`", lambda p: repeat(p).pop("active")),
    ("condition unknown", "plan", "there is no buffer b99", lambda p: swap(repeat(p), "active", 99)),
    ("condition unwritten", "memory", "looked at before", lambda p: swap(repeat(p), "active", named(p, "coef")["id"])),
    ("condition not f32", "plan", "is i64", lambda p: swap(named(p, "left"), "dtype", "i64")),
    ("condition shares memory", "memory", "needed at the same time", lambda p: share(p, "fewer", "left")),
    ("state shares memory", "memory", "needed at the same time", lambda p: share(p, "coef", "x")),
    ("recorded only in the loop", "memory", "read before", lambda p: p["segments"][0]["calls"].pop(1)),
    ("bank unknown", "plan", "is not an input", lambda p: swap(p, "bank", 99)),
    ("bank not given", "plan", "is not an input", lambda p: swap(p, "bank", named(p, "x")["id"])),
]


def share(body: Body, one: str, other: str) -> None:
    named(body, one)["slot"] = named(body, other)["slot"]


def refused(body: Body, constants: bytes) -> tuple[str, str, str]:
    with pytest.raises(_native.NativeError) as caught:
        _native.Program(json.dumps(body).encode(), constants, 1)
    code, place, text, *_ = caught.value.args
    return code, place, text


@pytest.mark.parametrize(("code", "says", "edit"), [c[1:] for c in LOOPING_CASES], ids=[c[0] for c in LOOPING_CASES])
def test_a_broken_rule_of_loops_is_named(code, says, edit):
    body = LOOPING.mutable()
    edit(body)
    found, place, text = refused(body, LOOPING.constants)
    assert (found, says in f"{place}: {text}") == (code, True), f"{found}: {place}: {text}"


@pytest.mark.parametrize(("code", "says", "edit"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_broken_rule_is_named(code, says, edit):
    body = SMALL.mutable()
    edit(body)
    with pytest.raises(_native.NativeError) as caught:
        _native.Program(json.dumps(body).encode(), SMALL.constants, 1)
    found, place, text, *_ = caught.value.args
    assert (found, says in text) == (code, True), f"{found}: {place}: {text}"


def test_a_fault_of_a_call_names_segment_call_and_site():
    body = SMALL.mutable()
    call(body, 1, "linear")["ins"]["w"] = "c2"
    with pytest.raises(_native.NativeError) as caught:
        _native.Program(json.dumps(body).encode(), SMALL.constants, 1)
    assert caught.value.args[1] == "segment loop, call 4 (linear at net.0)"


def test_truncated_text_and_constants_are_refused():
    text = SMALL.json()
    for end in (0, 1, len(text) // 2, len(text) - 1):
        with pytest.raises(_native.NativeError) as caught:
            _native.Program(text[:end], SMALL.constants, 1)
        assert caught.value.args[0] == "json"
    with pytest.raises(_native.NativeError) as caught:
        _native.Program(text, SMALL.constants[:-64], 1)
    assert caught.value.args[0] == "constants"


def test_outputs_that_share_memory_are_refused():
    import numpy as np

    program = _native.Program(SMALL.json(), SMALL.constants, 1)
    memory = np.zeros((1, 24), np.float32)
    outputs = {"x": memory, "half": memory.reshape(-1)[:12]}
    with pytest.raises(ValueError, match="shares memory"):
        program.run({"level": np.zeros((1, 1), np.float32)}, outputs, np.zeros(1, np.uint64))
