"""Graphs interpreted node by node: against a loop by hand, and unchanged by the passes over sampling graphs."""

import numpy as np
import pytest
import torch
from smooth_networks import LABEL, SEEDS, STEPS, WIDTH, FakeNet, network

from scoregraph.backends.reference import eager
from scoregraph.errors import MissingInput, UncoveredNode
from scoregraph.graph import caches, guidance, noise, prediction, samplers, schedules
from scoregraph.graph import nodes as n
from scoregraph.graph.builder import GraphBuilder
from scoregraph.graph.graph import Graph
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule
from scoregraph.graph.values import Scalar
from scoregraph.passes.sampling.pipeline import SAMPLING_PASSES


def guided_graph(net: FakeNet, schedule: Schedule, sampler: Sampler, rule: guidance.Guidance) -> Graph:
    g = GraphBuilder("guided")
    level, blank = g.condition(net, g.input("label")), g.condition(net, None)
    with g.loop(schedule, g.noise(net)) as step:
        step.advance(sampler, g.fuse(rule, g.score(net, step, level), g.score(net, step, blank)))
    g.output(x=step.result, squared=g.decode(net, step.result))
    return g.build()


def run(graph: Graph, net: FakeNet, **options) -> dict[str, np.ndarray]:
    return eager.run(graph, {"toy": net}, {"label": LABEL}, SEEDS, **options)


CASES = [
    (samplers.ddim(0.7), schedules.scaled_linear(steps=STEPS, offset=1), prediction.eps(), "flow", "vp"),
    (samplers.euler(), schedules.karras(steps=STEPS), prediction.edm(), "c_noise", "kappa"),
    (samplers.heun(), schedules.karras(steps=STEPS), prediction.edm(), "c_noise", "kappa"),
    (samplers.heun(), schedules.cosine(steps=STEPS), prediction.v(), "flow", "vp"),
    (samplers.dpmpp_2m(), schedules.karras(steps=STEPS), prediction.x0(), "c_noise", "kappa"),
    (samplers.dpmpp_2m(), schedules.flow(steps=STEPS, shift=3), prediction.flow(), "flow", "flow"),
    (samplers.flow_euler(), schedules.flow(steps=STEPS), prediction.flow(), "flow", "flow"),
    (samplers.consistency(), schedules.karras(steps=STEPS), prediction.consistency(), "c_noise", "kappa"),
    (samplers.euler(), schedules.karras(steps=STEPS), prediction.edm(), "none", "kappa"),
    (samplers.ddim(), schedules.linear(steps=4, spacing="trailing", zero_snr=True), prediction.v(), "flow", "vp"),
]


@pytest.mark.parametrize("rule", [guidance.cfg(3.0), guidance.cfg(2.0, low=0.5, high=5.0)], ids=str)
@pytest.mark.parametrize(("sampler", "schedule", "pred", "time", "space"), CASES, ids=lambda value: str(value))
def test_every_pass_keeps_what_the_graph_means(
    sampler: Sampler, schedule: Schedule, pred: Prediction, time: str, space: str, rule: guidance.Guidance
):
    """The papers' formulas on the graph as built, and the tables on the graph after each pass: one result."""
    net = network(pred, time, space)
    graph = guided_graph(net, schedule, sampler, rule)
    expected = run(graph, net)
    assert np.isfinite(expected["x"]).all()
    np.testing.assert_array_equal(expected["squared"], expected["x"] ** 2)
    rewrites = 0
    for step in SAMPLING_PASSES:
        result = step.run(graph)
        rewrites += result.rewrites
        graph = result.module
        got = run(graph, net)
        assert np.abs(got["x"] - expected["x"]).max() < 1e-10 * np.abs(expected["x"]).max(), step.name
    assert rewrites > 1


def test_a_graph_by_hand():
    """DDIM with noise and guidance, written out in numpy."""
    net = network(prediction.eps(), "flow", "vp")
    schedule = schedules.scaled_linear(steps=STEPS, offset=1)
    ours = run(guided_graph(net, schedule, samplers.ddim(1.0), guidance.cfg(3.0)), net)["x"]

    w, u = (p.detach().double().numpy() for p in net.score.parameters())
    spread = np.linspace(-1, 1, WIDTH)
    grid = schedule.grid()

    def score(x: np.ndarray, t: float, label: np.ndarray) -> np.ndarray:
        return 0.3 * x + 0.7 * np.tanh(x @ w + t * u + label[:, None] * spread)

    x = noise.normals(SEEDS, 0, 0, WIDTH).astype(np.float64)
    for i in range(STEPS):
        a, s, a1, s1 = grid.alpha[i], grid.sigma[i], grid.alpha[i + 1], grid.sigma[i + 1]
        t = s / (a + s)
        eps = 3.0 * score(x, t, LABEL) - 2.0 * score(x, t, 0 * LABEL)
        fresh = s1 / s * np.sqrt(1 - a**2 / a1**2)
        x = a1 * (x - s * eps) / a + np.sqrt(s1**2 - fresh**2) * eps + fresh * noise.normals(SEEDS, 1, i, WIDTH)
    np.testing.assert_allclose(ours, x, rtol=1e-9)


