"""Part a product from its residual where only the residual changes: the product may then be made once, or for all rows.

loop: y = label w^T + time      ──▶      loop: p = label w^T     (hoist-invariants takes it out)
                                               y = p + time
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from scoregraph.passes.base import Fuel, PassResult
from scoregraph.passes.plan.dependence import Dependence, Depends, dependence
from scoregraph.plan.draft import Draft, Drafter
from scoregraph.plan.schema import Call


@dataclass(frozen=True)
class SplitResiduals:
    """``linear`` and ``conv2d`` of a loop that read no state, and whose residual depends on more than they do."""

    name: ClassVar[str] = "split-residuals"

    def run(self, module: Draft, fuel: Fuel | None = None) -> PassResult[Draft]:
        """Rewrites: residuals taken out. Loops that go round after round are left alone."""
        fuel = fuel or Fuel()
        drafter, before = Drafter.reopen(module), len(module.plan.buffers)
        segments = list(module.plan.segments)
        for turn, segment in enumerate(segments):
            if segment.table is not None and segment.repeat is None:
                depends = dependence(module.plan, turn)
                calls = [new for call in segment.calls for new in _split(drafter, depends, call, fuel)]
                segments[turn] = segment.model_copy(update={"calls": tuple(calls)})
        split = len(drafter.buffers) - before
        return PassResult(drafter.closed(module.plan, segments) if split else module, rewrites=split)


def _split(drafter: Drafter, depends: Dependence, call: Call, fuel: Fuel) -> Iterator[Call]:
    residual = call.ins.get("residual")
    if call.op not in ("linear", "conv2d") or residual is None:
        yield call
        return
    ins = {role: ref for role, ref in call.ins.items() if role != "residual"}
    steady, more = depends.of(ins.values()), depends.of([residual])
    if Depends.STATE in steady or not more & ~steady or not fuel.spend():
        yield call
        return
    product = drafter.ref(drafter.new(drafter.value(call.outs["y"]).shape, name=call.site))
    yield call.model_copy(update={"ins": ins, "outs": {"y": product}})
    yield call.model_copy(
        update={
            "op": "pointwise",
            "ins": {"x0": product, "x1": residual},
            "outs": {"y": call.outs["y"]},
            "attrs": {"program": [["add", 1, 0]]},
        }
    )
