"""Every sampler inside Rust against two oracles in float64: the papers' formulas on the graph, and the plan in torch.

The graph that is interpreted was touched by no pass; the plan of the reference backend went the same way as the CPU's.
"""

from __future__ import annotations

import numpy as np
import pytest
from subjects import captured_once, error, sampling, toy_network
from torch import Tensor, nn

import scoregraph as sg
from scoregraph.backends.reference import eager
from scoregraph.graph import guidance, noise, prediction, samplers, schedules
from scoregraph.graph.guidance import Guidance
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule
from scoregraph.graph.values import Latent, Space, TimeConvention
from scoregraph.models import network, toy

pytestmark = pytest.mark.native

STEPS, BATCH = 20, 3
SEEDS = noise.sample_seeds(2**64 - 2, BATCH)
LEVELS = [np.random.default_rng(i).uniform(-1, 1, (BATCH, toy.TILT)).astype(np.float32) for i in range(3)]

KARRAS = schedules.karras(steps=STEPS)
LINEAR = schedules.linear(steps=STEPS)
SCALED = schedules.scaled_linear(steps=STEPS, offset=1)
COSINE = schedules.cosine(steps=STEPS)
ZERO_SNR = schedules.linear(steps=STEPS, spacing="trailing", zero_snr=True)
CURVED = schedules.scaled_linear(steps=STEPS, sigmas="karras", skip=4)
DISTILLED = schedules.scaled_linear(steps=4, spacing="distilled", final="sigma_min")
SHIFTED = schedules.flow(steps=STEPS, shift=3.0)

CASES: list[tuple[Sampler, Schedule, Prediction, TimeConvention, Space]] = [
    (samplers.ddim(), LINEAR, prediction.eps(), "timestep", "vp"),
    (samplers.ddim(1.0), LINEAR, prediction.eps(), "timestep", "vp"),
    (samplers.ddim(1.0), SCALED, prediction.v(), "timestep", "vp"),
    (samplers.ddim(), ZERO_SNR, prediction.v(), "timestep", "vp"),
    (samplers.ddim(1.0), COSINE, prediction.x0(), "timestep", "vp"),
    (samplers.ddim(1.0), KARRAS, prediction.edm(), "c_noise", "kappa"),
    (samplers.euler(), KARRAS, prediction.edm(), "c_noise", "kappa"),
    (samplers.euler(), SCALED, prediction.eps(), "timestep", "kappa"),
    (samplers.euler(), LINEAR, prediction.score(), "timestep", "vp"),
    (samplers.heun(), KARRAS, prediction.edm(), "c_noise", "kappa"),
    (samplers.heun(), schedules.exponential(steps=STEPS), prediction.x0(), "c_noise", "kappa"),
    (samplers.heun(), COSINE, prediction.v(), "flow", "vp"),
    (samplers.dpmpp_2m(), SCALED, prediction.eps(), "timestep", "vp"),
    (samplers.dpmpp_2m(), KARRAS, prediction.edm(), "c_noise", "kappa"),
    (samplers.dpmpp_2m(), SHIFTED, prediction.flow(), "flow", "flow"),
    (samplers.dpmpp_2m(correction="heun"), LINEAR, prediction.v(), "timestep", "vp"),
    (samplers.dpmpp_2m(correction="heun"), KARRAS, prediction.x0(), "c_noise", "kappa"),
    (samplers.flow_euler(), schedules.flow(steps=STEPS), prediction.flow(), "flow", "flow"),
    (samplers.flow_euler(), SHIFTED, prediction.flow(), "flow1000", "flow"),
    (samplers.consistency(), schedules.karras(steps=STEPS), prediction.consistency(), "c_noise", "kappa"),
    (samplers.consistency(), LINEAR, prediction.v(), "timestep", "vp"),
    (samplers.euler(s_churn=5.0), SCALED, prediction.eps(), "timestep", "vp"),
    (samplers.euler(s_churn=5.0, order="after"), KARRAS, prediction.edm(), "c_noise", "kappa"),
    (samplers.heun(s_churn=40.0, s_tmin=0.05, s_tmax=50.0), KARRAS, prediction.edm(), "c_noise", "kappa"),
    (samplers.kdpm2(), SCALED, prediction.eps(), "timestep", "vp"),
    (samplers.dpmpp_2s_ancestral(), CURVED, prediction.v(), "timestep", "vp"),
    (samplers.dpmpp_sde(), KARRAS, prediction.edm(), "c_noise", "kappa"),
    (samplers.lcm(), DISTILLED, prediction.eps(), "timestep", "vp"),
    (samplers.tcd(0.3), DISTILLED, prediction.v(), "timestep", "vp"),
    (samplers.flow_ancestral(), SHIFTED, prediction.flow(), "flow1000", "flow"),
    (samplers.scm(), schedules.trigflow(steps=2, middle=1.3), prediction.trigflow(), "angle", "vp"),
    (
        samplers.reverse_sde("sub_vp", corrections=1),
        schedules.vp_sde(steps=STEPS),
        prediction.score(),
        "timestep",
        "vp",
    ),
]


