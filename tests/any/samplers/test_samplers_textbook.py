"""Tables against the papers' formulas in float64, and the identities between samplers, spaces and networks."""

import itertools

import numpy as np
import pytest
import torch
from machine import FakeNetwork, relative_error, run_table

from scoregraph.backends.reference import textbook
from scoregraph.backends.reference.textbook import Point, Walk
from scoregraph.errors import InfiniteSigma, ZeroAlpha
from scoregraph.graph import prediction, samplers, schedules
from scoregraph.graph.prediction import SPACES, Prediction
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule

STEPS, BATCH, WIDTH = 12, 2, 8

SAMPLERS: dict[str, Sampler] = {
    "ddim": samplers.ddim(),
    "ddim(0.5)": samplers.ddim(0.5),
    "ddim(1)": samplers.ddim(1.0),
    "euler": samplers.euler(),
    "heun": samplers.heun(),
    "flow_euler": samplers.flow_euler(),
    "dpmpp_2m": samplers.dpmpp_2m(),
    "dpmpp_2m(heun)": samplers.dpmpp_2m(correction="heun"),
    "consistency": samplers.consistency(),
}
PREDICTIONS: dict[str, Prediction] = {
    "eps": prediction.eps(),
    "x0": prediction.x0(),
    "v": prediction.v(),
    "flow": prediction.flow(),
    "score": prediction.score(),
    "edm": prediction.edm(0.7),
    "consistency": prediction.consistency(0.7, 0.01),
}
SCHEDULES: dict[str, Schedule] = {
    "scaled_linear": schedules.scaled_linear(steps=STEPS, offset=1),
    "cosine": schedules.cosine(steps=STEPS, spacing="linspace"),
    "zero_snr": schedules.linear(steps=STEPS, spacing="trailing", zero_snr=True),
    "karras": schedules.karras(steps=STEPS, sigma_max=20.0),
    "exponential": schedules.exponential(steps=STEPS, sigma_max=20.0),
    "flow": schedules.flow(steps=STEPS, shift=2.0),
    "one step": schedules.karras(steps=1),
    "two steps": schedules.flow(steps=2),
}


def by_the_book(sampler: Sampler, schedule: Schedule, pred: Prediction, space: str, net: FakeNetwork, x, noise):
    """The whole walk in torch float64 with the papers' steps."""
    grid = schedule.grid().in_space(space)
    points = [Point(a, s) for a, s in zip(grid.alpha, grid.sigma, strict=True)]
    calls = 0

    def denoise(x: torch.Tensor, at: Point) -> torch.Tensor:
        nonlocal calls
        calls += 1
        # What EDM calls c_in, in the latent's space; others see the state itself.
        edm = pred.name in ("edm", "consistency")
        c_in = 1 / np.hypot(at.sigma, at.alpha * pred.options()["sigma_data"]) if edm else 1.0
        m = torch.from_numpy(net(c_in * x.numpy(), at.s, 0))
        return textbook.clean(pred, m, x, at)

    x, memory = torch.from_numpy(x), {}
    for here, there in itertools.pairwise(points):
        walk = Walk(x, here, there, denoise, lambda: torch.from_numpy(noise[calls - 1]), pred, memory)
        x = textbook.STEPS[sampler.name](sampler, walk)
    return x.numpy()


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_table_is_the_paper(sampler: str, schedule: str, space: str):
    rule, noises = SAMPLERS[sampler], SCHEDULES[schedule]
    infinite = noises.has_zero_alpha()
    ran = 0
    for name, pred in PREDICTIONS.items():
        if infinite and (space == "kappa" or rule.needs_finite_kappa or pred.singular):
            with pytest.raises((InfiniteSigma, ZeroAlpha), match=r"SG20[45]"):
                rule.table(noises, pred, "flow", space)
            continue
        table = rule.table(noises, pred, "flow", space)
        rng, net = np.random.default_rng(5), FakeNetwork(WIDTH)
        x = table.init_scale * rng.standard_normal((BATCH, WIDTH))
        noise = rng.standard_normal((len(table.rows), BATCH, WIDTH))
        ours = run_table(table, lambda x, t, net=net: [net(x, t, 0)], x, noise)[-1]
        expected = by_the_book(rule, noises, pred, space, net, x, noise)
        error = relative_error(ours, expected)
        assert error < 1e-9, f"{name}: {error}"
        ran += 1
    assert ran > 0 or (infinite and (space == "kappa" or rule.needs_finite_kappa))


def test_number_of_calls_and_registers():
    for name, rule in SAMPLERS.items():
        table = rule.table(SCHEDULES["karras"], prediction.edm(), "c_noise", "kappa")
        calls = 2 * STEPS - 1 if name == "heun" else STEPS
        assert len(table.rows) == calls
        assert table.registers[0] == "x"
        assert len(table.registers) == (2 if name in ("heun", "dpmpp_2m", "dpmpp_2m(heun)") else 1)
        assert table.uses_noise == (name in ("ddim(0.5)", "ddim(1)", "consistency"))
        # The history is dead after the last row: its coefficients are exactly 0.
        a, b, c = table.matrices(calls - 1)
        assert not a[1:].any()
        assert not b[1:].any()
        assert not c.any()


# --- Identities (each exact in real arithmetic) --------------------------------------------------


