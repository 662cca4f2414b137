"""The listing of a plan: a person sees which rows make a call, how long a loop goes on, and what a row evaluates."""

from __future__ import annotations

import numpy as np

from scoregraph.plan import files
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter
from scoregraph.plan.schema import InputSpec, OutputSpec, Repeat
from scoregraph.plan.text import plan_text

LISTING = """\
plan listed for cpu
input  noise = b0 f32[B, 2, 3], in place of generated noise
input  level = b1 f32[B, 1] in 0..
output x = b2 f32[B, 3]
4 buffers, 0 views, 1 constants

start, once: 2 calls
  b2 : f32[B, 3] = noise(bank=b0, site=0, micro=0, scale=1.0, draw=0)  # noise0
  b3 : f32[B, 1] = copy(x=b1)  # level

guided, 2 times, variants by kind: 2 calls
  evaluates net, 2 branches  in variant 1
  evaluates net  in variants 0, 2
  b2 : f32[B, 3] = fill(value=0.0)  # every row
  b2 : f32[B, 3] = fill(value=1.0)  # some  in variants 0, 2

adaptive, up to 40 rounds of 2 while b3, then as it is: 1 calls
  b3 : f32[B, 1] = fill(value=0.0)  # stop
"""


def listed() -> Draft:
    d = Drafter("listed", "cpu")
    d.begin("start")
    bank, level = d.new((Batch(), 2, 3)), d.new((Batch(), 1))
    d.bank = int(bank.storage[1:])
    d.inputs += [InputSpec(name="noise", buffer=0), InputSpec(name="level", buffer=1, low=0.0)]
    x, active = d.new((Batch(), 3)), d.new((Batch(), 1))
    d.call("noise", {"bank": bank}, {"x": x}, {"site": 0, "micro": 0, "scale": 1.0, "draw": 0}, "noise0")
    d.call("copy", {"x": level}, {"y": active}, site="level")
    table = d.table("steps", ("kind",), np.array([[0], [1]], np.float32))
    d.begin("guided", table, variant=0)
    with d.only_in(1):
        d.evaluates("net", branches=2)
    with d.only_in(0, 2):
        d.evaluates("net")
    d.call("fill", {}, {"x": x}, {"value": 0.0}, "every row")
    with d.only_in(0, 2):
        d.call("fill", {}, {"x": x}, {"value": 1.0}, "some")
    d.begin("adaptive", table, repeat=Repeat(active=int(active.storage[1:]), limit=40, strict=False))
    d.call("fill", {}, {"x": active}, {"value": 0.0}, "stop")
    d.outputs.append(OutputSpec(name="x", buffer=int(x.storage[1:])))
    return d.build()


def test_rows_rounds_and_networks_are_listed():
    assert plan_text(listed().plan) == LISTING


def test_they_are_read_back_from_a_file():
    plan, _ = files.lay_out(listed().plan, listed().arrays)
    assert files.parse_plan(files.plan_json(plan), "plan.json") == plan
