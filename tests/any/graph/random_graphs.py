"""A hypothesis strategy of valid graphs that uses every kind of node, and the networks they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hypothesis import strategies as st

from scoregraph.errors import Location
from scoregraph.graph import caches, corrections, energies, guidance, prediction, samplers, schedules, select
from scoregraph.graph import nodes as n
from scoregraph.graph.analysis import topological
from scoregraph.graph.formula import Formula
from scoregraph.graph.graph import Graph
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.table import StepTable, machine_columns
from scoregraph.graph.values import Array, CondInput, HeadRef, Latent, Mask, NetRef, Scalar, Tokens

TERRAIN = NetRef(
    "terrain",
    "5f2c9a11d04e7b5a",
    Latent("kappa", (1, 16, 16)),
    prediction.edm(),
    "c_noise",
    (CondInput("difficulty", (), "f32", 1, 100, null=1),),
    (HeadRef("metres", (16, 16)),),
)
PAINTER = NetRef(
    "a painter's net",
    "00000000deadbeef",
    Latent("vp", (4, 8, 8)),
    prediction.eps(),
    "timestep",
    (CondInput("text", (77, 16), null=0.0), CondInput("label", (), "i64", 0, 999, null=1000)),
    (HeadRef("rgb", (3, 64, 64)), HeadRef("depth", (64, 64))),
    variance=True,
)
FLOWER = NetRef("flower", "1e10000000000000", Latent("flow", (3,)), prediction.flow(), "flow1000")
TURNER = NetRef("turner", "1e20000000000000", Latent("vp", (3,)), prediction.trigflow(), "angle")
LABEL = CondInput("label", (), "i64")
CRITICS = {
    net.name: NetRef(
        f"critic of {net.name}", "c0", net.latent, None, time, (CondInput("label", (), "i64"),), energy=True
    )
    for net, time in ((TERRAIN, "sigma"), (PAINTER, "timestep"))
}
"""Energies of the networks' latents."""
FRIENDS = {
    net.name: NetRef(f"{net.name}'s friend", "f0", net.latent, prediction.x0(), "sigma")
    for net in (TERRAIN, PAINTER, FLOWER, TURNER)
}
"""Other networks of the same latents, without conditions."""
NOBODY = {name: n.Condition(friend, ()) for name, friend in FRIENDS.items()}
WRITER = NetRef("writer", "0123456789abcdef", Tokens(12, 50), time="none")
SPEAKER = NetRef(
    "speaker",
    "fedcba9876543210",
    Tokens(8, 20),
    conds=(CondInput("prompt", (4,), "i64"),),
    heads=(HeadRef("lm", (8, 20)),),
    width=32,
)

SCHEDULES = {
    "kappa": [schedules.karras(steps=5), schedules.exponential(steps=3)],
    "vp": [schedules.cosine(steps=4), schedules.scaled_linear(steps=7, spacing="trailing")],
    "flow": [schedules.flow(steps=6, shift=3.0)],
}
SAMPLERS = [samplers.ddim(eta=0.5), samplers.euler(), samplers.heun(), samplers.dpmpp_2m()]


@dataclass(frozen=True)
class Patient(Sampler):
    """A sampler that would choose its own steps."""

    name: ClassVar[str] = "patient_for_tests"
    adaptive: ClassVar[bool] = True
    max_rounds: int = 99


CORRECTIONS = [corrections.clamp(), corrections.dynamic_threshold(0.9, limit=2.0)]
FORMULAS = [
    Formula(),
    Formula(
        elementwise=(("const", 0.5), ("max", 0, 3), ("row", "a column")),
        results=(4,),
        draws=True,
        statistics=((0, 1), (2,)),
        quantiles=((0, 0.995),),
        per_sample=(("in", 0, 1), ("const", float("inf")), ("min", 0, 1)),
        coefficients=(2,),
    ),
]
GUIDANCE = {
    1: guidance.single(),
    2: guidance.cfg(3.0),
    3: guidance.edit(1.5, 7.5),
    4: guidance.compose((1.0, -0.5, 2.0)),
}
SELECT = [select.most_confident(mask=3), select.threshold(mask=0, threshold=0.8), select.ancestral(mask=1)]
POLICIES = [caches.every(2), caches.taylor(3, order=2), caches.prefix(block=4)]

names = st.one_of(st.sampled_from(["image", "x0", "preview-1", "none"]), st.text(min_size=1, max_size=8))
numbers = st.floats(allow_nan=False, allow_infinity=False)
places = st.builds(Location, st.one_of(st.just("sample.py"), st.text(min_size=1, max_size=8)), st.integers(1, 9999))


