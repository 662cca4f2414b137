"""A folded sampling graph becomes a draft plan: conditions once, then each loop over its table, then the heads.

input, condition ─▶ calls of the encoder, once; the branches of guided scores interleaved per sample
noise            ─▶ noise at the loop's first noise level, into register 0
loop             ─▶ per row of the table: step_time, the networks' calls, sampler_step (which prepares the next x_in)
decode           ─▶ calls of the head
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scoregraph.errors import UncoveredNode
from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.graph import Graph
from scoregraph.passes.lower import shape as shapes
from scoregraph.passes.lower.program import lower_program
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import InputSpec, OutputSpec

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from scoregraph.graph.table import StepTable

NUMPY = {"i64": np.int64, "u8": np.uint8}

Programs = Callable[[v.NetRef, str], "GraphModule | None"]
"""The tensor program of a part of a network (``score``, ``encoder``, ``head.<name>``); None: the identity."""


def lower_sampling(graph: Graph, programs: Programs, device: str) -> Draft:
    """The draft plan of ``graph``.

    Args:
        graph: verified, tables and guidance folded.
        programs: gives the fused tensor program of each part of each network.
        device: the plan's device key.

    Raises:
        UncoveredNode: a node that no backend compiles yet.
        UncoveredOperator: see ``lower_program``.
    """
    return _Lowering(graph, programs, device).run()


@dataclass
class _Lowering:
    graph: Graph
    programs: Programs
    device: str
    drafter: Drafter = field(init=False)
    known: dict[n.Node, Value] = field(default_factory=dict[n.Node, Value])
    encoded: dict[n.Node, tuple[Value, ...]] = field(default_factory=dict[n.Node, tuple[Value, ...]])

    def __post_init__(self) -> None:
        self.drafter = Drafter(self.graph.name, self.device)

    def run(self) -> Draft:
        self.drafter.begin("prologue")
        for name, node in self.graph.outputs:
            value = self.drafter.dense(self.value(node), name)
            self.drafter.outputs.append(OutputSpec(name=name, buffer=int(self.drafter.ref(value)[1:])))
        return self.drafter.build()

    def refuse(self, node: n.Node, reason: str, cure: str) -> UncoveredNode:
        return UncoveredNode(node=node.op, device=self.device, reason=reason, help=cure, where=self.graph.place(node))

    # --- values that stand outside of loops ----------------------------------------------------

    def value(self, node: n.Node) -> Value:
        """The buffer that holds ``node``, computed on first use."""
        if node not in self.known:
            self.known[node] = self._value(node)
        return self.known[node]

    def _value(self, node: n.Node) -> Value:
        match node:
            case n.Input():
                return self._input(node)
            case n.Get():
                return self._loop(node)
            case n.HeadDecode(rows=None):
                x = self.value(node.x)
                return self._program(node.net, f"head.{node.head}", [x])[0]
            case n.Emit():
                return self.value(node.value)
            case n.Noise():
                return self._noise(node.latent, node.site, 1.0)
            case n.Constant():
                return self._constant(node)
            case _:
                raise self.refuse(node, "no backend computes it yet", "build the graph without it for now")

    def _input(self, node: n.Input) -> Value:
        match node.of:
            case v.Array():
                shape, dtype = node.of.shape, node.of.dtype
            case v.Latent():
                shape, dtype = node.of.shape, "f32"
            case v.Scalar():
                shape, dtype = (), "f32"
            case _:
                raise self.refuse(node, f"an input of type {node.of}", "pass arrays, latents or scalars")
        value = self.drafter.new((Batch(), *shape), dtype, node.name)
        low, high = self._bounds(node)
        self.drafter.inputs.append(InputSpec(name=node.name, buffer=int(value.storage[1:]), low=low, high=high))
        return value

    def _bounds(self, node: n.Input) -> tuple[float | None, float | None]:
        """The narrowest bounds among the conditions that read this input."""
        lows: list[float] = []
        highs: list[float] = []
        for user in self.graph.nodes:
            if isinstance(user, n.Condition):
                for cond, given in zip(user.net.conds, user.values, strict=False):
                    if given is node:
                        lows += [] if cond.low is None else [cond.low]
                        highs += [] if cond.high is None else [cond.high]
        return max(lows, default=None), min(highs, default=None)

    def _constant(self, node: n.Constant) -> Value:
        assert isinstance(node.of, v.Array)
        return self._filled((Batch(), *node.of.shape), node.value, node.of.dtype, "constant")

    def _filled(self, shape: Sequence[int | Batch], value: float, dtype: str, name: str) -> Value:
        if dtype != "f32":  # the op fill writes f32; one stored number, seen at every index, is any type
            one = self.drafter.as_buffer(self.drafter.constant(np.full((1,), value, NUMPY[dtype]), name))
            return Value(one.storage, tuple(shape), (0,) * len(shape), 0, dtype)
        made = self.drafter.new(shape, dtype, name)
        self.drafter.call("fill", {}, {"x": made}, {"value": float(value)}, name)
        return made

    def _noise(self, latent: v.Latent, site: int, scale: float) -> Value:
        x = self.drafter.new((Batch(), *latent.shape), name=f"noise{site}")
        self.drafter.call("noise", {}, {"x": x}, {"site": site, "micro": 0, "scale": scale}, f"noise{site}")
        return x

    def _program(self, net: v.NetRef, part: str, inputs: Sequence[Value]) -> list[Value]:
        module = self.programs(net, part)
        if module is None:
            return list(inputs)
        return lower_program(self.drafter, module, inputs, f"{net.name}.{part}")

    def _condition(self, node: n.Node) -> tuple[Value, ...]:
        """The encoded tensors of one branch, [B, …] each."""
        if node not in self.encoded:
            if not isinstance(node, n.Condition):
                raise self.refuse(node, "it stands where a condition is expected", "give g.score a g.condition")
            if node.values:
                raw = [self.value(value) for value in node.values]
            else:
                raw = [
                    self._filled((Batch(), *cond.shape), cond.null or 0.0, cond.dtype, f"null.{cond.name}")
                    for cond in node.net.conds
                ]
            self.encoded[node] = tuple(self._program(node.net, "encoder", raw))
        return self.encoded[node]

    # --- loops -----------------------------------------------------------------------------------

    def _loop(self, node: n.Get) -> Value:
        loop = node.loop
        if not isinstance(loop, n.Loop):
            raise self.refuse(loop, "its number of steps depends on data", "use a loop over a schedule")
        if len(loop.init) != 1 or loop.emits:
            what = "emits inside the loop" if loop.emits else f"{len(loop.init)} carried values"
            raise self.refuse(loop, what, "carry one state and emit after the loop")
        step = loop.results[0]
        if not isinstance(step, n.SamplerStep) or step.table is None or not isinstance(step.state, n.LoopVar):
            raise self.refuse(
                step, "the loop does not end in one continuous sampler step", "use step.advance(sampler, …)"
            )
        scores: list[n.Score] = []
        for pred in step.preds:
            if not isinstance(pred, n.Score) or not isinstance(pred.x, n.LoopVar):
                raise self.refuse(
                    pred, "it cannot be folded into the sampler step", "combine plain scores of the state"
                )
            scores.append(pred)

        table = step.table
        registers, latent = self._registers(loop.init[0], table)
        conditions = [self._branches(score) for score in scores]
        number = self.drafter.table(loop.name, table.columns, table.float32())
        inputs = [
            self.drafter.new((Batch(len(score.conds)), *latent), name=f"{loop.name}.x_in{i}")
            for i, score in enumerate(scores)
        ]
        c_in = table.columns.index("c_in")
        attrs = {"table": number, "column": c_in}
        self.drafter.call("step_input", {"x": registers[0]}, {"xin": inputs[0]}, {**attrs, "row": 0}, loop.name)

        self.drafter.begin(loop.name, number)
        answers: list[Value] = []
        for i, score in enumerate(scores):
            if i:
                self.drafter.call("step_input", {"x": registers[0]}, {"xin": inputs[i]}, attrs, loop.name)
            t = self.drafter.new((Batch(len(score.conds)),), name=f"{loop.name}.t{i}")
            self.drafter.call("step_time", {}, {"t": t}, {"table": number, "column": 0}, loop.name)
            answer = self._program(score.net, "score", [inputs[i], t, *conditions[i]])[0]
            answers.append(self.drafter.dense(answer, score.net.name))
        self._sampler_step(step, table, number, registers, answers, inputs[0])
        self.drafter.begin(f"after-{loop.name}")
        return registers[0]

    def _registers(self, init: n.Node, table: StepTable) -> tuple[list[Value], tuple[int, ...]]:
        """The state and the sampler's memory before the first step."""
        match init.type:
            case v.Noise() if isinstance(init, n.Noise):
                x = self._noise(init.latent, init.site, table.init_scale)
                latent = init.latent.shape
            case v.Latent():
                given = self.value(init)
                x = self.drafter.new(given.shape, name="x")
                self.drafter.call("copy", {"x": given}, {"y": x}, site="x")
                latent = init.type.shape
            case _:
                raise self.refuse(init, "a loop cannot start from it", "start from g.noise(net.latent) or a latent")
        memory = [self._filled(x.shape, 0.0, "f32", name) for name in table.registers[1:]]
        return [x, *memory], latent

    def _branches(self, score: n.Score) -> list[Value]:
        """Each encoded condition for all branches: [KB, …], branch j of sample b in row b*K + j."""
        per_branch = [self._condition(cond) for cond in score.conds]
        count = len(per_branch)
        if count == 1:
            return list(per_branch[0])
        stacked: list[Value] = []
        for parts in zip(*per_branch, strict=True):
            shape = parts[0].shape[1:]
            whole = self.drafter.new((Batch(count), *shape), parts[0].dtype, "branches")
            split = shapes.view(self.drafter, whole, (Batch(), count, *shape), "branches")
            for j, part in enumerate(parts):
                target = shapes.select(split, 1, j)
                self.drafter.call("copy", {"x": self.drafter.as_buffer(part)}, {"y": target}, site="branches")
            stacked.append(whole)
        return stacked

    def _sampler_step(
        self,
        step: n.SamplerStep,
        table: StepTable,
        number: int,
        registers: Sequence[Value],
        answers: Sequence[Value],
        x_in: Value,
    ) -> None:
        state: Mapping[str, Value] = {f"r{i}": r for i, r in enumerate(registers)}
        preds = {f"p{i}": m for i, m in enumerate(answers)}
        column = table.columns.index
        attrs = {
            "table": number,
            "a": column("a0_0"),
            "b": column("b0_0"),
            "c": column("c0"),
            "cin": column("c_in"),
            "site": step.site,
        }
        self.drafter.call("sampler_step", {**state, **preds}, {**state, "xin": x_in}, attrs, str(step.rule))
