"""Whole graphs compiled for the reference and for Triton (interpreted), against the graph itself in float64.

The plan's tables are float32, so a plan run in float64 is 1e-6 or so away from the graph.
"""

import numpy as np
import pytest
from toys import network

from scoregraph import compile
from scoregraph.backends.protocol import Miss
from scoregraph.backends.reference import eager
from scoregraph.backends.reference.program import Reference
from scoregraph.backends.triton import TritonBackend
from scoregraph.graph import corrections, guidance, noise, prediction, samplers, schedules
from scoregraph.graph.builder import GraphBuilder
from scoregraph.graph.values import Array, Latent
from scoregraph.models import toy
from scoregraph.runtime import CompiledPlan

BATCH, STEPS = 3, 6
SEEDS = noise.sample_seeds(5, BATCH)
RNG = np.random.default_rng(0)
INPUTS = {
    "tilt": RNG.uniform(-1, 1, (BATCH, toy.TILT)).astype(np.float32),
    "known": RNG.normal(size=(BATCH, toy.WIDTH)).astype(np.float32),
    "mask": np.tile(np.arange(toy.WIDTH) % 2, (BATCH, 1)).astype(np.float32),
}


def build(rule=None, sampler=None, *, correct=None, inpaint=False, emits=False) -> GraphBuilder:
    net = network("toy", prediction=prediction.v())
    g = GraphBuilder("loops")
    tilt, null, x = g.condition(net, g.input("tilt")), g.condition(net, None), g.noise(net)
    if inpaint:
        mask, known = g.input("mask", Array("f32", (toy.WIDTH,))), g.input("known", Latent("vp", (toy.WIDTH,)))
        other = g.noise(net)
    with g.loop(schedules.scaled_linear(steps=STEPS, spacing="trailing"), x) as step:
        cond, uncond = g.score(net, step, tilt), g.score(net, step, null)
        pred = g.fuse(rule or guidance.cfg(2.0), cond, uncond)
        pred = pred if correct is None else g.correct(correct, pred, step)
        step.advance(sampler or samplers.ddim(), pred)
        if inpaint:
            step.inpaint(known, mask, other)
        if emits:
            g.emit("before", step.x)
            g.emit("x0", g.convert(pred, step, prediction.x0()))
            g.emit("gap", g.norm(cond, uncond))
            g.emit("log_prob", step.log_prob)
    g.output(x=step.result)
    return g


def likelihood() -> GraphBuilder:
    """The flow of a sample upwards, and beside it how it thins out."""
    net = network("toy", prediction=prediction.v())
    g = GraphBuilder("likelihood")
    tilt, nothing = g.condition(net, g.input("tilt")), g.constant(0.0, Latent("kappa", (1,)))
    with g.loop(
        schedules.cosine(steps=STEPS, ascending=True), g.input("known", Latent("vp", (toy.WIDTH,))), nothing
    ) as step:
        step.advance(samplers.heun(), g.score(net, step, tilt))
        step.advance(samplers.heun(), g.divergence(net, step, tilt), index=1)
    end, thinned = step.results
    g.output(end=end, thinned=thinned)
    return g


CASES = {
    "plain": lambda: build(sampler=samplers.dpmpp_2m()),
    "interval": lambda: build(guidance.cfg(3.0, low=0.3, high=5.0), samplers.heun()),
    "noise before the call": lambda: build(sampler=samplers.euler(s_churn=2.0)),
    "rescale": lambda: build(guidance.rescale(3.0, low=0.3, high=5.0), samplers.dpmpp_2m()),
    "apg": lambda: build(guidance.apg(3.0, momentum=-0.5, threshold=2.0), samplers.ddim(1.0)),
    "cfg++": lambda: build(guidance.cfg_pp(0.6)),
    "clamp": lambda: build(correct=corrections.clamp(), sampler=samplers.ddim(0.5)),
    "threshold": lambda: build(correct=corrections.dynamic_threshold(0.9), sampler=samplers.dpmpp_2m()),
    "inpaint": lambda: build(sampler=samplers.ddim(0.5), inpaint=True),
    "inpaint by sample": lambda: build(guidance.rescale(3.0), samplers.ddim(1.0), inpaint=True),
    "rk45": lambda: build(sampler=samplers.rk45()),
    "rk23": lambda: build(sampler=samplers.rk23(rtol=1e-3)),
    "adaptive heun": lambda: build(sampler=samplers.heun_adaptive()),
    "likelihood": likelihood,
    "emits": lambda: build(sampler=samplers.ddim(1.0), emits=True),
}


@pytest.fixture(scope="module")
def plans() -> dict[str, tuple[CompiledPlan, dict[str, np.ndarray]]]:
    """Every case compiled once for the reference, and what its graph means."""
    made = {}
    for name, case in CASES.items():
        graph = case().build()
        net = network("toy", prediction=prediction.v())
        plan = compile(graph, device="reference", networks={net.ref.fingerprint: net}, use_cache=False)
        inputs = {spec.name: INPUTS[spec.name] for spec in graph.inputs}
        made[name] = plan, inputs, eager.run(graph, {"toy": net}, inputs, SEEDS)
    return made


def worst(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float:
    assert got.keys() == want.keys()
    return max(float(np.linalg.norm(got[name] - want[name]) / np.linalg.norm(want[name])) for name in want)


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_reference_runs_what_the_graph_says(plans, case: str, planned: bool):
    plan, inputs, want = plans[case]
    program = Reference("float64", planned=planned).compile(plan.plan, plan._constants)
    error = worst(program.run(inputs, SEEDS), want)
    assert error < 3e-6, error


@pytest.mark.parametrize("case", ["interval", "noise before the call", "apg", "clamp", "inpaint by sample"])
def test_triton_runs_it_too(plans, case: str):
    pytest.importorskip("triton")
    plan, inputs, want = plans[case]
    program = TritonBackend(interpret=True).compile(plan.plan, plan._constants)
    error = worst(program.run(inputs, SEEDS), want)
    assert error < 3e-5, error
    reference = Reference().compile(plan.plan, plan._constants)
    reference.run(inputs, SEEDS)
    assert program.counters() == reference.counters()


@pytest.mark.parametrize(("case", "missing"), [("threshold", "quantile"), ("emits", "reduce")])
def test_triton_names_what_it_has_no_kernel_for(plans, case: str, missing: str):
    plan, _, _ = plans[case]
    found = {TritonBackend().supports(call) for segment in plan.plan.segments for call in segment.calls} - {None}
    assert found == {Miss(f"the thin Triton backend has no kernel for {missing} yet")}


def test_counters_of_an_interval(plans):
    """Heun on six steps is eleven calls; two branches where 0.3 <= kappa < 5, one elsewhere."""
    plan, inputs, _ = plans["interval"]
    program = Reference().compile(plan.plan, plan._constants)
    program.run(inputs, SEEDS)
    kappa = schedules.scaled_linear(steps=STEPS, spacing="trailing").grid().kappa
    called = [k for k in (*kappa[:-1], *kappa[1:]) if k > 0]
    counters = program.counters()
    assert counters["network_calls"] == len(called) == 11
    assert counters["branch_evaluations"] == sum(2 if 0.3 <= k < 5 else 1 for k in called)
