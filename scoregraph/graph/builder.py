"""Declares a sampling graph, one call a node::

    g = GraphBuilder("terrain")
    level = g.condition(net, g.input("difficulty"))
    blank = g.condition(net, None)
    x = g.noise(net.latent)
    with g.loop(schedules.karras(steps=12), x) as step:
        guided = g.fuse(guidance.cfg(1.5), g.score(net, step, level), g.score(net, step, blank))
        step.advance(samplers.dpmpp_2m(), guided)
    g.output(terrain=g.decode(net, step.result))
    graph = g.build()

Every mistake is found at the call that makes it, and named with the user's file and line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from scoregraph.errors import (
    ChooseHead,
    DeterministicStep,
    DuplicateName,
    ForeignStep,
    Location,
    LoopStillOpen,
    MissingCondition,
    NetworkNameClash,
    NoOutput,
    NotANetwork,
    NoUnconditionalBranch,
    ReservedName,
    ScoregraphError,
    UnknownName,
    UnstatedGuidanceScale,
    UntypedInput,
    UnusedValue,
    ValueOutsideLoop,
    WrongOperand,
    here,
)
from scoregraph.graph import nodes as n
from scoregraph.graph.analysis import moved_by
from scoregraph.graph.graph import Graph
from scoregraph.graph.nodes import Node
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule
from scoregraph.graph.spec import Spec
from scoregraph.graph.step import Step
from scoregraph.graph.values import Array, Carry, Cond, CondInput, Latent, NetRef, Pred, Scalar, Time, Tokens, ValueType
from scoregraph.graph.verify import verify

N = TypeVar("N", bound=Node)


@runtime_checkable
class HasRef(Protocol):
    """A network as ``sg.models`` makes it: whatever says what it is by a ``NetRef``."""

    @property
    def ref(self) -> NetRef:
        """What the graph knows of the network."""
        ...


class UnboundInput:
    """An input whose type is not known yet: the condition it is given to says it."""

    def __init__(self, builder: GraphBuilder, name: str, where: Location | None) -> None:
        self.builder = builder
        self.name = name
        self.where = where


RUN_ARGUMENTS = frozenset({"seed", "seeds", "batch", "noise", "progress", "cancel"})
"""What ``plan.run`` takes besides the inputs of the graph."""

Operand = Node | UnboundInput
Given = Node | UnboundInput | float | None
"""What a condition may be given: a value, a number, or None for its null value."""


class GraphBuilder:
    """Collects the nodes of one graph. ``networks`` are the objects whose references it has used, in order."""

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self.networks: list[HasRef] = []
        self._nets: dict[str, NetRef] = {}
        self._inputs: dict[str, n.Input | UnboundInput] = {}
        self._outputs: dict[str, Node] = {}
        self._emits: set[str] = set()
        self.open: list[Step] = []
        self._loops: set[str] = set()
        self._sites = 0
        self._places: dict[Node, Location] = {}
        self._made: dict[Node, Location | None] = {}

    # --- what enters ---

    def input(self, name: str, type: ValueType | None = None) -> Operand:
        """A value the caller gives to ``plan.run(name=…)``. Without a type it takes that of its condition."""
        where = here()
        if name in RUN_ARGUMENTS:
            raise ReservedName(name=name, where=where)
        if name in self._inputs:
            raise DuplicateName(kind="input", name=name, where=where)
        made = UnboundInput(self, name, where) if type is None else self.node(n.Input, name, type)
        self._inputs[name] = made
        return made

    def condition(self, net: HasRef | NetRef, *value: Given, **named: Given) -> n.Condition:
        """The conditions of a network: one value, several by name, or None for the unconditional branch."""
        ref = self._net(net)
        known = [cond.name for cond in ref.conds]
        if value == (None,) and not named:
            return self.node(n.Condition, ref, ())
        if len(value) > len(known):
            raise UnknownName(kind=f"condition of {ref.name}", name=repr(value[-1]), known=known, where=here())
        given = dict(zip(known, value, strict=False))
        for name, one in named.items():
            if name not in known:
                raise UnknownName(kind=f"condition of {ref.name}", name=name, known=known, where=here())
            if name in given:
                raise DuplicateName(kind="condition", name=name, where=here())
            given[name] = one
        for name in known:
            if name not in given:
                raise MissingCondition(net=ref.name, missing=name, where=here())
        return self.node(n.Condition, ref, tuple(self._given(ref, cond, given[cond.name]) for cond in ref.conds))

    def noise(self, latent: Latent | Tokens | HasRef | NetRef) -> n.Noise:
        """Unit normals shaped like a latent (or like the latent of a network)."""
        kind = latent if isinstance(latent, Latent | Tokens) else self._net(latent).latent
        if isinstance(kind, Tokens):
            raise WrongOperand(
                operand="noise", expected="a Latent (tokens start from an input)", got=kind, where=here()
            )
        return self.node(n.Noise, kind, self.site())

    def constant(self, value: float, type: Latent | Array | Scalar) -> n.Constant:
        """A value of which every element is ``value``: where a sum that a loop carries starts, for example."""
        return self.node(n.Constant, float(value), type)

    def renoise(self, clean: Operand, noise: Node) -> n.Renoise:
        """Where a loop starts from a clean sample (img2img): its schedule begins at the noise level that is wanted."""
        return self.node(n.Renoise, self.use(clean), self.use(noise))

    # --- loops ---

    def loop(self, schedule: Spec, *init: Operand, name: str | None = None) -> Step:
        """A pass over a schedule, as a ``with`` block; ``init`` are the values it carries, the state first."""
        return Step(self, name or "steps", init, schedule=schedule)

    def while_(self, max_iters: int, *init: Operand, name: str | None = None) -> Step:
        """A loop that goes on while ``step.go_on(mask)`` holds anywhere, for at most ``max_iters`` steps."""
        return Step(self, name or "rounds", init, max_iters=max_iters)

    def score(self, net: HasRef | NetRef, step: Step, cond: Node | None = None, x: Node | None = None) -> n.Score:
        """What a network says about the state of a loop (or about ``x``) under a condition."""
        ref = self._net(net)
        self.check_step(step)
        given = self._cond(ref, cond)
        self._check_time(ref, step)
        state = step.x if x is None else self.use(x)
        time = None if ref.time == "none" else step.time
        return self.node(n.Score, ref, state, time, (given,))

    def fuse(
        self, guidance: Spec | float, *preds: Node, grads: tuple[Node, ...] = (), scale: Operand | None = None
    ) -> n.FusedScore:
        """The answers of several branches as one, by a guidance rule. ``scale`` replaces the rule's by a value."""
        if isinstance(guidance, int | float):
            raise UnstatedGuidanceScale(value=guidance, where=here())
        branches = tuple(self.use(pred) for pred in preds)
        pulls = tuple(self.use(grad) for grad in grads)
        return self.node(n.FusedScore, guidance, branches, pulls, None if scale is None else self.use(scale))

    def convert(self, pred: Node, step: Step, to: Spec) -> n.Convert:
        """A prediction about the state of a loop in another parameterization, for example x0 for a preview."""
        self.check_step(step)
        return self.node(n.Convert, to, self.use(pred), step.x, step.time)

    def correct(self, rule: Spec, pred: Node, step: Step) -> n.Correct:
        """The prediction whose clean sample is what a correction (a clamp, say) makes of that of ``pred``."""
        self.check_step(step)
        return self.node(n.Correct, rule, self.use(pred), step.x, step.time)

    def divergence(
        self, net: HasRef | NetRef, step: Step, cond: Node | None = None, probe: Node | None = None
    ) -> n.Divergence:
        """How fast a network's flow thins out density at the state: the prediction that moves a carried log-density.

        Exact without a ``probe``; with one, Hutchinson's estimate from those unit normals.
        """
        self.check_step(step)
        ref = self._net(net)
        given = self._cond(ref, cond)
        self._check_time(ref, step)
        return self.node(n.Divergence, ref, step.x, step.time, given, None if probe is None else self.use(probe))

    def energy(
        self,
        energy: Spec,
        step: Step,
        *values: Operand,
        pred: Node | None = None,
        net: HasRef | NetRef | None = None,
    ) -> n.EnergyGrad:
        """The gradient of an energy in the state of a loop, or in the clean sample that ``pred`` implies."""
        self.check_step(step)
        ref = None if net is None else self._net(net)
        if ref is not None:
            self._check_time(ref, step)
        used = self._energy_values(ref, values)
        return self.node(n.EnergyGrad, energy, step.x, step.time, None if pred is None else self.use(pred), ref, used)

    def log_prob(self, step: Node) -> n.LogProb:
        """log p(x' | x) of a stochastic step, per sample: what ``step.advance`` returned, inside its loop."""
        moved = moved_by(self.use(step))
        if moved is not None:
            self.check_draws(moved)
        return self.node(n.LogProb, moved or self.use(step))

    def norm(self, a: Operand, b: Operand | None = None) -> n.Norm:
        """The Euclidean length of a value, or of the difference of two, per sample."""
        return self.node(n.Norm, self.use(a), None if b is None else self.use(b))

    def validate(self, energy: Spec, x: Operand, *values: Operand, net: HasRef | NetRef | None = None) -> n.Energy:
        """What an energy says of a finished sample: a number per sample, which ``within`` compares with a limit."""
        ref = None if net is None else self._net(net)
        return self.node(n.Energy, energy, self.use(x), ref, self._energy_values(ref, values))

    def within(self, value: Node, limit: float) -> n.Within:
        """Which samples have a number of at most ``limit``."""
        return self.node(n.Within, self.use(value), float(limit))

    def eligible(self, rule: Spec, tokens: Node) -> n.Eligible:
        """The positions a select rule may still write."""
        return self.node(n.Eligible, rule, self.use(tokens))

    def cache(self, policy: Spec, value: Node) -> n.Cache:
        """An approximation: ``value`` as it was when the policy last refreshed it."""
        return self.node(n.Cache, policy, self.use(value))

    # --- what leaves ---

    def decode(
        self, net: HasRef | NetRef, x: Operand, head: str | None = None, rows: Node | None = None
    ) -> n.HeadDecode:
        """What a head of a network makes of a state; ``head`` may be left out when there is only one."""
        ref = self._net(net)
        if head is None:
            if len(ref.heads) != 1:
                heads = ", ".join(repr(h.name) for h in ref.heads) or "no head"
                raise ChooseHead(net=ref.name, heads=heads, where=here())
            head = ref.heads[0].name
        return self.node(n.HeadDecode, ref, head, self.use(x), None if rows is None else self.use(rows))

    def emit(self, name: str, value: Node) -> None:
        """Record a value under a name: in a loop once per step, outside of loops as an output."""
        if not self.open:
            self.output(**{name: value})
            return
        self._new_output(name)
        self._emits.add(name)
        self.open[-1].emits.append(self.node(n.Emit, name, self.use(value)))

    def output(self, **values: Operand) -> None:
        """Values that leave the graph, by name."""
        for name, value in values.items():
            self._new_output(name)
            node = self.use(value)
            if isinstance(node.type, Cond | Time | Carry):
                raise WrongOperand(operand=f"output {name!r}", expected="a value", got=node.type, where=here())
            if node.free:
                raise ValueOutsideLoop(value=_title(node), loop=min(node.free), where=here())
            self._outputs[name] = node

    def build(self) -> Graph:
        """The finished graph; the builder may go on and build a larger one."""
        where = here()
        if self.open:
            raise LoopStillOpen(what="the graph", loop=self.open[-1].name, where=where)
        if not self._outputs:
            raise NoOutput(graph=self.name, where=where)
        for value in self._inputs.values():
            if isinstance(value, UnboundInput):
                raise UnusedValue(value=f"input {value.name!r}", where=value.where)
        graph = Graph(self.name, tuple(self._outputs.items()), tuple(self._places.items()))
        used = set(graph.nodes)
        for node, place in self._made.items():
            if node not in used and not isinstance(node, n.Get | n.StepTime):  # these come with every loop
                raise UnusedValue(value=_title(node), where=place)
        verify(graph, "built")
        return graph

    # --- for steps, which are part of the builder ---

    def node(self, make: Callable[..., N], *fields: Any) -> N:
        """Make a node where the user stands; it must fit into the loops that are open."""
        where = here()
        try:
            node = make(*fields)
        except ScoregraphError as error:
            raise error.at(where) from None
        self._check_scope(node, where)
        if where is not None:
            self._places.setdefault(node, where)
        self._made.setdefault(node, where)
        return node

    def _check_scope(self, node: Node, where: Location | None) -> None:
        closed = node.free - {step.name for step in self.open}
        if closed:
            raise ValueOutsideLoop(value=_title(node), loop=min(closed), where=where)

    def use(self, value: Operand) -> Node:
        """An operand as a node of this graph."""
        if isinstance(value, UnboundInput):
            bound = self._bound(value)
            if isinstance(bound, UnboundInput):
                raise UntypedInput(name=value.name, where=here())
            return bound
        if not isinstance(value, Node):  # pyright: ignore[reportUnnecessaryIsInstance]  # the user's Python is not checked
            raise WrongOperand(operand="an operand", expected="a value of this graph", got=repr(value), where=here())
        return value

    def _given(self, ref: NetRef, cond: CondInput, value: Given) -> Node:
        """The value of one condition as a node: an input gets its type here, a number becomes a constant."""
        if isinstance(value, UnboundInput):
            bound = self._bound(value)
            if isinstance(bound, UnboundInput):
                bound = self._inputs[value.name] = n.Input(value.name, cond.type)
                self._made[bound] = value.where
                if value.where is not None:
                    self._places[bound] = value.where
            return bound
        if value is None:
            if cond.null is None:
                raise NoUnconditionalBranch(net=ref.name, cond=cond.name, where=here())
            value = cond.null
        if isinstance(value, int | float):
            return self.node(n.Constant, float(value), Array(cond.dtype, cond.shape))
        return self.use(value)

    def _check_time(self, ref: NetRef, step: Step) -> None:
        """The schedule of a loop can tell a network the time as it reads it."""
        if isinstance(step.schedule, Schedule) and isinstance(ref.latent, Latent):
            step.schedule.check_network(ref.time, ref.latent.space, where=here())

    def _cond(self, ref: NetRef, cond: Node | None) -> Node:
        """The condition a network is asked under; a network without conditions needs none."""
        if cond is not None:
            return self.use(cond)
        if ref.conds:
            raise MissingCondition(net=ref.name, missing=ref.conds[0].name, where=here())
        return n.Condition(ref, ())

    def _energy_values(self, ref: NetRef | None, values: tuple[Operand, ...]) -> tuple[Node, ...]:
        """The values of an energy; those of its network take their types from there."""
        conds = () if ref is None else ref.conds
        typed = [self._given(ref, cond, value) for cond, value in zip(conds, values, strict=False) if ref is not None]
        return (*typed, *(self.use(value) for value in values[len(typed) :]))

    def check_draws(self, step: n.SamplerStep) -> None:
        """The sampler of a step adds noise on its schedule."""
        schedule = next((body.schedule for body in self.open if body.name in step.free), None)
        rule, answer = step.rule, step.preds[0].type
        if not (isinstance(rule, Sampler) and isinstance(schedule, Schedule) and isinstance(answer, Pred)):
            return
        draws = rule.learns_variance
        if not (draws or rule.adaptive) and isinstance(answer.prediction, Prediction):
            draws = rule.table(schedule, answer.prediction, "none", answer.latent.space).uses_noise
        if not draws:
            raise DeterministicStep(sampler=rule, where=here())

    def _bound(self, value: UnboundInput) -> n.Input | UnboundInput:
        """What an input has become by now."""
        if value.builder is not self:
            raise ForeignStep(what=f"input {value.name!r}", where=here())
        return self._inputs[value.name]

    def _net(self, net: HasRef | NetRef) -> NetRef:
        if not isinstance(net, NetRef):
            if not isinstance(net, HasRef):  # pyright: ignore[reportUnnecessaryIsInstance]  # the user's Python is not checked
                raise NotANetwork(got=f"{net!r} ({type(net).__name__})", where=here())
            if not any(net is known for known in self.networks):
                self.networks.append(net)
            net = net.ref
        known = self._nets.setdefault(net.name, net)
        if known != net:
            raise NetworkNameClash(name=net.name, first=known.fingerprint, second=net.fingerprint, where=here())
        return net

    def site(self) -> int:
        """A new place at which random numbers are drawn."""
        self._sites += 1
        return self._sites - 1

    def loop_name(self, name: str) -> str:
        """A name no other loop has: ``steps``, ``steps2``, ``steps3`` …"""
        names = [name, *(f"{name}{i + 2}" for i in range(len(self._loops)))]
        free = next(new for new in names if new not in self._loops)
        self._loops.add(free)
        return free

    def check_step(self, step: Step) -> None:
        """A step belongs to this graph and its loop is open."""
        if step.builder is not self:
            raise ForeignStep(what=f"the loop {step.name!r}", where=here())
        if step not in self.open:
            raise ValueOutsideLoop(value="the state", loop=step.name, where=here())

    def _new_output(self, name: str) -> None:
        if name in self._outputs or name in self._emits:
            raise DuplicateName(kind="output", name=name, where=here())


def _title(node: Node) -> str:
    """A node in a message: what it does, and of which network."""
    net = getattr(node, "net", None)
    return f"{node.op} of {net.name}" if isinstance(net, NetRef) else f"{node.op} ({node.type})"
