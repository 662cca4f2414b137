"""Stochastic samplers on Gaussian data: their laws, followed exactly, and their identities and orders.

Data N(mu, S^2): x0 given x is affine in x, so every row maps a Gaussian law of the registers to another, and the law
at the end is known without drawing a number.
"""

import itertools

import numpy as np
import pytest
import torch
from against_diffusers import diffusers
from machine import FakeNetwork, relative_error, run_table

from scoregraph.errors import WrongDirection
from scoregraph.graph import prediction, samplers, schedules
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule
from scoregraph.graph.table import StepTable

MU, S = np.array([0.5, -1.0, 2.0]), np.array([0.3, 1.0, 0.6])


def end_of(table: StepTable, mean: float, variance: float, mu: float, s: float) -> tuple[float, float]:
    """Mean and variance of the state after the table, from those before it, for data N(mu, s^2) and an x0 network."""
    count = len(table.registers)
    means, covariance = np.zeros(count), np.zeros((count, count))
    means[0], covariance[0, 0] = mean, variance
    for i, (alpha, sigma) in enumerate(zip(table.values("alpha"), table.values("sigma"), strict=True)):
        row = table.row(i)
        gain = alpha * s**2 / (alpha**2 * s**2 + sigma**2)
        whole = row.a.copy()
        whole[:, 0] += row.b[:, 0] * gain
        means = whole @ means + row.b[:, 0] * (mu - gain * alpha * mu)
        covariance = whole @ covariance @ whole.T + np.outer(row.c, row.c)
    return float(means[0]), float(covariance[0, 0])


def law(sampler: Sampler, schedule: Schedule, space: str) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations at the end, over the exact ones there, started from the exact law."""
    grid = schedule.grid().in_space(space)
    table = sampler.table(schedule, prediction.x0(), "flow", space)
    first, last = grid.point(0), grid.point(grid.steps)
    ends = [
        end_of(table, first.alpha * mu, (first.alpha * s) ** 2 + first.sigma**2, mu, s)
        for mu, s in zip(MU.tolist(), S.tolist(), strict=True)
    ]
    means, variances = np.transpose(ends)
    return means - last.alpha * MU, np.sqrt(variances) / np.hypot(last.alpha * S, last.sigma)


STOCHASTIC: list[tuple[Sampler, float]] = [  # and the relative error of the standard deviation at 300 steps
    (samplers.euler_ancestral(), 0.02),
    (samplers.euler_ancestral(0.5), 0.02),
    (samplers.kdpm2_ancestral(), 0.02),
    (samplers.kdpm2_ancestral(0.6), 0.02),
    (samplers.dpmpp_2s_ancestral(), 0.02),
    (samplers.dpmpp_sde(), 0.02),
    (samplers.dpmpp_sde(0.5, r=0.7), 0.02),
    (samplers.flow_ancestral(), 0.02),
    (samplers.flow_ancestral(0.5), 0.02),
    (samplers.euler(s_churn=40.0), 0.04),
    (samplers.euler(s_churn=40.0, order="after"), 0.05),
    (samplers.heun(s_churn=40.0), 0.005),
    (samplers.kdpm2(s_churn=40.0), 0.005),
    *[(samplers.reverse_sde(kind, noise), 0.04) for kind in ("ve", "vp", "sub_vp") for noise in (0.0, 0.5, 1.0)],
    *[(samplers.reverse_sde(kind, corrections=2, snr=0.1), 0.04) for kind in ("ve", "vp", "sub_vp")],
]


@pytest.mark.parametrize(("sampler", "error"), STOCHASTIC, ids=[str(sampler) for sampler, _ in STOCHASTIC])
def test_fine_steps_keep_the_marginal_law(sampler: Sampler, error: float):
    """From kappa = 20 to 0.05: the mean and the spread of the state are those of the noised data all along."""
    schedule = schedules.exponential(steps=300, sigma_min=0.05, sigma_max=20.0, final="sigma_min")
    for space in ("kappa", "vp"):
        bias, spread = law(sampler, schedule, space)
        np.testing.assert_allclose(bias, 0.0, atol=0.01)
        np.testing.assert_allclose(spread, 1.0, rtol=error)


@pytest.mark.parametrize(("sampler", "error"), STOCHASTIC, ids=[str(sampler) for sampler, _ in STOCHASTIC])
def test_the_law_converges(sampler: Sampler, error: float):
    """Four times the steps, at most half the error: nothing is wrong at leading order."""
    del error
    errors = []
    for steps in (60, 240):
        schedule = schedules.exponential(steps=steps, sigma_min=0.05, sigma_max=20.0, final="sigma_min")
        bias, spread = law(sampler, schedule, "vp")
        errors.append(float(np.abs(bias).max() + np.abs(spread - 1.0).max()))
    assert errors[1] < errors[0] / 2 or errors[1] < 1e-6, errors


def test_a_discrete_schedule_ends_on_the_data():
    """A thousand steps of DDPM's own schedule, down to the clean sample."""
    for sampler in (samplers.euler_ancestral(), samplers.reverse_sde("vp"), samplers.dpmpp_sde()):
        bias, spread = law(sampler, schedules.linear(steps=1000), "vp")
        np.testing.assert_allclose(bias, 0.0, atol=0.01)
        np.testing.assert_allclose(spread, 1.0, rtol=0.02)


