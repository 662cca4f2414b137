"""Schedules: their points against diffusers and scipy, and what every schedule can do (skip, ascend, change space)."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from scoregraph.errors import NoTimestep, OptionOutOfRange, TooManySteps
from scoregraph.graph import prediction, schedules
from scoregraph.graph.schedules import Schedule, curves
from scoregraph.graph.spec import Spec

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

EVERY: list[Schedule] = [
    schedules.linear(steps=5),
    schedules.scaled_linear(steps=5, offset=1, final="sigma_min"),
    schedules.cosine(steps=5, sigmas="karras"),
    schedules.laplace(steps=5, spacing="trailing"),
    schedules.exponential_decay(steps=5, spacing="linspace", rounding="none"),
    schedules.sigmoid(steps=5, sigmas="beta", rounding="whole"),
    schedules.betas(steps=3, values=(0.1, 0.2, 0.3, 0.4)),
    schedules.linear(steps=5, spacing="trailing", zero_snr=True),
    schedules.karras(steps=5, rho=5.0, final="sigma_min"),
    schedules.exponential(steps=5),
    schedules.polyexponential(steps=5, rho=2.0),
    schedules.beta(steps=5),
    schedules.vp_sde(steps=5),
    schedules.trigflow(steps=5),
    schedules.flow(steps=5, shift=3.0),
    schedules.flow_for((16, 64, 64), steps=5),
    schedules.custom(sigmas=(0.9, 0.5, 0.2, 0.0), space="flow", timesteps=(900, 500, 200)),
]


# --- What every schedule can do ------------------------------------------------------------------


@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_every_schedule_falls_prints_and_lies_in_its_space(schedule: Schedule):
    grid = schedule.grid()
    assert Spec.parse("schedule", str(schedule)) == schedule
    assert list(grid.kappa) == sorted(grid.kappa, reverse=True)
    assert len(set(grid.kappa)) == len(grid.kappa)
    assert grid.timesteps is None or len(grid.timesteps) == grid.steps
    for space in ("vp", "flow", "kappa"):
        if space == "kappa" and schedule.has_zero_alpha():
            continue
        scaled = grid.in_space(space)
        norm = {"vp": np.hypot, "flow": np.add, "kappa": lambda a, s: np.array(a)}[space](scaled.alpha, scaled.sigma)
        np.testing.assert_allclose(norm, 1.0, atol=1e-14)
        np.testing.assert_allclose(scaled.kappa, grid.kappa, rtol=1e-13)


@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_skip_leaves_out_the_first_steps(schedule: Schedule):
    grid = schedule.grid()
    for k in (1, 2):
        later = type(schedule)(**{**schedule.options(), "skip": k})
        assert later.grid().alpha == grid.alpha[k:]
        assert later.grid().sigma == grid.sigma[k:]
        assert later.grid().timesteps == (None if grid.timesteps is None else grid.timesteps[k:])
        assert Spec.parse("schedule", str(later)) == later
    with pytest.raises(OptionOutOfRange, match=r"skip of .* so that a step is left"):
        type(schedule)(**{**schedule.options(), "skip": grid.steps}).grid()


@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_ascending_walks_the_noisy_points_upwards(schedule: Schedule):
    up, down = schedules.ascend(schedule), schedule.grid()
    noisy = [(a, s) for a, s in zip(down.alpha, down.sigma, strict=True) if s > 0]
    assert list(zip(up.grid().alpha, up.grid().sigma, strict=True)) == noisy[::-1]
    assert Spec.parse("schedule", str(up)) == up
    assert schedules.ascend(up) == up
    if down.timesteps is not None:
        for i, at in enumerate(map(up.grid().point, range(up.grid().steps))):
            expected = down.time_at(at, "timestep") if at.sigma in down.sigma[:-1] else schedule.timestep_at(at.kappa)
            assert up.grid().times("timestep")[i] == pytest.approx(expected)


def test_nothing_is_left_to_ascend():
    with pytest.raises(OptionOutOfRange, match="ascending of karras must be False"):
        schedules.ascend(schedules.karras(steps=1)).grid()


@pytest.mark.parametrize("schedule", EVERY, ids=str)
def test_times_between_the_points_are_monotone(schedule: Schedule):
    """The network is asked at levels the grid does not visit, by midpoint methods for instance."""
    grid = schedule.grid().in_space("vp")
    k = [k for k in grid.kappa[:-1] if math.isfinite(k)]
    between = np.exp(np.linspace(math.log(k[0]), math.log(k[-1]), 23)).tolist()
    kinds = ["flow", "angle", "sigma", "c_noise"] if math.isfinite(grid.kappa[0]) else ["flow", "angle"]
    kinds += ["timestep"] if grid.timesteps is not None else []
    for convention in kinds:
        times = [grid.time_at(grid.at_kappa(level), convention) for level in between]
        assert times == sorted(times, reverse=True)
        if convention != "timestep" or schedule.options().get("rounding") != "whole":
            own = grid.times(convention)
            assert times[0] == pytest.approx(own[grid.kappa.index(k[0])], rel=1e-9)
            assert times[-1] == pytest.approx(own[-1], rel=1e-9, abs=1e-9)


# --- Discrete schedules --------------------------------------------------------------------------

BETAS: dict[str, tuple[dict[str, Any], Any]] = {
    "linear": ({"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}, schedules.linear),
    "scaled": ({"beta_schedule": "scaled_linear", "beta_start": 85e-5, "beta_end": 0.012}, schedules.scaled_linear),
    "cosine": ({"beta_schedule": "squaredcos_cap_v2"}, schedules.cosine),
    "sigmoid": ({"beta_schedule": "sigmoid", "beta_start": 1e-4, "beta_end": 0.02}, schedules.sigmoid),
    "laplace": ({"beta_schedule": "laplace"}, schedules.laplace),
}
CONTINUOUS = ["linear", "scaled", "cosine"]  # those that the solvers in kappa know


@pytest.mark.parametrize("betas", BETAS)
def test_betas_are_those_of_diffusers(betas: str):
    config, make = BETAS[betas]
    theirs = diffusers.DDPMScheduler(**config).alphas_cumprod.double().numpy()
    np.testing.assert_allclose(make(steps=10).alphas_cumprod, theirs, rtol=2e-4)  # their float32 1 - beta
    ours = make(steps=10, precision="float32").alphas_cumprod
    # torch.linspace and numpy's differ in the last bit of some betas.
    np.testing.assert_allclose(ours, theirs, rtol=2e-6 if betas == "laplace" else 6e-7)


def test_exponential_decay_is_that_of_diffusers():
    from diffusers.schedulers.scheduling_ddpm import betas_for_alpha_bar

    theirs = betas_for_alpha_bar(1000, alpha_transform_type="exp").double().numpy()
    np.testing.assert_allclose(schedules.exponential_decay(steps=10).betas(), theirs, rtol=1e-5)


def test_trained_betas():
    values = np.linspace(1e-3, 0.05, 60)
    theirs = diffusers.DDIMScheduler(trained_betas=values.tolist(), num_train_timesteps=60)
    theirs.set_timesteps(7)
    ours = schedules.betas(steps=7, values=tuple(values.tolist()), precision="float32")
    assert ours.grid().timesteps == tuple(theirs.timesteps.tolist())
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=1e-7)
    with pytest.raises(TooManySteps):
        schedules.betas(steps=4, values=(0.1, 0.2, 0.3)).grid()


@pytest.mark.parametrize("betas", CONTINUOUS)
def test_zero_terminal_snr_in_both_precisions(betas: str):
    config, make = BETAS[betas]
    theirs = diffusers.DDIMScheduler(**config, rescale_betas_zero_snr=True).alphas_cumprod.double().numpy()
    for precision, error in (("float64", 3e-3), ("float32", 1e-3)):
        ours = make(steps=10, zero_snr=True, precision=precision).alphas_cumprod
        assert ours[-1] == 0.0
        np.testing.assert_allclose(ours[:-1], theirs[:-1], rtol=error, atol=1e-6)
    patched = diffusers.EulerDiscreteScheduler(**config, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    patched.set_timesteps(10)
    grid = make(steps=10, spacing="trailing", zero_snr=True, terminal=2.0**-24, precision="float32").grid()
    assert grid.kappa[0] == pytest.approx(4096.0, rel=1e-6)
    np.testing.assert_allclose(grid.kappa, patched.sigmas.double(), rtol=1e-3)


@pytest.mark.parametrize("betas", CONTINUOUS)
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 1), ("trailing", 0), ("linspace", 0)])
def test_euler_points(betas: str, final: str, spacing: str, offset: int):
    config, make = BETAS[betas]
    for steps in (2, 7, 13, 20):
        theirs = diffusers.EulerDiscreteScheduler(
            **config, timestep_spacing=spacing, steps_offset=offset, final_sigmas_type=final
        )
        theirs.set_timesteps(steps)
        rounding = "none" if spacing == "linspace" else "auto"
        for precision, error in (("float64", 1e-4), ("float32", 2e-6)):
            ours = make(
                steps=steps, spacing=spacing, offset=offset, final=final, rounding=rounding, precision=precision
            ).grid()
            np.testing.assert_allclose(ours.times("timestep"), theirs.timesteps.numpy(), rtol=1e-6)
            np.testing.assert_allclose(ours.kappa, theirs.sigmas.numpy(), rtol=error if betas != "cosine" else 4e-3)


@pytest.mark.parametrize("curve", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("rounding", ["none", "whole"])
def test_curves_on_a_discrete_schedule(curve: str, rounding: str):
    """Between the ends of the table, as the multistep solvers have it; Euler's ends are those of its spacing."""
    config, make = BETAS["scaled"]
    theirs = diffusers.EulerDiscreteScheduler(**config, **{f"use_{curve}_sigmas": True}, timestep_spacing="linspace")
    theirs.set_timesteps(12)
    ours = make(steps=12, sigmas=curve, rounding=rounding, precision="float32").grid()
    np.testing.assert_allclose(ours.kappa, theirs.sigmas.numpy(), rtol=1e-5)
    times = theirs.timesteps.numpy()
    np.testing.assert_allclose(ours.times("timestep"), times if rounding == "none" else times.round(), atol=2e-3)


