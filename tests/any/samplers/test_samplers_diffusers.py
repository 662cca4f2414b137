"""Every sampler's table against the scheduler of diffusers, closed loop: 20 steps, guidance 3, noise injected."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from machine import FakeNetwork, guided, relative_error, run_table

from scoregraph.graph import guidance, prediction, samplers, schedules
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    from diffusers.schedulers import scheduling_consistency_models, scheduling_euler_ancestral_discrete

# diffusers converts tensors to arrays in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS, SCALE, BATCH, WIDTH = 20, 3.0, 3, 24
TOLERANCE = 1e-5

PREDICTIONS: dict[str, Prediction] = {
    "epsilon": prediction.eps(),
    "sample": prediction.x0(),
    "v_prediction": prediction.v(),
}
BETAS: dict[str, tuple[dict[str, Any], Callable[..., Schedule]]] = {
    "linear": ({"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}, schedules.linear),
    "scaled": ({"beta_schedule": "scaled_linear", "beta_start": 85e-5, "beta_end": 0.012}, schedules.scaled_linear),
    "cosine": ({"beta_schedule": "squaredcos_cap_v2"}, schedules.cosine),
}


def closed_loop(
    sampler: Sampler,
    schedule: Schedule,
    pred: Prediction,
    time: str,
    space: str,
    scheduler: Any,
    to_state: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    **step_noise: str,
) -> float:
    """The relative error of our table (float64) to the scheduler (float32 at heart) after the whole loop.

    ``to_state`` maps our first state to the scheduler's. ``step_noise`` names the argument that takes the noise.
    """
    net = FakeNetwork(WIDTH, time_scale=1.0 / max(1.0, float(scheduler.timesteps.abs().max())))
    rng = np.random.default_rng(1)
    table = sampler.table(schedule, pred, time, space)
    x = table.init_scale * rng.standard_normal((BATCH, WIDTH))
    noise = rng.standard_normal((len(table.rows), BATCH, WIDTH))
    folded = table.fold_guidance(guidance.cfg(SCALE).table_weights(table))
    ours = run_table(folded, net.branches, x, noise)[-1]

    assert len(scheduler.timesteps) == len(table.rows)
    mix, sample = guided(net, SCALE), torch.from_numpy(to_state(x))
    for i, t in enumerate(scheduler.timesteps):
        x_in = scheduler.scale_model_input(sample, t).double().numpy()
        m = torch.from_numpy(mix(x_in, float(t)))
        extra: dict[str, Any] = {name: torch.from_numpy(noise[i]) for name in step_noise.values()}
        if sampler.options().get("eta"):
            extra["eta"] = sampler.options()["eta"]
        sample = scheduler.step(m, t, sample, **extra).prev_sample
    return relative_error(ours, sample.double().numpy())


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 1), ("trailing", 0)])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(betas: str, kind: str, spacing: str, offset: int, eta: float):
    config, schedule = BETAS[betas]
    scheduler = diffusers.DDIMScheduler(
        **config, prediction_type=kind, clip_sample=False, timestep_spacing=spacing, steps_offset=offset
    )
    scheduler.set_timesteps(STEPS)
    grid = schedule(steps=STEPS, spacing=spacing, offset=offset)
    error = closed_loop(
        samplers.ddim(eta), grid, PREDICTIONS[kind], "timestep", "vp", scheduler, noise="variance_noise"
    )
    assert error < TOLERANCE


def test_ddim_with_zero_terminal_snr():
    config, schedule = BETAS["scaled"]
    scheduler = diffusers.DDIMScheduler(
        **config,
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    scheduler.set_timesteps(STEPS)
    grid = schedule(steps=STEPS, spacing="trailing", zero_snr=True)
    assert grid.grid().alpha[0] == 0.0
    assert closed_loop(samplers.ddim(), grid, prediction.v(), "timestep", "vp", scheduler) < TOLERANCE


@pytest.mark.parametrize("betas", ["linear", "scaled"])
@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("correction", ["midpoint", "heun"])
def test_dpmpp_2m(betas: str, kind: str, correction: str):
    config, schedule = BETAS[betas]
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **config, prediction_type=kind, solver_type=correction, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(STEPS)
    grid = schedule(steps=STEPS, spacing="trailing")
    sampler = samplers.dpmpp_2m(correction=correction)
    assert closed_loop(sampler, grid, PREDICTIONS[kind], "timestep", "vp", scheduler) < TOLERANCE


def test_dpmpp_2m_on_a_flow():
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    scheduler.set_timesteps(STEPS)
    # diffusers starts its flow grid at sigma = 1 - 1/1000 and truncates the times it tells the network; on our grid:
    grid = schedules.flow(steps=STEPS, shift=3.0)
    points = grid.grid()
    scheduler.sigmas = torch.tensor(points.sigma)
    scheduler.sigmas[0] = 1 - 1e-12  # its log-SNR needs a finite start
    scheduler.timesteps = torch.tensor(points.times("flow1000"))
    assert closed_loop(samplers.dpmpp_2m(), grid, prediction.flow(), "flow1000", "flow", scheduler) < TOLERANCE


def vp_to_kappa(schedule: Schedule) -> Callable[[np.ndarray], np.ndarray]:
    """diffusers' Euler and Heun carry x / alpha; ours carry x in the network's space."""
    return lambda x: x / schedule.grid().alpha[0]


@pytest.mark.parametrize("betas", ["linear", "scaled"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("spacing", "offset", "train"), [("leading", 1, 1000), ("trailing", 0, 1000), ("linspace", 0, 951)]
)
def test_euler(betas: str, kind: str, spacing: str, offset: int, train: int):
    config, schedule = BETAS[betas]
    scheduler = diffusers.EulerDiscreteScheduler(
        **config, prediction_type=kind, timestep_spacing=spacing, steps_offset=offset, num_train_timesteps=train
    )
    scheduler.set_timesteps(STEPS)
    grid = schedule(steps=STEPS, spacing=spacing, offset=offset, train_steps=train)
    pred = PREDICTIONS[kind]
    error = closed_loop(samplers.euler(), grid, pred, "timestep", "vp", scheduler, vp_to_kappa(grid))
    assert error < TOLERANCE


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_heun(kind: str):
    config, schedule = BETAS["scaled"]
    scheduler = diffusers.HeunDiscreteScheduler(
        **config, prediction_type=kind, timestep_spacing="leading", steps_offset=1
    )
    scheduler.set_timesteps(STEPS)
    grid = schedule(steps=STEPS, offset=1)
    pred = PREDICTIONS[kind]
    error = closed_loop(samplers.heun(), grid, pred, "timestep", "vp", scheduler, vp_to_kappa(grid))
    assert error < TOLERANCE


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler(shift: float):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.scale_model_input = lambda sample, t: sample
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS))
    grid = schedules.flow(steps=STEPS, shift=shift)
    assert closed_loop(samplers.flow_euler(), grid, prediction.flow(), "flow1000", "flow", scheduler) < TOLERANCE


@pytest.mark.parametrize("grid", ["karras", "exponential"])
def test_edm_euler(grid: str):
    scheduler = diffusers.EDMEulerScheduler(sigma_schedule=grid)
    scheduler.set_timesteps(STEPS)
    schedule = {"karras": schedules.karras, "exponential": schedules.exponential}[grid](steps=STEPS)
    assert closed_loop(samplers.euler(), schedule, prediction.edm(), "c_noise", "kappa", scheduler) < TOLERANCE


@pytest.mark.parametrize("correction", ["midpoint", "heun"])
def test_edm_dpmpp_2m(correction: str):
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(solver_type=correction)
    scheduler.set_timesteps(STEPS)
    schedule = schedules.karras(steps=STEPS)
    sampler = samplers.dpmpp_2m(correction=correction)
    assert closed_loop(sampler, schedule, prediction.edm(), "c_noise", "kappa", scheduler) < TOLERANCE


def test_consistency(monkeypatch: pytest.MonkeyPatch):
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=STEPS, clip_denoised=False)
    scheduler.set_timesteps(STEPS)
    # It draws its own noise, and calls 250 ln(sigma) time.
    rng = np.random.default_rng(1)
    rng.standard_normal((BATCH, WIDTH))
    noise = iter(torch.from_numpy(rng.standard_normal((STEPS, BATCH, WIDTH))))
    monkeypatch.setattr(scheduling_consistency_models, "randn_tensor", lambda *_, **__: next(noise))
    schedule = schedules.karras(steps=STEPS)
    table = samplers.consistency().table(schedule, prediction.consistency(), "c_noise", "kappa")
    assert np.allclose(1000 * np.array(table.values("t")), scheduler.timesteps.numpy(), rtol=1e-6)
    ours, theirs = samplers.consistency(), scheduler
    theirs.timesteps, index = theirs.timesteps / 1000, iter(range(STEPS))
    monkeypatch.setattr(theirs, "_init_step_index", lambda t: setattr(theirs, "_step_index", next(index)))
    assert closed_loop(ours, schedule, prediction.consistency(), "c_noise", "kappa", theirs) < TOLERANCE


def test_ddim_with_eta_1_is_euler_ancestral(monkeypatch: pytest.MonkeyPatch):
    """Two names for one step: diffusers' ancestral Euler in x / alpha, with the same noise."""
    config, schedule = BETAS["scaled"]
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**config, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(STEPS)
    grid = schedule(steps=STEPS, offset=1)
    rng = np.random.default_rng(1)
    rng.standard_normal((BATCH, WIDTH))
    noise = iter(torch.from_numpy(rng.standard_normal((STEPS, BATCH, WIDTH))))
    monkeypatch.setattr(scheduling_euler_ancestral_discrete, "randn_tensor", lambda *_, **__: next(noise))
    # closed_loop would hand eta on; the ancestral scheduler has none.
    monkeypatch.setattr(scheduler, "step", lambda m, t, x, eta, step=scheduler.step: step(m, t, x))
    error = closed_loop(samplers.ddim(1.0), grid, prediction.eps(), "timestep", "vp", scheduler, vp_to_kappa(grid))
    assert error < TOLERANCE


def test_ddim_with_eta_1_is_ddpm_with_the_small_variance():
    config, schedule = BETAS["linear"]
    scheduler = diffusers.DDPMScheduler(**config, clip_sample=False, variance_type="fixed_small")
    scheduler.set_timesteps(STEPS)
    grid = schedule(steps=STEPS).grid()
    table = samplers.ddim(1.0).table(grid.schedule, prediction.eps(), "timestep", "vp")
    for i, t in enumerate(scheduler.timesteps[:-1]):
        variance = float(scheduler._get_variance(int(t)))
        # 1 - alphas_cumprod is a float32 difference there: 2e-4 at the last steps.
        assert table.values("c0")[i] ** 2 == pytest.approx(variance, rel=1e-3)