# --- Orders --------------------------------------------------------------------------------------

ORDERS: list[tuple[Sampler, int]] = [
    (samplers.euler_ancestral(0.0), 1),
    (samplers.flow_ancestral(0.0), 1),
    (samplers.reverse_sde("ve", noise=0.0), 1),
    (samplers.reverse_sde("vp", noise=0.0), 1),
    (samplers.reverse_sde("sub_vp", noise=0.0), 1),
    (samplers.heun(), 2),
    (samplers.flow_heun(), 2),
    (samplers.kdpm2(), 2),
    (samplers.kdpm2_ancestral(0.0), 2),
    (samplers.dpmpp_2s_ancestral(0.0), 2),
    (samplers.dpmpp_sde(0.0), 2),
    (samplers.dpmpp_sde(0.0, r=0.7), 2),
]


def walked(sampler: Sampler, schedule: Schedule, space: str) -> float:
    """The distance to the exact solution of the probability-flow ODE at the last point."""
    grid = schedule.grid().in_space(space)
    table = sampler.table(schedule, prediction.x0(), "flow", space)
    level = {t: p for t, *p in zip(table.values("t"), table.values("alpha"), table.values("sigma"), strict=True)}

    def clean(x: np.ndarray, t: float) -> list[np.ndarray]:
        alpha, sigma = level[t]
        return [MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x - alpha * MU)]

    first, last = grid.point(0), grid.point(grid.steps)
    x = np.random.default_rng(0).standard_normal((5, 3)) * np.hypot(first.alpha * S, first.sigma) + first.alpha * MU
    spread = np.hypot(last.alpha * S, last.sigma) / np.hypot(first.alpha * S, first.sigma)
    return float(np.abs(run_table(table, clean, x)[-1] - last.alpha * MU - spread * (x - first.alpha * MU)).max())


@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
@pytest.mark.parametrize(("sampler", "order"), ORDERS, ids=[str(sampler) for sampler, _ in ORDERS])
def test_order_of_convergence_downwards_and_upwards(sampler: Sampler, order: int, up: bool):
    errors = []
    for steps in (60, 120, 240):
        schedule = schedules.exponential(steps=steps, sigma_min=0.1, sigma_max=10.0, final="sigma_min", ascending=up)
        if up and sampler.walks_down:
            with pytest.raises(WrongDirection, match="SG211"):
                sampler.table(schedule, prediction.x0(), "flow", "vp")
            return
        errors.append(walked(sampler, schedule, "vp"))
    slopes = [np.log2(a / b) for a, b in itertools.pairwise(errors)]
    print(f"{sampler}: errors {[f'{e:.1e}' for e in errors]}, slopes {[f'{s:.2f}' for s in slopes]}")
    assert abs(slopes[-1] - order) < 0.1
    assert errors[-1] < 0.2 if order == 1 else errors[-1] < 5e-3


@pytest.mark.parametrize(
    "sampler",
    [samplers.heun(s_churn=1.0), samplers.reverse_sde(), samplers.reverse_sde(noise=0.0, corrections=1)],
    ids=str,
)
def test_noise_is_for_the_way_down(sampler: Sampler):
    up = schedules.ascend(schedules.karras(steps=5))
    rising = schedules.custom(sigmas=(1.0, 0.5, 0.7), space="kappa")
    for schedule in (up, rising):
        with pytest.raises(WrongDirection, match="SG211"):
            sampler.table(schedule, prediction.edm(), "sigma", "kappa")


def test_down_and_up_again():
    """Inversion: Heun upwards from where Heun downwards ended comes back to the start."""
    down = schedules.exponential(steps=80, sigma_min=0.1, sigma_max=10.0, final="sigma_min")
    net, x = FakeNetwork(3, time_scale=0.1), 10.0 * np.random.default_rng(0).standard_normal((4, 3))
    ends = []
    for sampler in (samplers.euler(), samplers.heun()):
        state = x
        for schedule in (down, schedules.ascend(down)):
            table = sampler.table(schedule, prediction.edm(), "c_noise", "kappa")
            state = run_table(table, lambda x, t: [net(x, t, 0)], state)[-1]
        ends.append(relative_error(state, x))
    assert ends[0] < 0.05
    assert ends[1] < 1e-3


# --- Identities ----------------------------------------------------------------------------------


def same(one: StepTable, other: StepTable) -> None:
    assert one.columns == other.columns
    np.testing.assert_allclose(np.array(one.rows), np.array(other.rows), rtol=1e-9, atol=1e-11)