@pytest.mark.parametrize("curve", ["karras", "lu", "exponential"])
def test_multistep_points(curve: str):
    config, make = BETAS["scaled"]
    keyword = "use_lu_lambdas" if curve == "lu" else f"use_{curve}_sigmas"
    theirs = diffusers.DPMSolverMultistepScheduler(**config, **{keyword: True})
    theirs.set_timesteps(12)
    ours = make(steps=12, sigmas=curve, rounding="none" if curve == "exponential" else "whole").grid()
    np.testing.assert_allclose(ours.kappa, theirs.sigmas.numpy(), rtol=4e-5)
    fractions = np.array(ours.times("timestep")) - theirs.timesteps.numpy()
    if curve == "exponential":  # its timesteps are cut off there, those of the others rounded
        assert np.all((fractions > -1e-3) & (fractions < 1.0 + 1e-3))
    else:
        assert not fractions.any()


@pytest.mark.parametrize(("spacing", "offset"), [("leading", 1), ("trailing", 0), ("linspace", 0)])
@pytest.mark.parametrize("clipped", [-math.inf, -5.1])
def test_open_ends_and_clipped_lambdas(spacing: str, offset: int, clipped: float):
    config, make = BETAS["cosine"]
    for steps in (3, 10, 25):
        theirs = diffusers.DPMSolverMultistepScheduler(
            **config, timestep_spacing=spacing, steps_offset=offset, lambda_min_clipped=clipped
        )
        theirs.set_timesteps(steps)
        if len(theirs.timesteps) != steps:
            continue  # a clipped trailing grid may come out shorter there
        ours = make(
            steps=steps,
            spacing=spacing,
            offset=offset,
            open_end=spacing != "trailing",
            lambda_min=None if math.isinf(clipped) else clipped,
        )
        assert ours.grid().timesteps == tuple(theirs.timesteps.tolist())


