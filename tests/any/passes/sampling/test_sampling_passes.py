"""Graph passes: what they rewrite, what they refuse and why, and that every stage samples what the graph says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toys

import scoregraph as sg
from scoregraph.backends.reference import eager
from scoregraph.graph import energies, guidance, prediction, samplers, schedules
from scoregraph.graph import nodes as n
from scoregraph.graph.builder import GraphBuilder
from scoregraph.graph.graph import Graph
from scoregraph.graph.rewrite import rewrite
from scoregraph.graph.values import CondInput, Latent, NetRef, Scalar
from scoregraph.graph.verify import verify
from scoregraph.passes.base import Fuel
from scoregraph.passes.sampling.batch_branches import BatchBranches
from scoregraph.passes.sampling.drop_dead_branches import DropDeadBranches
from scoregraph.passes.sampling.fold_step import FoldStep
from scoregraph.passes.sampling.fold_tables import FoldTables
from scoregraph.passes.sampling.pipeline import SAMPLING_PASSES

SHAPE = (2, 3)
SEEDS = np.array([3, 2**63 + 1, 7], np.uint64)
TILT = np.array([0.3, -0.8, 0.1], np.float32)


def ref(name: str, predicted: prediction.Prediction | None = None, space: str = "vp", time: str = "timestep") -> NetRef:
    cond = CondInput("tilt", (), low=-1.0, high=1.0, null=0.0)
    return NetRef(name, name.encode().hex()[:16], Latent(space, SHAPE), predicted or prediction.eps(), time, (cond,))


A, OTHER = ref("a"), ref("b")


def answers(factor: float, scale: float) -> Callable[..., torch.Tensor]:
    """A smooth network: tanh of state, time and condition."""
    return lambda x, t, tilt: (
        0.6 * torch.tanh(factor * x + (scale * t + tilt)[:, None, None]) + 0.2 * x.flip(-1) * torch.cos(x)
    )


def networks(graph: Graph) -> dict[str, SimpleNamespace]:
    made: dict[str, SimpleNamespace] = {}
    for net in graph.nets:
        scale = 0.001 if net.time in ("timestep", "flow1000") else 0.1
        made[net.name] = SimpleNamespace(score=answers(1.0 + len(made), scale), encoder=None, heads={})
    return made


def sample(graph: Graph, inputs: dict[str, np.ndarray] | None = None) -> np.ndarray:
    given = {"tilt": TILT, **(inputs or {})}
    return eager.run(graph, networks(graph), {i.name: given[i.name] for i in graph.inputs}, SEEDS)["x"]


def guided(net=A, rule=None, schedule=None, sampler=None) -> Graph:
    """The condition and its absence."""
    g = GraphBuilder("test")
    level, blank = g.condition(net, g.input("tilt")), g.condition(net, None)
    with g.loop(schedule or schedules.linear(steps=5), g.noise(net)) as step:
        scores = g.score(net, step, level), g.score(net, step, blank)
        step.advance(sampler or samplers.ddim(), g.fuse(rule or guidance.cfg(3.0), *scores))
    g.output(x=step.result)
    return g.build()


def fusion(rule, branches) -> Graph:
    """``branches(g, step)`` gives the scores that are fused."""
    g = GraphBuilder("test")
    with g.loop(schedules.linear(steps=5), g.noise(A)) as step:
        step.advance(samplers.ddim(), g.fuse(rule, *branches(g, step)))
    g.output(x=step.result)
    return g.build()


def two_networks() -> Graph:
    """a[c], a[null], b[c] under weights that sum to one; a's branches are neighbours, b's stands alone."""

    def branches(g, step):
        level = g.condition(A, g.input("tilt"))
        return g.score(A, step, level), g.score(A, step, g.condition(A, None)), other(g, step)

    return fusion(guidance.weighted(3, (2.0, -1.5, 0.5)), branches)


def alternating() -> Graph:
    """a[c], b[c], a[null]: no two neighbours share a network."""

    def branches(g, step):
        level = g.condition(A, g.input("tilt"))
        return g.score(A, step, level), other(g, step), g.score(A, step, g.condition(A, None))

    return fusion(guidance.weighted(3, (2.0, 0.5, -1.5)), branches)


def other(g, step):
    return g.score(OTHER, step, g.condition(OTHER, 0.5))


V, X0 = ref("v", prediction.v()), ref("x0", prediction.x0())
EDM, FLOW = ref("edm", prediction.edm(), "kappa", "c_noise"), ref("flow", prediction.flow(), "flow", "flow")
SAMPLINGS: dict[str, Callable[[], Graph]] = {
    "ddim": guided,
    "ddim, eta 0.7": lambda: guided(sampler=samplers.ddim(eta=0.7)),
    "dpmpp_2m on scaled_linear, v": lambda: guided(V, None, schedules.scaled_linear(steps=6), samplers.dpmpp_2m()),
    "cosine, x0": lambda: guided(X0, schedule=schedules.cosine(steps=4)),
    "heun on karras, edm": lambda: guided(EDM, None, schedules.karras(steps=4), samplers.heun()),
    "euler on karras, edm": lambda: guided(EDM, None, schedules.karras(steps=4), samplers.euler()),
    "flow euler": lambda: guided(FLOW, None, schedules.flow(steps=6, shift=3.0), samplers.flow_euler()),
    "interval": lambda: guided(rule=guidance.cfg(5.0, low=0.3, high=2.0)),
    "two networks": two_networks,
    "two networks, alternating": alternating,
}


@pytest.mark.parametrize("case", SAMPLINGS)
def test_every_stage_samples_what_the_untouched_graph_samples(case):
    graph = SAMPLINGS[case]()
    expected = sample(graph)
    assert np.isfinite(expected).all()
    for each, stage in zip(SAMPLING_PASSES, ("tabled", "folded", "batched", "batched", "batched"), strict=True):
        result = each.run(graph)
        graph = result.module
        verify(graph, stage)
        assert relative_error(sample(graph), expected) <= 1e-9, f"after {each.name}"
        again = each.run(graph)
        assert again.module is graph, f"{each.name} is not idempotent"
        assert again.rewrites == 0


def passes_until(last: type, graph: Graph) -> Graph:
    """What ``last`` sees in the pipeline."""
    for each in SAMPLING_PASSES:
        if isinstance(each, last):
            return graph
        graph = each.run(graph).module
    raise AssertionError(f"{last} is not in the pipeline")


def the(kind: type[n.Node], graph: Graph) -> n.Node:
    (found,) = [node for node in graph.nodes if isinstance(node, kind)]
    return found


# --- fold-tables ---------------------------------------------------------------------------------


def test_a_step_gets_a_table():
    result = FoldTables().run(guided(sampler=samplers.dpmpp_2m()))
    step = the(n.SamplerStep, result.module)
    assert step.table == samplers.dpmpp_2m().table(schedules.linear(steps=5), prediction.eps(), "timestep", "vp")
    assert (result.rewrites, result.counters, result.misses) == (1, {"micro_steps": 5}, ())
    table = "table @0 registers=[x, x0] branches=1 init_scale=1.0\n  | "
    assert table in str(result.module)
    assert "step(dpmpp_2m(correction='midpoint'), %5, [%9], %6, site=1, table=@0)" in str(result.module)


def test_networks_that_read_time_differently_have_columns_of_their_own():
    net = ref("sigma", time="sigma")

    def branches(g, step):
        return tuple(g.score(each, step, g.condition(each, 0.5)) for each in (A, net))

    result = FoldTables().run(fusion(guidance.cfg(3.0), branches))
    table = the(n.SamplerStep, result.module).table
    kappa = schedules.linear(steps=len(table.rows)).grid().kappa
    np.testing.assert_allclose(table.values("t.sigma"), kappa[:-1])
    assert table.values("t")[0] > 100


def test_a_network_without_time_is_told_0_beside_one_that_has_it():
    net = ref("timeless", time="none")

    def branches(g, step):
        return tuple(g.score(each, step, g.condition(each, 0.5)) for each in (A, net))

    table = the(n.SamplerStep, FoldTables().run(fusion(guidance.cfg(3.0), branches)).module).table
    assert set(table.values("t.none")) == {0.0}


def test_networks_with_other_answers_need_a_conversion_and_get_their_own_scale():
    net = ref("edm", prediction.edm())

    def branches(g, step):
        one = g.score(A, step, g.condition(A, 0.5))
        return one, g.convert(g.score(net, step, g.condition(net, 0.5)), step, prediction.eps())

    table = the(n.SamplerStep, FoldTables().run(fusion(guidance.cfg(3.0), branches)).module).table
    at = zip(table.values("alpha"), table.values("sigma"), strict=True)
    np.testing.assert_allclose(table.values("c_in.edm"), [prediction.edm().c_in(a, s) for a, s in at])
    assert set(table.values("c_in")) == {1.0}


# --- fold-step -----------------------------------------------------------------------------------


def test_guidance_becomes_columns_of_the_table():
    before = passes_until(FoldStep, guided(rule=guidance.cfg(3.0)))
    result = FoldStep().run(before)
    step, old = the(n.SamplerStep, result.module), the(n.SamplerStep, before)
    assert not any(isinstance(node, n.FusedScore) for node in result.module.nodes)
    assert step.table.branches == 2
    assert step.formula is None
    assert result.counters == {"answers": 2}
    for row in range(5):
        (b,), (plain,) = (table.matrices(row)[1] for table in (step.table, old.table))
        np.testing.assert_allclose(b, plain[0] * np.array([3.0, -2.0]), rtol=1e-15)


def test_nested_fusions_and_conversions_are_one_sum():
    net = ref("velocity", prediction.v())

    def branches(g, step):
        inner = [g.score(A, step, g.condition(A, level)) for level in (0.5, None)]
        other = g.convert(g.score(net, step, g.condition(net, 0.5)), step, prediction.eps())
        return g.fuse(guidance.cfg(2.0), *inner), other

    graph = fusion(guidance.weighted(2, (0.75, 0.25)), branches)
    folded = FoldStep().run(passes_until(FoldStep, graph)).module
    assert the(n.SamplerStep, folded).table.branches == 3
    np.testing.assert_allclose(sample(folded), sample(graph), rtol=1e-10)


def test_a_scale_given_at_run_time_becomes_a_program_per_sample():
    g = GraphBuilder("test")
    with g.loop(schedules.linear(steps=3), g.noise(A)) as step:
        scores = g.score(A, step, g.condition(A, 0.5)), g.score(A, step, g.condition(A, None))
        pred = g.fuse(guidance.cfg(3.0), *scores, scale=g.input("scale", Scalar("per-sample")))
        step.advance(samplers.ddim(), pred)
    g.output(x=step.result)
    step = the(n.SamplerStep, FoldStep().run(passes_until(FoldStep, g.build())).module)
    assert [extra.name for extra in step.extras] == ["scale"]
    assert step.formula.coefficients
    assert not step.formula.statistics


def test_a_gradient_is_an_answer_with_a_gain_of_its_own():
    g = GraphBuilder("test")
    with g.loop(schedules.linear(steps=3), g.noise(A)) as step:
        pull = g.energy(energies.energy(2.0), step)
        step.advance(samplers.ddim(), g.fuse(guidance.single(), g.score(A, step, g.condition(A, 0.5)), grads=(pull,)))
    g.output(x=step.result)
    table = the(n.SamplerStep, FoldStep().run(passes_until(FoldStep, g.build())).module).table
    for row, sigma in enumerate(table.values("sigma")):
        answer, gradient = table.matrices(row)[1][0]
        assert gradient == pytest.approx(2.0 * sigma * answer, rel=1e-12)  # eps' = eps + sigma * scale * gradient


def test_what_is_not_affine_says_why():
    def branches(g, step):
        clamped = g.correct(sg.corrections.clamp(), g.score(A, step, g.condition(A, 0.5)), step)
        return clamped, g.score(A, step, g.condition(A, None))

    (miss,) = FoldStep().run(passes_until(FoldStep, fusion(guidance.cfg(3.0), branches))).misses
    assert miss.reason == "a correction is not linear: it may only stand around the whole prediction"

    def other_state(g, step):
        cond = g.condition(A, None)
        return g.score(A, step, cond), g.score(A, step, cond, x=g.input("start", A.latent))

    (miss,) = FoldStep().run(passes_until(FoldStep, fusion(guidance.cfg(3.0), other_state))).misses
    assert miss.reason == "a network is evaluated on something else than the state of the step"


def test_folding_twice_changes_nothing():
    once = FoldStep().run(passes_until(FoldStep, guided())).module
    assert FoldStep().run(once).module is once


# --- batch-branches ------------------------------------------------------------------------------


def test_branches_of_one_network_become_one_call():
    result = BatchBranches().run(passes_until(BatchBranches, guided()))
    score = the(n.Score, result.module)
    assert len(score.conds) == 2
    assert result.counters == {"network_calls_saved": 1}
    assert "score(a, %5, %6, [%2, %3])" in str(result.module)
    assert BatchBranches().run(result.module).module is result.module


def test_scores_of_other_networks_stay_apart_and_say_why():
    result = BatchBranches().run(passes_until(BatchBranches, two_networks()))
    assert [str(miss) for miss in result.misses] == ["score of b: its network differs from a"]
    assert [len(s.conds) for s in result.module.nodes if isinstance(s, n.Score)] == [2, 1]


def test_scores_that_do_not_stand_side_by_side_are_merged_too():
    before = passes_until(BatchBranches, alternating())
    after = BatchBranches().run(before)
    assert sorted(len(s.conds) for s in after.module.nodes if isinstance(s, n.Score)) != [1, 1, 1]
    np.testing.assert_allclose(sample(after.module), sample(before), rtol=1e-12)


def test_branches_keep_their_order():
    def branches(g, step):
        return tuple(g.score(A, step, g.condition(A, value)) for value in (0.1, 0.2, 0.3))

    graph = fusion(guidance.weighted(3, (3.0, -1.0, -1.0)), branches)
    merged = the(n.Score, BatchBranches().run(passes_until(BatchBranches, graph)).module)
    assert [cond.values[0].value for cond in merged.conds] == [0.1, 0.2, 0.3]


def test_fuel_limits_the_merges():
    def branches(g, step):
        return tuple(g.score(A, step, g.condition(A, value)) for value in (g.input("tilt"), 0.25, None))

    graph = passes_until(BatchBranches, fusion(guidance.edit(1.5, 3.0), branches))
    assert BatchBranches().run(graph, Fuel(0)).module is graph
    once = BatchBranches().run(graph, Fuel(1))
    assert sorted(len(s.conds) for s in once.module.nodes if isinstance(s, n.Score)) == [1, 2]
    np.testing.assert_allclose(sample(once.module), sample(graph), rtol=1e-12)


# --- drop-dead-branches --------------------------------------------------------------------------


def test_rows_that_read_less_are_a_variant():
    graph = passes_until(DropDeadBranches, guided(rule=guidance.cfg(3.0, start=0.2, stop=0.6)))
    result = DropDeadBranches().run(graph)
    table = the(n.SamplerStep, result.module).table
    assert table.values("variant") == (0.0, 1.0, 1.0, 0.0, 0.0)
    assert table.values("live") == (1.0, 3.0, 3.0, 1.0, 1.0)
    assert result.counters == {"answers_read": 7, "answers_saved": 3}
    assert DropDeadBranches().run(result.module).module is result.module
    assert DropDeadBranches().run(graph, Fuel(0)).module is graph


def test_nothing_is_dropped_near_the_neutral_value():
    for scale, read in ((1.0, 5), (1.0 + 1e-9, 10)):
        graph = passes_until(DropDeadBranches, guided(rule=guidance.cfg(scale)))
        assert DropDeadBranches().run(graph).counters["answers_read"] == read


# --- adaptive loops ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        guidance.cfg(3.0, start=0.2, stop=0.8),
        guidance.cfg(3.0, low=0.5, high=0.51),  # between two points of the schedule
        guidance.cfg_steps((1.0, 2.0, 3.0)),
        guidance.cfg_pp(0.5),
        guidance.rescale(3.0),
    ],
    ids=str,
)
def test_guidance_that_changes_along_the_way_is_refused_by_an_adaptive_sampler(rule):
    net = toys.network()
    g = GraphBuilder("adaptive")
    cond, null = g.condition(net, g.input("tilt")), g.condition(net, None)
    with g.loop(schedules.linear(steps=5), g.noise(net)) as step:
        step.advance(samplers.rk23(), g.fuse(rule, g.score(net, step, cond), g.score(net, step, null)))
    g.output(x=step.result)
    with pytest.raises(sg.ScoregraphError, match=r"(?s)SG402.*same weights everywhere"):
        sg.compile(g, device="reference", use_cache=False)


# --- whole plans on captured networks -------------------------------------------------------------


def compiled_cases() -> dict[str, Callable[[], GraphBuilder]]:
    def fused() -> GraphBuilder:
        one, two = toys.network(), toys.network("second", seed=1)
        g = GraphBuilder("fused")
        tilt = g.input("tilt")
        with g.loop(schedules.scaled_linear(steps=5), g.noise(one)) as step:
            scores = [
                g.score(one, step, g.condition(one, tilt)),
                g.score(two, step, g.condition(two, 0.25)),
                g.score(one, step, g.condition(one, None)),
            ]
            step.advance(samplers.dpmpp_2m(), g.fuse(guidance.weighted(3, (2.0, 0.5, -1.5)), *scores))
        g.output(sample=step.result)
        return g

    def two_loops() -> GraphBuilder:
        net = toys.network()
        g = GraphBuilder("two loops")
        cond = g.condition(net, g.input("tilt"))
        with g.loop(schedules.linear(steps=4), g.noise(net)) as first:
            first.advance(samplers.ddim(eta=0.5), g.score(net, first, cond))
        with g.loop(schedules.linear(steps=3), first.result) as second:
            second.advance(samplers.ddim(), g.score(net, second, cond))
        g.output(sample=second.result, first=first.result)
        return g

    def from_a_latent() -> GraphBuilder:
        net = toys.network()
        g = GraphBuilder("from a latent")
        with g.loop(schedules.linear(steps=4), g.input("start", net.latent)) as step:
            step.advance(samplers.ddim(eta=1.0), g.score(net, step, g.condition(net, None)))
        g.output(sample=step.result)
        return g

    return {
        "dpmpp_2m": toys.guided,
        "ddim with noise": lambda: toys.guided(sampler=samplers.ddim(eta=0.8)),
        "guidance in an interval": lambda: toys.guided(scale=4.0),
        "two networks in one fusion": fused,
        "two loops": two_loops,
        "from a latent": from_a_latent,
    }


@pytest.mark.parametrize("case", compiled_cases())
def test_a_plan_samples_what_its_untouched_graph_samples(case):
    builder = compiled_cases()[case]()
    graph = builder.build()
    plan = sg.compile(builder, device="reference", use_cache=False)
    rng = np.random.default_rng(0)
    given = {
        "tilt": rng.uniform(-1, 1, (3, 4)).astype(np.float32),
        "start": rng.standard_normal((3, 16)).astype(np.float32),
    }
    given = {node.name: given[node.name] for node in graph.inputs}
    expected = eager.run(graph, {net.ref.name: net for net in builder.networks}, given, SEEDS)
    made = plan.run(seeds=SEEDS, **given)
    assert made.keys() == expected.keys()
    for name, value in made.items():
        assert relative_error(value, expected[name]) <= 2e-6, name

    # The tables of a plan are float32, everything else was float64: with such tables the two agree to rounding.
    for each in SAMPLING_PASSES:
        graph = each.run(graph).module
    graph, tables = rewrite(graph, single_precision)
    assert tables
    exact = eager.run(graph, {net.ref.name: net for net in builder.networks}, given, SEEDS)
    for name, value in made.items():
        assert relative_error(value, exact[name]) <= 1e-9, name


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def single_precision(node: n.Node) -> n.Node | None:
    if not isinstance(node, n.SamplerStep) or node.table is None:
        return None
    rows = tuple(tuple(row) for row in node.table.float32().astype(float).tolist())
    table = replace(node.table, rows=rows)
    return n.SamplerStep(node.rule, node.state, node.preds, node.time, node.site, table)