SCHEDULES = [
    (schedules.scaled_linear(steps=9, offset=1), prediction.eps(), "vp"),
    (schedules.linear(steps=9, spacing="trailing", zero_snr=True), prediction.v(), "vp"),
    (schedules.flow(steps=9, shift=3.0), prediction.flow(), "flow"),
    (schedules.cosine(steps=4), prediction.eps(), "vp"),  # where diffusers' ancestral Euler is nan (its issue 14213)
]


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("schedule", "pred", "space"), SCHEDULES, ids=[str(case[0]) for case in SCHEDULES])
def test_ancestral_euler_is_ddim(schedule: Schedule, pred: prediction.Prediction, space: str, eta: float):
    """Also at alpha = 0, where kappa is infinite."""
    tables = [
        sampler.table(schedule, pred, "flow", space) for sampler in (samplers.euler_ancestral(eta), samplers.ddim(eta))
    ]
    same(*tables)


def test_no_jump_of_tcd_is_ddim_and_a_whole_one_is_consistency():
    schedule = schedules.scaled_linear(steps=4, spacing="distilled")
    for tcd, other in ((samplers.tcd(0.0), samplers.ddim()), (samplers.tcd(1.0), samplers.consistency())):
        ours, theirs = (sampler.table(schedule, prediction.v(), "timestep", "vp") for sampler in (tcd, other))
        # The last training timestep still has noise, of kappa 0.03: a jump to it is not quite one to x0.
        atol = 0.03 if tcd.options()["eta"] else 1e-12
        np.testing.assert_allclose(np.array(ours.rows), np.array(theirs.rows), atol=atol)


def test_no_renewal_on_the_straight_path_is_euler():
    schedule = schedules.flow(steps=7, shift=2.0)
    tables = [
        s.table(schedule, prediction.flow(), "flow", "flow")
        for s in (samplers.flow_ancestral(0.0), samplers.flow_euler())
    ]
    same(*tables)


def test_kappa_and_the_straight_path_are_one_curve():
    """Heun in kappa and Heun in sigma/(alpha + sigma) solve one ODE by different steps; both end where it does."""
    for steps, error in ((40, 0.01), (320, 2e-4)):
        schedule = schedules.exponential(steps=steps, sigma_min=0.1, sigma_max=10.0, final="sigma_min")
        for sampler in (samplers.heun(), samplers.flow_heun()):
            assert walked(sampler, schedule, "flow") < error


def test_reverse_diffusion_is_that_of_diffusers():
    """The predictor of ScoreSdeVe, on its own noise levels."""
    steps, width = 12, 5
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0)
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps, 0.01, 50.0)
    sampler, schedule = samplers.reverse_sde("ve"), schedules.exponential(steps=steps, sigma_min=0.01, sigma_max=50.0)
    table = sampler.table(schedule, prediction.score(), "sigma", "kappa")
    np.testing.assert_allclose(table.values("t"), scheduler.discrete_sigmas.flip(0), rtol=1e-6)
    net, rng = FakeNetwork(width, time_scale=0.02), np.random.default_rng(4)
    x, noise = 50.0 * rng.standard_normal((2, width)), rng.standard_normal((steps, 2, width))
    ours = run_table(table, lambda x, t: [net(x / 50.0, t, 0) / t], x, noise)[-1]
    from diffusers.schedulers import scheduling_sde_ve

    draws, drawn = iter(torch.from_numpy(noise)), scheduling_sde_ve.randn_tensor
    scheduling_sde_ve.randn_tensor = lambda *_, **__: next(draws)
    try:
        state = torch.from_numpy(x)
        for i, t in enumerate(scheduler.timesteps):
            k = table.values("t")[i]
            answer = torch.from_numpy(net(state.numpy() / 50.0, k, 0) / k)
            out = scheduler.step_pred(answer, t, state)
            state = out.prev_sample
    finally:
        scheduling_sde_ve.randn_tensor = drawn
    assert relative_error(ours, out.prev_sample_mean.numpy()) < 1e-6  # without the last noise, as its pipeline ends


def test_corrections_are_rows_at_the_same_level():
    """n Langevin rows before each step; with the score of N(0, k^2) the spread stays k (1 + O(snr^2))."""
    schedule = schedules.exponential(steps=3, sigma_min=1.0, sigma_max=4.0, final="sigma_min")
    table = samplers.reverse_sde("ve", corrections=2, snr=0.1).table(schedule, prediction.score(), "sigma", "kappa")
    assert table.steps == (0, 0, 0, 1, 1, 1, 2, 2, 2)
    k = table.values("t")
    for row in (0, 1, 3, 4):
        size = 2 * (0.1 * k[row]) ** 2
        a, b, c = table.matrices(row)
        assert (a[0, 0], b[0, 0], c[0]) == pytest.approx((1.0, size, np.sqrt(2 * size)))
        spread = (1.0 - size / k[row] ** 2) ** 2 * k[row] ** 2 + 2 * size
        assert spread == pytest.approx(k[row] ** 2, rel=1e-3)