@pytest.mark.parametrize(("steps", "original"), [(1, 50), (4, 50), (7, 50), (50, 50), (8, 100), (3, 7)])
def test_distilled_timesteps(steps: int, original: int):
    theirs = diffusers.LCMScheduler()
    theirs.set_timesteps(steps, original_inference_steps=original)
    ours = schedules.scaled_linear(steps=steps, spacing="distilled", distilled_steps=original)
    assert ours.grid().timesteps == tuple(theirs.timesteps.tolist())


def test_more_distilled_steps_than_there_are():
    with pytest.raises(TooManySteps, match="needs timestep 8"):
        schedules.scaled_linear(steps=9, spacing="distilled", distilled_steps=8).grid()


def test_timesteps_and_noise_levels_are_inverse():
    schedule = schedules.scaled_linear(steps=5)
    for t in (0.0, 3.0, 17.25, 998.5, 999.0):
        assert schedule.timestep_at(schedule.kappa_at(t)) == pytest.approx(t, abs=1e-9)
    sde = schedules.vp_sde(steps=4)
    for t, kappa in zip(sde.grid().times("timestep"), sde.grid().kappa, strict=False):
        assert sde.timestep_at(kappa) == pytest.approx(t, rel=1e-12)


# --- Continuous schedules ------------------------------------------------------------------------