@st.composite
def tables(draw: st.DrawFn, branches: int, length: int | None = None) -> StepTable:
    """A table of random numbers."""
    registers = ("x", "x0", "a b")[: draw(st.integers(1, 3))]
    sizes = draw(st.sampled_from([(0, 0, 0), (1, 1, 0), (0, 0, 2), (2, 1, 1)]))
    machine = machine_columns(len(registers), branches, *sizes)
    columns = (*machine, *draw(st.sampled_from([(), ("step", "alpha", "sigma")])))
    rows = draw(st.lists(st.tuples(*[numbers] * len(columns)), min_size=length or 1, max_size=length or 3))
    return StepTable(columns, tuple(rows), registers, branches, draw(numbers), *sizes)


class _Draft:
    """What the parts of one graph share: sites, loops, names of inputs and outputs."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.sites = 0
        self.loops = 0
        self.inputs = 0
        self.outputs: list[tuple[str, n.Node]] = []
        self.taken: set[str] = set()

    def site(self) -> int:
        self.sites += 1
        return self.sites

    def loop(self) -> str:
        self.loops += 1
        return self.draw(st.sampled_from(["steps", "a loop", "§"])) + str(self.loops)

    def input(self, kind: object) -> n.Node:
        self.inputs += 1
        return n.Input(f"in{self.inputs}", kind)

    def name(self) -> str:
        name = self.draw(names.filter(lambda text: text not in self.taken))
        self.taken.add(name)
        return name

    def condition(self, net: NetRef) -> n.Node:
        null = not net.conds or all(cond.null is not None for cond in net.conds)
        if null and self.draw(st.booleans()):
            return n.Condition(net, ())
        constant = self.draw(st.booleans())
        return n.Condition(net, self.values(net, constant=constant))

    def values(self, net: NetRef, *, constant: bool = False) -> tuple[n.Node, ...]:
        """One value for each condition of a network."""
        kinds = [Array(cond.dtype, cond.shape) for cond in net.conds]
        return tuple(n.Constant(self.draw(numbers), kind) if constant else self.input(kind) for kind in kinds)

    def emit(self, value: n.Node) -> n.Node:
        return n.Emit(self.name(), value)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A graph of one to three parts, continuous or discrete, with random places."""
    draft = _Draft(draw)
    for _ in range(draw(st.integers(1, 3))):
        part = draw(st.sampled_from([_continuous, _continuous, _discrete]))
        part(draft)
    nodes = topological(node for _, node in draft.outputs)
    placed = draw(st.lists(st.sampled_from(nodes), unique=True, max_size=6))
    return Graph(draw(names), tuple(draft.outputs), tuple((node, draw(places)) for node in placed))


def _continuous(draft: _Draft) -> None:
    draw = draft.draw
    net = draw(st.sampled_from([TERRAIN, PAINTER, FLOWER, TURNER]))
    latent = net.latent
    starts = {
        "noise": lambda: n.Noise(latent, draft.site()),
        "latent": lambda: draft.input(latent),
        "img2img": lambda: n.Renoise(
            draft.input(draw(st.sampled_from([latent, Array("f32", latent.shape)]))), n.Noise(latent, draft.site())
        ),
    }
    init = starts[draw(st.sampled_from(sorted(starts)))]()
    loop = draft.loop()
    outer = None
    if draw(st.integers(0, 5)) == 0:  # the whole part inside another loop, which carries its state through
        outer, init = (draft.loop(), init), n.LoopVar(f"{loop}'", 0, latent)
        outer = (f"{loop}'", outer[1])
    x, time = n.LoopVar(loop, 0, latent), n.StepTime(loop)
    step, emits = _step(draft, net, x, time)
    adaptive = outer is None and step.table is None and draw(st.booleans())
    if adaptive:
        step = n.SamplerStep(Patient(draw(st.integers(1, 50))), x, step.preds, time, step.site)
    elif draw(st.booleans()):
        emits.append(draft.emit(n.LogProb(step)))
        emits.append(
            draft.emit(n.Observe(step, draw(st.sampled_from(["before", "statistic"])), draw(st.integers(0, 3))))
        )
    moved = step
    if draw(st.booleans()):
        mask = draft.input(Array("f32", (1, *latent.shape[1:]) if draw(st.booleans()) else latent.shape))
        moved = n.Inpaint(step, draft.input(latent), mask, n.Noise(latent, draft.site()), time)
    inits, results = [init], [moved]
    if draw(st.booleans()):  # a second carried value, which stays as it is
        inits.append(draft.input(Scalar("per-sample")))
        results.append(n.LoopVar(loop, 1, Scalar("per-sample")))
    if latent.space == "kappa" and draw(st.booleans()):  # a log-density, moved beside the state
        density = Latent("kappa", (1,))
        probe = n.Noise(latent, draft.site()) if draw(st.booleans()) else None
        flow = n.Divergence(net, x, time, draft.condition(net), probe)
        rule = Patient() if adaptive else samplers.heun()
        carried = n.LoopVar(loop, len(inits), density)
        table = None if step.table is None else draw(tables(1, len(step.table.rows)))
        inits.append(n.Constant(0.0, density))
        results.append(n.SamplerStep(rule, carried, (flow,), time, draft.site(), table))
    schedule = draw(st.sampled_from(SCHEDULES[latent.space]))
    if adaptive:
        rounds = draw(st.integers(1, 99))
        going = n.Unfinished(time)
        done = n.While(loop, rounds, tuple(inits), tuple(results), going, tuple(emits), schedule)
    else:
        done = n.Loop(loop, schedule, tuple(inits), tuple(results), tuple(emits))
    result = n.Get(done, 0)
    if outer is not None:
        moved, recorded = _step(draft, net, result, n.StepTime(outer[0]))
        result = n.Get(n.Loop(outer[0], schedule, (outer[1],), (moved,), tuple(recorded)), 0)
    head = draw(st.sampled_from([None, *net.heads]))
    draft.outputs.append((draft.name(), n.HeadDecode(net, head.name, result) if head else result))
    if net.name in CRITICS and draw(st.booleans()):
        critic = CRITICS[net.name]
        said = n.Energy(energies.energy(1.0), result, critic, draft.values(critic))
        draft.outputs.append((draft.name(), said))
        draft.outputs.append((draft.name(), n.Within(said, draw(numbers))))


