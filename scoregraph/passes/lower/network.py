"""A network by itself as a plan: its conditions, state and time are inputs, its answer the output.

Of an energy the outputs are its value and its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from scoregraph.graph.values import CondInput, FunctionRef, Latent, NetRef
from scoregraph.passes.lower.program import lower_program
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import InputSpec, OutputSpec

if TYPE_CHECKING:
    from torch.fx import GraphModule


def lower_network(ref: NetRef | FunctionRef, programs: Callable[[Any, str], GraphModule | None], device: str) -> Draft:
    """The draft plan of one evaluation: inputs ``x`` (already times c_in), ``t`` and the conditions; output ``m``.

    An energy has the outputs ``energy`` [B] and ``grad`` [B, …], its gradient in x; a function its own inputs and
    outputs.
    """
    drafter = Drafter(ref.name, device)
    drafter.begin("network")
    if isinstance(ref, FunctionRef):
        program = programs(ref, "function")
        assert program is not None, "every function has a program"
        given = [_given(drafter, value) for value in ref.inputs]
        _answer(drafter, ref.outputs, lower_program(drafter, program, given, ref.name))
        return drafter.build()
    assert isinstance(ref.latent, Latent), "a Network is continuous"
    x, t = (_given(drafter, CondInput(name, shape)) for name, shape in (("x", ref.latent.shape), ("t", ())))
    conds = [_given(drafter, cond) for cond in ref.conds]
    parts = {"energy": "energy", "grad": "energy.grad"} if ref.energy else {"m": "score"}
    encoder = None if ref.energy else programs(ref, "encoder")
    if encoder is not None:
        conds = lower_program(drafter, encoder, conds, f"{ref.name}.encoder")
    for output, part in parts.items():
        program = programs(ref, part)
        assert program is not None, "every network has a score, every energy a value"
        answers = lower_program(drafter, program, [x, t, *conds], f"{ref.name}.{part}")
        _answer(drafter, [output], answers[:1])
    return drafter.build()


def _given(drafter: Drafter, value: CondInput) -> Value:
    """A fresh input of the plan."""
    made = drafter.new((Batch(), *value.shape), value.dtype, value.name)
    drafter.inputs.append(InputSpec(name=value.name, buffer=int(made.storage[1:]), low=value.low, high=value.high))
    return made


def _answer(drafter: Drafter, names: Sequence[str], values: Sequence[Value]) -> None:
    """The outputs of the plan: dense buffers, and none of them an input."""
    inputs = {spec.buffer for spec in drafter.inputs}
    for name, value in zip(names, values, strict=True):
        answer = drafter.dense(drafter.as_buffer(value))
        if int(answer.storage[1:]) in inputs:
            made = drafter.new(answer.shape, answer.dtype, name)
            drafter.call("copy", {"x": answer}, {"y": made}, site=name)
            answer = made
        drafter.outputs.append(OutputSpec(name=name, buffer=int(drafter.ref(answer)[1:])))
