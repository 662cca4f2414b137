"""The sampling graph itself, interpreted node by node in torch: what a graph means before any pass has touched it.

Steps without a table follow the papers (``textbook``) where they are known there, and else the sampler's own rows;
steps with one follow it row by row. So a graph before and after every graph pass can be run and compared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from scoregraph.backends.reference import predictions
from scoregraph.backends.reference.adaptive import AdaptiveRun
from scoregraph.backends.reference.loops import LoopRun
from scoregraph.backends.reference.moments import Module, Scope
from scoregraph.backends.reference.noise import normals
from scoregraph.errors import MissingInput, UncoveredNode
from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.energies import Energy
from scoregraph.graph.graph import Graph

DTYPES = {"i64": torch.int64, "u8": torch.uint8}


class Network(Protocol):
    """The modules of a network, as ``scoregraph.models.Network`` holds them."""

    @property
    def score(self) -> Module:
        """(x [n, …], t [n], *encoded conditions) -> m [n, …]."""
        ...

    @property
    def encoder(self) -> Module | None:
        """(*raw conditions [B, …]) -> encoded ones; None passes them on."""
        ...

    @property
    def heads(self) -> Mapping[str, Module]:
        """By name, (x [B, …]) -> decoded."""
        ...


class EnergyNetwork(Protocol):
    """The module of an energy, as ``scoregraph.models.energy`` makes it."""

    @property
    def energy(self) -> Module:
        """(x [B, …], t [B], *values [B, …]) -> [B]."""
        ...


def run(
    graph: Graph,
    networks: Mapping[str, Network | EnergyNetwork],
    inputs: Mapping[str, np.ndarray],
    seeds: np.ndarray,
    dtype: torch.dtype = torch.float64,
) -> dict[str, np.ndarray]:
    """The outputs of ``graph`` by name, [B, …]; a value emitted in a loop is [B, steps, …].

    Args:
        graph: any stage of graph passes.
        networks: by the names of the graph's networks; modules are copied to ``dtype``.
        inputs: by name, [B, …].
        seeds: uint64 [B].
        dtype: torch.float64 or torch.float32.

    Raises:
        MissingInput: a value is missing.
        UncoveredNode: a node of discrete sampling, or a cache; they have no interpretation here yet.
    """
    interpreter = _Interpreter(graph, networks, inputs, torch.from_numpy(seeds.view(np.int64).copy()), dtype)
    with torch.no_grad():
        outputs = {name: _single(interpreter.value(node, interpreter.root)) for name, node in graph.outputs}
    return {name: value.numpy() for name, value in {**outputs, **interpreter.emitted()}.items()}


def _single(value: Any) -> Tensor:
    """A prediction is a list of one tensor per branch; shown is the first."""
    return value[0] if isinstance(value, list) else value


@dataclass
class _Interpreter:
    graph: Graph
    networks: Mapping[str, Any]
    inputs: Mapping[str, np.ndarray]
    seeds: Tensor
    dtype: torch.dtype
    root: Scope = field(default_factory=Scope)
    records: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])
    converted: dict[int, Any] = field(default_factory=dict[int, Any])

    @property
    def batch(self) -> int:
        return len(self.seeds)

    def emitted(self) -> dict[str, Tensor]:
        return {name: torch.stack(values, dim=1) for name, values in self.records.items()}

    def record(self, name: str, value: Any) -> None:
        """Take note of what a turn of a loop emits."""
        self.records.setdefault(name, []).append(_single(value))

    def value(self, node: n.Node, scope: Scope) -> Any:
        """The value of a node, computed once where it is fixed: tensors [B, …], one per branch for predictions."""
        holder = scope.holder(node)
        if node not in holder.known:
            holder.known[node] = self._value(node, holder)
        return holder.known[node]

    def _value(self, node: n.Node, scope: Scope) -> Any:
        match node:
            case n.Input():
                return self._input(node)
            case n.Constant():
                return self._constant(node.of, node.value)
            case n.Condition():
                return self._condition(node, scope)
            case n.Noise():
                return self.normals(node.latent, node.site, 0)
            case n.Renoise():
                return self.value(node.x, scope), self.value(node.noise, scope)
            case n.Score():
                return predictions.score(self, node, scope)
            case n.FusedScore():
                return [predictions.fuse(self, node, scope)]
            case n.Convert():
                return predictions.convert(self, node, scope)
            case n.Correct():
                return predictions.correct(self, node, scope)
            case n.EnergyGrad():
                return predictions.energy_grad(self, node, scope)
            case n.Divergence():
                return [predictions.divergence(self, node, scope)]
            case n.Loop():
                return LoopRun(self, node, scope, self.record).values()
            case n.While() if node.schedule is not None:
                samples = [AdaptiveRun(alone, node, alone.root).values() for alone in self._alone()]
                return [torch.cat(parts) for parts in zip(*samples, strict=True)]
            case n.Get():
                return self.value(node.loop, scope)[node.index]
            case n.HeadDecode(rows=None):
                head = self.module(self.networks[node.net.name].heads[node.head])
                return head(self.value(node.x, scope))
            case n.Emit():
                return self.value(node.value, scope)
            case n.Norm():
                a, *b = (_single(self.value(given, scope)) for given in node.operands)
                return torch.linalg.vector_norm((a - b[0] if b else a).flatten(1), dim=1)
            case n.Energy():
                assert isinstance(node.energy, Energy)
                return node.energy.scale * predictions.energy_of(self, node, self.value(node.x, scope), 0.0, scope)
            case n.Within():
                return (self.value(node.value, scope) <= node.limit).to(self.dtype)
            case _:
                raise self.refusal(node, f"the reference does not interpret {node.op} nodes")

    def _alone(self) -> Iterator[_Interpreter]:
        """Every sample by itself, for loops that take as many steps as a sample needs."""
        for i in range(self.batch):
            inputs = {name: value[i : i + 1] for name, value in self.inputs.items()}
            yield _Interpreter(
                self.graph, self.networks, inputs, self.seeds[i : i + 1], self.dtype, converted=self.converted
            )

    def refusal(self, node: n.Node, reason: str) -> UncoveredNode:
        """The error about a node that has no interpretation here."""
        where = self.graph.place(node)
        return UncoveredNode(
            node=node.op, device="reference", reason=reason, help="leave it out of the graph", where=where
        )

    def module(self, module: Any) -> Module:
        """A torch module in the interpreter's precision; other callables as they are."""
        if not isinstance(module, nn.Module):
            return module
        if id(module) not in self.converted:
            self.converted[id(module)] = copy.deepcopy(module).to(self.dtype).eval()
        return self.converted[id(module)]

    # --- what enters ---------------------------------------------------------------------------

    def _input(self, node: n.Input) -> Tensor:
        if node.name not in self.inputs:
            raise MissingInput(name=node.name, known=", ".join(given.name for given in self.graph.inputs))
        given = torch.from_numpy(np.asarray(self.inputs[node.name]).copy())
        return given.to(self.dtype) if given.is_floating_point() else given

    def _constant(self, of: v.ValueType, value: float) -> Tensor:
        """``value`` everywhere: raw, a latent, or one number per sample."""
        kind = DTYPES.get(of.dtype, self.dtype) if isinstance(of, v.Array) else self.dtype
        shape = of.shape if isinstance(of, v.Array | v.Latent) else ()
        return torch.full((self.batch, *shape), value).to(kind)

    def normals(self, latent: v.Latent, site: int, micro: int) -> Tensor:
        """Unit normals [B, *latent.shape]."""
        z = normals(self.seeds, site, micro, torch.Size(latent.shape).numel())
        return z.reshape(self.batch, *latent.shape).to(self.dtype)

    def _condition(self, node: n.Condition, scope: Scope) -> tuple[Tensor, ...]:
        """The encoded conditions; without values, those of the null condition."""
        raw: list[Tensor] = []
        for i, cond in enumerate(node.net.conds):
            kind = DTYPES.get(cond.dtype, self.dtype)
            if node.values:
                raw.append(self.value(node.values[i], scope).to(kind))
            else:
                assert cond.null is not None, "the graph's rules refuse a null condition that does not exist"
                raw.append(torch.full((self.batch, *cond.shape), cond.null).to(kind))
        encoder = self.networks[node.net.name].encoder
        encoded = tuple(raw) if encoder is None else self.module(encoder)(*raw)
        return encoded if isinstance(encoded, tuple) else (encoded,)