def compare(
    case: tuple[Sampler, Schedule, Prediction, TimeConvention, Space], rule: Guidance
) -> tuple[float, float, sg.CompiledPlan]:
    """The errors of the CPU to the interpreted graph and to the reference's plan, and the CPU's plan."""
    sampler, schedule, pred, time, space = case
    net = toy_network(pred, time, space)
    graph = sampling(net, schedule, sampler, rule).build()
    given = {f"cond{i}": LEVELS[i] for i in range(rule.branches - 1)}
    options = {"networks": {net.ref.fingerprint: net}, "use_cache": False}
    plan = sg.compile(graph, device="cpu", **options)
    got = plan.run(seeds=SEEDS, **given)["x"]
    interpreted = eager.run(graph, {net.ref.name: net}, given, SEEDS)["x"]
    planned = sg.compile(graph, device="reference", **options).run(seeds=SEEDS, **given)["x"]
    other = eager.run(graph, {net.ref.name: net}, {**given, "cond0": -LEVELS[0]}, SEEDS)["x"]
    assert error(other, interpreted) > 1e-2, "a trajectory on which the condition has no say tells nothing"
    return error(got, interpreted), error(got, planned), plan


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case[:3])))
def test_every_sampler_is_the_reference(case):
    """Twenty steps with guidance 3."""
    to_graph, to_plan, plan = compare(case, guidance.cfg(3.0))
    print(f"{to_graph:.1e} to the graph, {to_plan:.1e} to the plan")
    assert to_graph <= 1e-5
    assert to_plan <= 1e-5
    sampler, schedule, pred, time, space = case
    assert plan.plan.tables[0].rows == len(sampler.table(schedule, pred, time, space).rows)


RULES = [
    guidance.cfg(2.0, convention="ho"),
    guidance.cfg(3.0, low=0.3, high=5.0),
    guidance.cfg(0.5),
    guidance.compose((2.0, 1.5)),
    guidance.compose((2.0, -0.5, 1.0)),
    guidance.edit(3.0, 1.5),
    guidance.weighted(2, (1.0, 0.0, 3.0, -2.0)),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_guidance_is_the_reference(rule):
    case = (samplers.dpmpp_2m(), KARRAS, prediction.edm(), "c_noise", "kappa")
    to_graph, to_plan, _ = compare(case, rule)
    print(f"{to_graph:.1e} to the graph, {to_plan:.1e} to the plan")
    assert to_graph <= 1e-5
    assert to_plan <= 1e-5


# --- A Gaussian, whose trajectories are known -----------------------------------------------------

MEAN, SPREAD = 0.5, 0.6


class GaussianDenoiser(nn.Module):
    """E[x0 | x] of data N(MEAN, SPREAD^2) at noise level kappa."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``x`` [n, W], ``sigma`` [n] to [n, W]."""
        gain = SPREAD**2 / (SPREAD**2 + sigma[:, None] ** 2)
        return MEAN + gain * (x - MEAN)


@pytest.fixture(scope="module")
def gaussian():
    parts = {"latent": Latent("kappa", (64,)), "prediction": prediction.x0(), "time": "sigma"}
    return captured_once(network.network("gaussian", GaussianDenoiser(), **parts))


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(samplers.euler(), 1), (samplers.heun(), 2), (samplers.dpmpp_2m(), 2), (samplers.dpmpp_2m("heun"), 2)],
    ids=str,
)
def test_order_of_convergence_in_rust(gaussian, sampler, order):
    """To the closed form of the ODE from sigma 5 to 0.2, after which the last step is the denoiser alone."""
    low, high, errors = 0.2, 5.0, []
    for steps in (40, 80):
        schedule = schedules.exponential(steps=steps + 1, sigma_min=low, sigma_max=high)
        g = sg.GraphBuilder("ode")
        with g.loop(schedule, g.noise(gaussian)) as step:
            step.advance(sampler, g.score(gaussian, step))
        g.output(x=step.result)
        got = sg.compile(g, device="cpu", use_cache=False).run(seeds=SEEDS)["x"]
        start = high * noise.normals(SEEDS, site=0, micro=0, count=64).astype(np.float64)
        carried = np.sqrt((SPREAD**2 + low**2) / (SPREAD**2 + high**2))
        gain = SPREAD**2 / (SPREAD**2 + low**2)
        errors.append(np.abs(got - (MEAN + gain * carried * (start - MEAN))).max())
    slope = np.log2(errors[0] / errors[1])
    print(f"errors {[f'{e:.1e}' for e in errors]}, slope {slope:.2f}")
    assert abs(slope - order) < 0.3
