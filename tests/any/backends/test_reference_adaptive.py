"""Loops that choose their own steps, against scipy's solve_ivp."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from smooth_networks import BATCH, LABEL, SEEDS, WIDTH, network

from scoregraph.backends.reference import eager
from scoregraph.errors import LoopUnfinished
from scoregraph.graph import guidance, noise, prediction, samplers, schedules
from scoregraph.graph.builder import GraphBuilder
from scoregraph.graph.graph import Graph

CASES = {
    "flow": (network(prediction.flow(), "flow", "flow"), schedules.flow(steps=10, shift=2.0)),
    "vp": (network(prediction.eps(), "flow", "vp"), schedules.cosine(steps=10)),
    "kappa": (network(prediction.edm(), "c_noise", "kappa"), schedules.karras(steps=10, sigma_max=20.0)),
    "upwards": (network(prediction.v(), "flow", "vp"), schedules.cosine(steps=10, ascending=True)),
}


def graph(case: str, rule: samplers.Sampler) -> Graph:
    net, schedule = CASES[case]
    g = GraphBuilder("adaptive")
    label, blank = g.condition(net, g.input("label")), g.condition(net, None)
    with g.loop(schedule, g.noise(net)) as step:
        step.advance(rule, g.fuse(guidance.cfg(1.5), g.score(net, step, label), g.score(net, step, blank)))
    g.output(x=step.result)
    return g.build()


def by_scipy(case: str, method: str, rtol: float, atol: float) -> np.ndarray:
    """y = x / (alpha + sigma) over s = sigma / (alpha + sigma), with the same first step and tolerances."""
    net, schedule = CASES[case]
    grid = schedule.grid().in_space("flow")
    last = max(i for i, sigma in enumerate(grid.sigma) if sigma > 0)
    start, end = grid.sigma[0], grid.sigma[last]
    space = net.ref.latent.space
    pred = net.ref.prediction
    samples: list[np.ndarray] = []
    for i in range(BATCH):

        def clean(s: float, y: np.ndarray, i: int = i) -> tuple[np.ndarray, np.ndarray]:
            norm = {"flow": 1.0, "vp": np.hypot(1 - s, s), "kappa": 1 - s}[space]
            alpha, sigma = (1 - s) / norm, s / norm
            x = torch.from_numpy(y * (alpha + sigma))[None]
            t = s if net.ref.time == "flow" else 0.25 * np.log(s / (1 - s))
            label = torch.tensor([LABEL[i], 0.0])
            cond, blank = net(pred.c_in(alpha, sigma) * x.repeat(2, 1), t, label).numpy()
            p, q = pred.to_x0(alpha, sigma)
            x0 = p * x[0].numpy() + q * (1.5 * cond - 0.5 * blank)
            return x0, (x[0].numpy() - alpha * x0) / sigma

        def slope(s: float, y: np.ndarray, clean=clean) -> np.ndarray:
            x0, eps = clean(s, y)
            return eps - x0

        first = grid.in_space(space)
        z = noise.normals(SEEDS[i : i + 1], 0, 0, WIDTH)[0].astype(np.float64)
        y = (1.0 if space == "vp" else first.sigma[0]) * z / (first.alpha[0] + first.sigma[0])
        solved = solve_ivp(
            slope, (start, end), y, method=method, rtol=rtol, atol=atol, first_step=0.02 * abs(end - start)
        )
        assert solved.success
        y = solved.y[:, -1]
        samples.append(clean(end, y)[0] if grid.sigma[-1] == 0 else y * (first.alpha[-1] + first.sigma[-1]))
    return np.stack(samples)


@pytest.mark.parametrize(("method", "rule"), [("RK45", samplers.rk45), ("RK23", samplers.rk23)])
@pytest.mark.parametrize("case", CASES)
def test_the_steps_are_scipys(case: str, method: str, rule: type[samplers.Sampler]):
    """Step by step the same: equal to rounding, not to the tolerance."""
    net = CASES[case][0]
    ours = eager.run(graph(case, rule(rtol=1e-4, atol=1e-6)), {"toy": net}, {"label": LABEL}, SEEDS)["x"]
    np.testing.assert_allclose(ours, by_scipy(case, method, 1e-4, 1e-6), rtol=1e-8, atol=1e-9)


def test_a_low_order_comes_to_the_same_end():
    net = CASES["vp"][0]
    low, high = (
        eager.run(graph("vp", rule), {"toy": net}, {"label": LABEL}, SEEDS)["x"]
        for rule in (samplers.heun_adaptive(rtol=1e-5, atol=1e-6), samplers.rk45(rtol=1e-8, atol=1e-10))
    )
    np.testing.assert_allclose(low, high, rtol=2e-3, atol=2e-3)


def test_a_sample_does_not_see_its_batch_and_too_many_rounds_are_an_error():
    net = CASES["flow"][0]
    built = graph("flow", samplers.rk23())
    together = eager.run(built, {"toy": net}, {"label": LABEL}, SEEDS)["x"]
    alone = eager.run(built, {"toy": net}, {"label": LABEL[1:2]}, SEEDS[1:2])["x"]
    np.testing.assert_array_equal(alone[0], together[1])
    with pytest.raises(LoopUnfinished, match="SG610"):
        eager.run(graph("flow", samplers.rk23(max_rounds=2)), {"toy": net}, {"label": LABEL}, SEEDS)
