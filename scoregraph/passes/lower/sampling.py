"""A folded sampling graph becomes a draft plan: conditions once, then each loop over its table, then the heads.

input, condition ─▶ calls of the encoder, once; the branches of guided scores interleaved per sample
noise, renoise   ─▶ the state at the loop's first noise level, into register 0
loop             ─▶ per row of its table, the networks' calls and one sampler step (``lower.loops``)
decode, energy   ─▶ calls of the head, of the energy
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from scoregraph.errors import UncoveredNode
from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.energies import Energy
from scoregraph.graph.graph import Graph
from scoregraph.passes.lower.adaptive import AdaptiveLowering
from scoregraph.passes.lower.loops import LoopLowering
from scoregraph.passes.lower.mover import drawing_rows, interleave
from scoregraph.passes.lower.program import lower_program, shares_prefix
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Draft, Drafter, Value
from scoregraph.plan.schema import InputSpec, OutputSpec

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from scoregraph.graph.table import StepTable

NUMPY = {"i64": np.int64, "u8": np.uint8}

Programs = Callable[[v.NetRef, str], "GraphModule | None"]
"""The tensor program of a part of a network (``score``, ``encoder``, ``head.<name>``); None: the identity."""


def lower_sampling(graph: Graph, programs: Programs, device: str, *, bank: bool = False) -> Draft:
    """The draft plan of ``graph``.

    Args:
        graph: verified, tables and guidance folded.
        programs: gives the fused tensor program of each part of each network.
        device: the plan's device key.
        bank: the caller gives all noise, as the input ``noise`` [B, draws, …], in the order in which it is drawn.

    Raises:
        UncoveredNode: a node that no backend compiles yet.
        UncoveredOperator: see ``lower_program``.
    """
    return _Lowering(graph, programs, device, bank).run()


@dataclass
class _Lowering:
    graph: Graph
    programs: Programs
    device: str
    bank: bool = False
    drafter: Drafter = field(init=False)
    draws: dict[int, int] = field(default_factory=dict[int, int])
    bank_input: Value | None = None
    known: dict[n.Node, Value] = field(default_factory=dict[n.Node, Value])
    encoded: dict[n.Node, tuple[Value, ...]] = field(default_factory=dict[n.Node, tuple[Value, ...]])
    loops: dict[n.Node, list[Value]] = field(default_factory=dict[n.Node, list[Value]])
    emitted: dict[str, Value] = field(default_factory=dict[str, Value])

    def __post_init__(self) -> None:
        self.drafter = Drafter(self.graph.name, self.device)

    def run(self) -> Draft:
        self.drafter.begin("prologue")
        if self.bank:
            self._open_bank()
        for node in self.graph.inputs:  # also those that nothing reads at the scales of this graph
            self.value(node)
        for name, node in self.graph.outputs:
            self._output(name, self.value(node))
        for name, value in self.emitted.items():
            self._output(name, value)
        return self.drafter.build()

    def _output(self, name: str, value: Value) -> None:
        value = self.drafter.dense(value, name)
        self.drafter.outputs.append(OutputSpec(name=name, buffer=int(self.drafter.ref(value)[1:])))

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
                return self._loop(node.loop)[node.index]
            case n.HeadDecode(rows=None):
                x = self.value(node.x)
                return self.program(node.net, f"head.{node.head}", [x])[0]
            case n.Emit():
                return self.value(node.value)
            case n.Noise():
                return self._noise(node.latent, node.site, 1.0)
            case n.Constant():
                return self._constant(node)
            case n.Energy():
                return self._energy(node)
            case n.Within():
                return self._within(node)
            case _:
                raise self.refuse(node, "no backend computes it yet", "build the graph without it for now")

    def _energy(self, node: n.Energy) -> Value:
        """An energy of a finished sample, times its scale."""
        if node.net is None or not isinstance(node.energy, Energy):
            raise self.refuse(node, "it has no network that says the energy", "give g.validate(…, net=…)")
        time = self.filled((Batch(),), 0.0, "f32", "time0")
        values = [self.value(node.x), time, *(self.value(value) for value in node.values)]
        found = self.drafter.dense(self.program(node.net, "energy", values)[0], node.net.name)
        y = self.drafter.new((Batch(),), name="energy")
        program = [["const", node.energy.scale], ["mul", 0, 1]]
        self.drafter.call("pointwise", {"x0": found}, {"y": y}, {"program": program}, node.net.name)
        return y

    def _within(self, node: n.Within) -> Value:
        """1 where a number is at most the limit, else 0."""
        y = self.drafter.new((Batch(),), name="within")
        program = [["const", node.limit], ["less", 1, 0], ["const", 1.0], ["sub", 3, 2]]
        self.drafter.call("pointwise", {"x0": self.value(node.value)}, {"y": y}, {"program": program}, "within")
        return y

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
        match node.of:
            case v.Array(dtype, shape):
                return self.filled((Batch(), *shape), node.value, dtype, "constant")
            case v.Latent(_, shape):
                return self.filled((Batch(), *shape), node.value, "f32", "constant")
            case _:
                return self.filled((Batch(),), node.value, "f32", "constant")

    def filled(self, shape: Sequence[int | Batch], value: float, dtype: str, name: str) -> Value:
        if dtype != "f32":  # the op fill writes f32; one stored number, seen at every index, is any type
            one = self.drafter.as_buffer(self.drafter.constant(np.full((1,), value, NUMPY[dtype]), name))
            return Value(one.storage, tuple(shape), (0,) * len(shape), 0, dtype)
        made = self.drafter.new(shape, dtype, name)
        self.drafter.call("fill", {}, {"x": made}, {"value": float(value)}, name)
        return made

    def _noise(self, latent: v.Latent, site: int, scale: float) -> Value:
        x = self.drafter.new((Batch(), *latent.shape), name=f"noise{site}")
        attrs = {"site": site, "micro": 0, "scale": scale}
        attrs |= {"draw": self.draws[site]} if self.bank else {}
        self.drafter.call("noise", {"bank": self.bank_input}, {"x": x}, attrs, f"noise{site}")
        return x

    def _open_bank(self) -> None:
        """The input that holds all noise: first that of every noise node, then that of every row that draws."""
        shapes: set[tuple[int, ...]] = set()
        total = 0
        for node in self.graph.nodes:
            if isinstance(node, n.Noise):
                shapes.add(node.latent.shape)
                self.draws[node.site] = total
                total += 1
        for node in self.graph.nodes:
            if isinstance(node, n.SamplerStep) and node.table is not None and (count := sum(drawing_rows(node))):
                assert isinstance(node.state.type, v.Latent)
                shapes.add(node.state.type.shape)
                self.draws[node.site] = total
                total += count
        if len(shapes) != 1:
            noise = next(node for node in self.graph.nodes if isinstance(node, n.Noise | n.SamplerStep))
            raise self.refuse(noise, "a noise bank for latents of several shapes", "compile without noise='bank'")
        self.bank_input = self.drafter.new((Batch(), total, *shapes.pop()), name="noise")
        self.drafter.bank = int(self.bank_input.storage[1:])
        self.drafter.inputs.append(InputSpec(name="noise", buffer=self.drafter.bank))

    def program(self, net: v.NetRef, part: str, inputs: Sequence[Value], branches: int = 1) -> list[Value]:
        """The calls of one part of a network; None is the identity."""
        module = self.programs(net, part)
        if module is None:
            return list(inputs)
        return lower_program(self.drafter, module, inputs, f"{net.name}.{part}", branches=branches)

    def shares_prefix(self, net: v.NetRef, varying: Sequence[bool]) -> bool:
        """Whether a score network does work that does not depend on its ``varying`` inputs."""
        module = self.programs(net, "score")
        return module is not None and shares_prefix(module, varying)

    def condition(self, node: n.Node) -> tuple[Value, ...]:
        """The encoded tensors of one branch, [B, …] each."""
        if node not in self.encoded:
            if not isinstance(node, n.Condition):
                raise self.refuse(node, "it stands where a condition is expected", "give g.score a g.condition")
            if node.values:
                raw = [self.value(value) for value in node.values]
            else:
                raw = [
                    self.filled((Batch(), *cond.shape), cond.null or 0.0, cond.dtype, f"null.{cond.name}")
                    for cond in node.net.conds
                ]
            self.encoded[node] = tuple(self.program(node.net, "encoder", raw))
        return self.encoded[node]

    # --- loops -----------------------------------------------------------------------------------

    def _loop(self, loop: n.Node) -> list[Value]:
        """The values that leave a loop; what it emits is kept for the outputs."""
        if loop not in self.loops:
            match loop:
                case n.Loop():
                    self.loops[loop], emitted = LoopLowering(self, loop).run()
                    self.emitted.update(emitted)
                case n.While() if loop.schedule is not None:
                    self.loops[loop] = [AdaptiveLowering(self, loop).run()]
                case _:
                    raise self.refuse(loop, "its number of steps depends on data", "use a loop over a schedule")
        return self.loops[loop]

    def noise(self, node: n.Noise, scale: float) -> Value:
        """Normals times a factor."""
        return self._noise(node.latent, node.site, scale)

    def branches(self, score: n.Score) -> list[Value]:
        """Each encoded condition for all branches of a score."""
        per_branch = [self.condition(cond) for cond in score.conds]
        return [interleave(self.drafter, list(parts)) for parts in zip(*per_branch, strict=True)]

    def start(self, node: n.Node, table: StepTable, number: int) -> Value:
        """The state before the first step of a loop."""
        match node:
            case n.Noise():
                return self._noise(node.latent, node.site, table.init_scale)
            case n.Renoise():
                return self._renoise(node, table, number)
            case _ if isinstance(node.type, v.Latent):
                given = self.value(node)
                x = self.drafter.new(given.shape, name="x")
                self.drafter.call("copy", {"x": given}, {"y": x}, site="x")
                return x
            case _:
                raise self.refuse(node, "a loop cannot start from it", "start from g.noise(net.latent) or a latent")

    def _renoise(self, node: n.Renoise, table: StepTable, number: int) -> Value:
        """alpha clean + sigma noise, at the point of the first row."""
        clean, noise = self.value(node.x), self.value(node.noise)
        parts: list[Value] = []
        for value, column in ((clean, "alpha"), (noise, "sigma")):
            parts.append(self.drafter.new(noise.shape, name=column))
            attrs = {"table": number, "column": table.column(column), "row": 0}
            self.drafter.call("step_input", {"x": value}, {"xin": parts[-1]}, attrs, "renoise")
        x = self.drafter.new(noise.shape, name="x")
        ins = {f"x{i}": part for i, part in enumerate(parts)}
        self.drafter.call("pointwise", ins, {"y": x}, {"program": [["add", 0, 1]]}, "renoise")
        return x