def test_quantiles_of_the_beta_distribution():
    from scipy import special, stats

    rng = np.random.default_rng(0)
    for a, b in [(0.6, 0.6), (0.5, 1.0), (2.0, 5.0), (30.0, 0.7), (1.0, 1.0), (0.05, 0.3)]:
        for p in [0.0, 1e-12, 1e-3, 0.25, 0.5, 0.75, 1.0 - 1e-9, 1.0, *rng.random(20)]:
            ours = curves.beta_quantile(p, a, b)
            assert ours == pytest.approx(stats.beta.ppf(p, a, b), rel=1e-10, abs=1e-14)
            assert curves.beta_probability(ours, a, b) == pytest.approx(
                special.betainc(a, b, ours), rel=1e-12, abs=1e-15
            )


@pytest.mark.parametrize("curve", ["karras", "exponential"])
def test_edm_points(curve: str):
    for steps in (2, 9, 20):
        theirs = diffusers.EDMEulerScheduler(sigma_schedule=curve)
        theirs.set_timesteps(steps)
        ours = getattr(schedules, curve)(steps=steps).grid()
        np.testing.assert_allclose(ours.sigma, theirs.sigmas.double(), rtol=1e-6)
        np.testing.assert_allclose(ours.times("c_noise"), theirs.timesteps.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("make", [schedules.karras, schedules.exponential, schedules.polyexponential, schedules.beta])
def test_final_noise_levels(make: Any):
    """N steps in both cases; none of them stands still."""
    zero, kept = (make(steps=6, sigma_min=0.1, sigma_max=10.0, final=final).grid() for final in ("zero", "sigma_min"))
    assert zero.steps == kept.steps == 6
    assert zero.sigma[-1] == 0.0
    assert zero.sigma[-2] == pytest.approx(0.1)
    assert kept.sigma[-1] == pytest.approx(0.1)
    assert len(set(kept.sigma)) == 7


def test_vp_sde_against_the_integral_of_beta():
    """ln alpha = -1/2 int_0^t beta, by quadrature."""
    from scipy import integrate

    grid = schedules.vp_sde(steps=7, final="sigma_min").grid()
    for t, alpha, sigma in zip((*grid.times("timestep"), 999e-3), grid.alpha, grid.sigma, strict=True):
        total, _ = integrate.quad(lambda s: 0.1 + s * (20.0 - 0.1), 0.0, t / 999.0, epsabs=1e-14)
        assert alpha == pytest.approx(math.exp(-total / 2), rel=1e-12)
        assert sigma == pytest.approx(math.sqrt(-math.expm1(-total)), rel=1e-12)


def test_trigflow_angles():
    grid = schedules.trigflow(steps=3).grid()
    assert grid.times("angle") == pytest.approx((math.pi / 2, math.pi / 3, math.pi / 6))
    assert grid.alpha[0] == 0.0
    assert schedules.trigflow(steps=1, start=1.5708).grid().point(0).kappa == math.inf  # diffusers' rounded pi/2


# --- Flows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", ["even", "karras", "exponential", "beta"])
@pytest.mark.parametrize("terminal", [None, 0.1])
@pytest.mark.parametrize("steps", [2, 5, 28])
def test_flow_points(curve: str, terminal: float | None, steps: int):
    config = {} if curve == "even" else {f"use_{curve}_sigmas": True}
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=terminal, **config)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist())
    ours = schedules.flow(steps=steps, shift=3.0, terminal=terminal, curve=curve).grid()
    np.testing.assert_allclose(ours.sigma, theirs.sigmas.double(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(ours.times("flow1000"), theirs.timesteps.double(), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_stretched_flow_of_one_step_is_finite():
    """diffusers divides 0 by 0 there (its issue 14411)."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1)
    theirs.set_timesteps(sigmas=[1.0])
    assert torch.isnan(theirs.sigmas).any()
    assert schedules.flow(steps=1, terminal=0.1).grid().sigma == (1.0, 0.0)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("side", [32, 64, 128, 192])
def test_the_shift_follows_the_shape(kind: str, side: int):
    tokens = (side // 2) ** 2
    mu = (1.15 - 0.5) / (4096 - 256) * tokens + 0.5 - (1.15 - 0.5) / (4096 - 256) * 256  # the Flux pipeline's
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1.0 / 9, 9).tolist(), mu=mu)
    ours = schedules.flow_for((16, side, side), steps=9, kind=kind)
    np.testing.assert_allclose(ours.grid().sigma, theirs.sigmas.double(), rtol=1e-6)
    assert schedules.resolution_shift(tokens, kind="linear") == pytest.approx(mu)
    video = schedules.flow_for((16, 4, side, side), steps=9, kind=kind)  # four frames have four times the tokens
    assert video.shift == pytest.approx(schedules.resolution_shift(4 * tokens, kind=kind))


def test_multistep_flow_points():
    """The flow grid of DPM-Solver in diffusers starts at 1 - 1/1000."""
    theirs = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    theirs.set_timesteps(12)
    ours = schedules.flow(steps=12, shift=3.0, sigma_max=1.0 - 1e-3).grid()
    np.testing.assert_allclose(ours.sigma, theirs.sigmas.double(), rtol=1e-6)
    np.testing.assert_array_equal(np.floor(ours.times("flow1000")), theirs.timesteps.numpy())


# --- Points of one's own -------------------------------------------------------------------------


def test_custom_points_are_taken_as_they_are():
    given = schedules.custom(alphas=(0.6, 0.8, 1.0), sigmas=(0.8, 0.6, 0.0), timesteps=(900, 300.5))
    grid = given.grid()
    assert (grid.alpha, grid.sigma, grid.timesteps) == ((0.6, 0.8, 1.0), (0.8, 0.6, 0.0), (900.0, 300.5))
    assert given.steps == 2
    assert grid.in_space("vp") is grid
    assert given.timestep_at(math.sqrt(4 / 3 * 3 / 4)) == pytest.approx(600.25)
    assert given.timestep_at(5.0) == 900.0
    assert schedules.custom(sigmas=(0.8, 0.0)).alphas == pytest.approx((0.6, 1.0))
    assert schedules.custom(sigmas=(7.0, 1.0), space="kappa").alphas == (1.0, 1.0)
    assert schedules.custom(sigmas=np.array([0.75, 0.25]), space="flow").alphas == (0.25, 0.75)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmas": (1.0,)}, "sigmas of custom must be a tuple of at least 2"),
        ({"sigmas": (0.5, 0.0), "alphas": (1.0,)}, "alphas of custom must be 2 numbers"),
        ({"sigmas": (0.5, 0.0), "alphas": (1.0, 1.0)}, "alpha\\^2 \\+ sigma\\^2 = 1"),
        ({"sigmas": (80.0, 0.0)}, "alpha\\^2 \\+ sigma\\^2 = 1"),
        ({"sigmas": (1.5, 0.0), "space": "flow"}, "none negative"),
        ({"sigmas": (0.5, 0.0), "timesteps": (1, 2, 3)}, "timesteps of custom must be 1 numbers"),
        ({"sigmas": (0.5, math.nan)}, "finite numbers"),
    ],
)
def test_custom_points_that_are_none(options: dict[str, Any], message: str):
    with pytest.raises(OptionOutOfRange, match=message):
        schedules.custom(**options)


def test_custom_points_without_timesteps():
    with pytest.raises(NoTimestep):
        schedules.custom(sigmas=(0.5, 0.0)).timestep_at(0.5)


# --- Parameterizations ---------------------------------------------------------------------------


@pytest.mark.parametrize("data", [0.5, 1.0])
def test_trigflow_is_its_formula(data: float):
    """x_t = cos(t) x0 + sin(t) sd z; D = cos(t) x_t - sin(t) sd F(x_t / sd)."""
    pred, rng = prediction.trigflow(data), np.random.default_rng(3)
    for t in (0.1, 0.9, 1.5):
        k = data * math.tan(t)
        x_t, m = rng.standard_normal(2)
        for alpha in (1.0, math.cos(t), 1.0 / (1.0 + k)):  # the same state in kappa, another and flow space
            x = x_t / math.cos(t) * alpha
            p, q = pred.to_x0(alpha, k * alpha)
            x0 = math.cos(t) * x_t - math.sin(t) * data * m
            assert p * x + q * m == pytest.approx(x0)
            assert pred.c_in(alpha, k * alpha) * x == pytest.approx(x_t / data)
            p, q = pred.to_eps(alpha, k * alpha)
            assert p * x + q * m == pytest.approx((x - alpha * x0) / (k * alpha))


def test_edm_networks_that_predict_v_are_trigflow():
    """diffusers' EDM schedulers flip the sign of c_out for v."""
    theirs = diffusers.EDMEulerScheduler(prediction_type="v_prediction")
    x, m = torch.tensor([1.25], dtype=torch.float64), torch.tensor([-0.5], dtype=torch.float64)
    p, q = prediction.trigflow(0.5).to_x0(1.0, 3.0)
    assert float(theirs.precondition_outputs(x, m, torch.tensor(3.0))) == pytest.approx(p * 1.25 - q * 0.5)
