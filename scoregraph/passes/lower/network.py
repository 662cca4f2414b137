"""A network by itself as a plan: its conditions, state and time are inputs, its answer the output."""

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
    """The draft plan of one evaluation: inputs ``x`` (already times c_in), ``t`` and the conditions; output ``m``."""
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
    encoder, score = programs(ref, "encoder"), programs(ref, "score")
    if encoder is not None:
        conds = lower_program(drafter, encoder, conds, f"{ref.name}.encoder")
    assert score is not None, "every network has a score"
    answer = drafter.dense(lower_program(drafter, score, [x, t, *conds], f"{ref.name}.score")[0])
    drafter.outputs.append(OutputSpec(name="m", buffer=int(drafter.ref(answer)[1:])))
    return drafter.build()
