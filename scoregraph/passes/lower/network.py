"""A network by itself as a plan: its conditions, state and time are inputs, its answer the output.

Of an energy the outputs are its value and its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from scoregraph.graph.values import Latent, NetRef
from scoregraph.passes.lower.program import lower_program
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import InputSpec, OutputSpec

if TYPE_CHECKING:
    from torch.fx import GraphModule


def lower_network(ref: NetRef, programs: Callable[[NetRef, str], GraphModule | None], device: str) -> Draft:
    """The draft plan of one evaluation: inputs ``x`` (already times c_in), ``t`` and the conditions; output ``m``.

    An energy has the outputs ``energy`` [B] and ``grad`` [B, …], its gradient in x.
    """
    drafter = Drafter(ref.name, device)
    drafter.begin("network")
    assert isinstance(ref.latent, Latent), "a Network is continuous"

    def given(
        name: str, shape: tuple[int, ...], dtype: str = "f32", low: float | None = None, high: float | None = None
    ) -> Value:
        value = drafter.new((Batch(), *shape), dtype, name)
        drafter.inputs.append(InputSpec(name=name, buffer=int(value.storage[1:]), low=low, high=high))
        return value

    x, t = given("x", ref.latent.shape), given("t", ())
    conds = [given(c.name, c.shape, c.dtype, low=c.low, high=c.high) for c in ref.conds]
    parts = {"energy": "energy", "grad": "energy.grad"} if ref.energy else {"m": "score"}
    encoder = None if ref.energy else programs(ref, "encoder")
    if encoder is not None:
        conds = lower_program(drafter, encoder, conds, f"{ref.name}.encoder")
    for output, part in parts.items():
        program = programs(ref, part)
        assert program is not None, "every network has a score, every energy a value"
        answer = drafter.dense(lower_program(drafter, program, [x, t, *conds], f"{ref.name}.{part}")[0])
        drafter.outputs.append(OutputSpec(name=output, buffer=int(drafter.ref(answer)[1:])))
    return drafter.build()