def _step(draft: _Draft, net: NetRef, x: n.Node, time: n.Node) -> tuple[n.Node, list[n.Node]]:
    draw = draft.draw
    branches = draw(st.integers(1, 4))
    conds = [draft.condition(net) for _ in range(branches)]
    batched = draw(st.booleans())
    groups = [tuple(conds)] if batched else [(cond,) for cond in conds]
    preds: list[n.Node] = [n.Score(net, x, time, group) for group in groups]
    emits: list[n.Node] = []
    if draw(st.booleans()):
        clean = n.Convert(prediction.x0(), preds[0], x, time)
        emits.append(draft.emit(clean))
        if clean.type.branches == 1:
            emits.append(draft.emit(n.Norm(clean, x) if draw(st.booleans()) else n.Norm(clean)))
    if draw(st.booleans()):
        preds[0] = n.Cache(draw(st.sampled_from(POLICIES)), preds[0])
    table = None
    if draw(st.booleans()):
        grads = ()
        if net.name in CRITICS and draw(st.booleans()):
            critic, values = CRITICS[net.name], (draft.input(Array("f32", (3,))),)
            grads = (
                n.EnergyGrad(energies.classifier(0.5), x, time, None, critic, draft.values(critic)),
                n.EnergyGrad(energies.measurement(2.0, wrt="x0"), x, time, preds[0], None, values),
            )
        scale = draft.input(Scalar("per-sample")) if branches == 2 and draw(st.booleans()) else None
        preds = [n.FusedScore(GUIDANCE[branches], tuple(preds), grads, scale)]
        branches = 1
        if draw(st.booleans()):
            preds = [n.Correct(draw(st.sampled_from(CORRECTIONS)), preds[0], x, time)]
        if draw(st.booleans()):  # guidance over guidance
            other = n.Convert(net.prediction, n.Score(FRIENDS[net.name], x, time, (NOBODY[net.name],)), x, time)
            preds = [n.FusedScore(guidance.weighted(2, (0.25, 0.75)), (preds[0], other))]
    formula, extras = None, ()
    if branches > 1 or draw(st.booleans()):
        table = draw(tables(branches))
        formula = draw(st.sampled_from([None, *FORMULAS]))
        extras = (draft.input(Array("f32", net.latent.shape)),) if formula else ()
    rule = draw(st.sampled_from(SAMPLERS))
    return n.SamplerStep(rule, x, tuple(preds), time, draft.site(), table, formula, extras), emits


def _discrete(draft: _Draft) -> None:
    draw = draft.draw
    net = draw(st.sampled_from([WRITER, SPEAKER]))
    rule = draw(st.sampled_from(SELECT))
    until_done = net is WRITER and draw(st.booleans())
    loop = draft.loop()
    x = n.LoopVar(loop, 0, net.latent)
    open_positions = n.Eligible(rule, x)
    time = None if net.time == "none" else n.StepTime(loop)
    logits: n.Node = n.Score(net, x, time, (draft.condition(net),))
    if net.width:
        logits = n.HeadDecode(net, "lm", logits, rows=open_positions if draw(st.booleans()) else None)
    if draw(st.booleans()):
        other = n.Score(net, x, time, (draft.condition(net),))
        decoded = n.HeadDecode(net, "lm", other) if net.width else other
        logits = n.FusedScore(guidance.cfg(0.5, convention="ho"), (logits, decoded))
    emits = (n.Emit(draft.name(), logits),) if draw(st.booleans()) else ()
    step = n.SamplerStep(rule, x, (logits,), time, draft.site())
    start = (draft.input(net.latent),)
    if until_done:
        active = open_positions if draw(st.booleans()) else draft.input(Mask(()))
        done: n.Node = n.While(loop, draw(st.integers(1, 99)), start, (step,), active, emits)
    else:
        done = n.Loop(loop, draw(st.sampled_from(SCHEDULES["vp"])), start, (step,), emits)
    draft.outputs.append((draft.name(), n.Get(done, 0)))