@pytest.mark.parametrize("schedule", ["scaled_linear", "cosine", "karras"])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("pred", PREDICTIONS)
def test_all_first_order_steps_are_one(schedule: str, space: str, pred: str):
    """DDIM(0) is Euler in kappa is Euler on the straight path, after the change of variables."""
    tables = [
        rule.table(SCHEDULES[schedule], PREDICTIONS[pred], "flow", space)
        for rule in (samplers.ddim(), samplers.euler(), samplers.flow_euler())
    ]
    first = np.array(tables[0].rows)
    for table in tables[1:]:
        assert table.columns == tables[0].columns
        np.testing.assert_allclose(np.array(table.rows), first, rtol=1e-9, atol=1e-11)


def test_dpmpp_first_step_is_the_first_order_step():
    for schedule in (SCHEDULES["scaled_linear"], SCHEDULES["flow"], schedules.karras(steps=1)):
        pred = prediction.v()
        space = "vp" if schedule.has_zero_alpha() else "kappa"
        multistep = samplers.dpmpp_2m().table(schedule, pred, "none", space)
        ddim = samplers.ddim().table(schedule, pred, "none", space)
        for name in ("a0_0", "b0_0"):
            assert multistep.values(name)[0] == pytest.approx(ddim.values(name)[0], rel=1e-12)


@pytest.mark.parametrize("schedule", ["scaled_linear", "karras"])
def test_ddim_1_has_the_variance_of_ancestral_sampling(schedule: str):
    """k_up^2 = k'^2 (1 - k'^2/k^2) (Euler ancestral); the mean's noise level is k_down = k'^2/k."""
    grid = SCHEDULES[schedule].grid()
    table = samplers.ddim(1.0).table(SCHEDULES[schedule], prediction.eps(), "none", "kappa")
    for i in range(grid.steps):
        k, k_next = grid.kappa[i], grid.kappa[i + 1]
        assert table.values("c0")[i] ** 2 == pytest.approx(k_next**2 * (1 - k_next**2 / k**2), rel=1e-9)
        assert table.values("a0_0")[i] == pytest.approx(1.0, rel=1e-12)
        assert table.values("b0_0")[i] == pytest.approx(k_next**2 / k - k, rel=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_spaces_are_a_change_of_variables(sampler: str):
    """The same network behind latents of each space: states differ by the scale of the space alone."""
    rule, schedule, net = SAMPLERS[sampler], SCHEDULES["scaled_linear"], FakeNetwork(WIDTH)
    rng = np.random.default_rng(3)
    start, noise = rng.standard_normal((BATCH, WIDTH)), rng.standard_normal((2 * STEPS, BATCH, WIDTH))
    ends = []
    for space in SPACES:
        table = rule.table(schedule, prediction.edm(), "sigma", space)
        grid = schedule.grid().in_space(space)
        states = run_table(table, lambda x, t: [net(x, t / 20, 0)], grid.alpha[0] * start, noise)
        ends.append(states[-1])
        # EDM's c_in undoes the scale of the space, so the network sees the same numbers.
    assert relative_error(ends[1], ends[0]) < 1e-10
    assert relative_error(ends[2], ends[0]) < 1e-10


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_network_in_other_words_gives_one_trajectory(sampler: str):
    """An x0 network, re-expressed as eps, v, flow, score and EDM F, is the same network."""
    rule, schedule, net = SAMPLERS[sampler], SCHEDULES["scaled_linear"], FakeNetwork(WIDTH)
    rng = np.random.default_rng(4)
    x, noise = rng.standard_normal((BATCH, WIDTH)), rng.standard_normal((2 * STEPS, BATCH, WIDTH))
    grid = schedule.grid()
    point = dict(zip(grid.times("flow"), zip(grid.alpha, grid.sigma, strict=True), strict=False))
    expected = run_table(rule.table(schedule, prediction.x0(), "flow", "vp"), lambda x, t: [net(x, t, 0)], x, noise)
    for name in ("eps", "v", "flow", "score", "edm"):
        pred = PREDICTIONS[name]

        def other(x_in: np.ndarray, t: float, pred: Prediction = pred) -> list[np.ndarray]:
            alpha, sigma = point[t]
            state = x_in / pred.c_in(alpha, sigma)
            p, q = pred.to_x0(alpha, sigma)
            return [(net(state, t, 0) - p * state) / q]

        ours = run_table(rule.table(schedule, pred, "flow", "vp"), other, x, noise)
        assert relative_error(ours[-1], expected[-1]) < 1e-9, name


def test_guidance_of_scale_1_is_the_condition_alone_in_every_bit():
    from scoregraph.graph import guidance

    net, schedule = FakeNetwork(WIDTH), SCHEDULES["karras"]
    table = samplers.dpmpp_2m().table(schedule, prediction.edm(), "c_noise", "kappa")
    x = table.init_scale * np.random.default_rng(0).standard_normal((BATCH, WIDTH))
    alone = run_table(table, lambda x, t: [net(x, t, 0)], x)[-1]
    for rule in (guidance.cfg(1.0), guidance.cfg(0.0, convention="ho"), guidance.cfg(7.0, low=100.0)):
        folded = table.fold_guidance(rule.table_weights(table))
        assert np.array_equal(run_table(folded, net.branches, x)[-1], alone)