def test_float32_is_close_and_a_sample_does_not_see_its_batch():
    net = network(prediction.edm(), "c_noise", "kappa")
    graph = guided_graph(net, schedules.karras(steps=STEPS), samplers.ddim(1.0), guidance.cfg(3.0))
    exact, rounded = run(graph, net)["x"], run(graph, net, dtype=torch.float32)["x"]
    assert rounded.dtype == np.float32
    assert np.abs(rounded - exact).max() < 1e-5 * np.abs(exact).max()
    alone = eager.run(graph, {"toy": net}, {"label": LABEL[2:]}, SEEDS[2:])["x"]
    np.testing.assert_allclose(alone[0], exact[2], rtol=1e-12)


def test_a_scale_per_sample_is_each_scale_alone():
    net = network(prediction.v(), "flow", "vp")
    schedule = schedules.cosine(steps=STEPS)
    g = GraphBuilder("scaled")
    level, blank = g.condition(net, g.input("label")), g.condition(net, None)
    with g.loop(schedule, g.noise(net)) as step:
        answers = (g.score(net, step, level), g.score(net, step, blank))
        mixed = g.fuse(guidance.cfg(1.0), *answers, scale=g.input("scale", Scalar("per-sample")))
        step.advance(samplers.ddim(), mixed)
    g.output(x=step.result)
    scales = np.array([1.0, 2.5, 7.0])
    ours = eager.run(g.build(), {"toy": net}, {"label": LABEL, "scale": scales}, SEEDS)["x"]
    for i, scale in enumerate(scales):
        fixed = run(guided_graph(net, schedule, samplers.ddim(), guidance.cfg(float(scale))), net)["x"]
        np.testing.assert_allclose(ours[i], fixed[i], rtol=1e-10)


def test_previews_of_x0_are_recorded_at_every_step():
    net = network(prediction.eps(), "flow", "vp")
    schedule = schedules.cosine(steps=STEPS)
    g = GraphBuilder("previews")
    level = g.condition(net, g.input("label"))
    with g.loop(schedule, g.noise(net)) as step:
        eps = g.score(net, step, level)
        for pred in (prediction.x0(), prediction.v(), prediction.edm()):
            g.emit(pred.name, g.convert(eps, step, pred))
        g.emit("state", step.x)
        step.advance(samplers.ddim(), eps)
    g.output(x=step.result)
    out = run(g.build(), net)
    grid = schedule.grid()
    for i in range(STEPS):
        alpha, sigma = grid.alpha[i], grid.sigma[i]
        x, x0 = out["state"][:, i], out["x0"][:, i]
        eps = (x - alpha * x0) / sigma
        np.testing.assert_allclose(out["v"][:, i], alpha * eps - sigma * x0, rtol=1e-8, atol=1e-8)
        p, q = prediction.edm().to_x0(alpha, sigma)
        np.testing.assert_allclose(p * x + q * out["edm"][:, i], x0, rtol=1e-8, atol=1e-8)
    # The last step of DDIM ends on the last preview.
    np.testing.assert_allclose(out["x0"][:, -1], out["x"], rtol=1e-12)


def test_refusals_name_the_place():
    net = network(prediction.eps(), "flow", "vp")
    graph = guided_graph(net, schedules.cosine(steps=2), samplers.ddim(), guidance.cfg(3.0))
    with pytest.raises(MissingInput, match=r"SG601.*'label'"):
        eager.run(graph, {"toy": net}, {}, SEEDS)
    g = GraphBuilder("cached")
    level = g.condition(net, g.input("label"))
    with g.loop(schedules.cosine(steps=2), g.noise(net)) as step:
        step.advance(samplers.ddim(), g.cache(caches.every(2), g.score(net, step, level)))
    g.output(x=step.result)
    cached = g.build()
    assert any(isinstance(node, n.Cache) for node in cached.nodes)
    with pytest.raises(UncoveredNode, match=r"(?s)SG402.*cache.*at   test_reference_eager\.py:\d+"):
        run(cached, net)
