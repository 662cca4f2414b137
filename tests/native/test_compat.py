"""A pipeline's loop replayed: scheduler imported from diffusers, its noise put into a bank, one plan in Rust."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import schedulers
from subjects import error, toy_network

import scoregraph as sg
from scoregraph.graph import guidance, prediction
from scoregraph.interop.importer import from_diffusers
from scoregraph.models import toy

pytestmark = [
    pytest.mark.native,
    # The library's own float32 tables pass through numpy in a way that numpy 2 is going to end.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

BATCH, STEPS, SCALE = 2, 12, 3.0
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TILT = np.random.default_rng(1).uniform(-1, 1, (BATCH, toy.TILT)).astype(np.float32)

CASES = {
    "ddim": (schedulers.DDIMScheduler, {"clip_sample": False}, "vp"),
    "ddpm": (schedulers.DDPMScheduler, {"clip_sample": False}, "vp"),
    "dpm++ 2m sde": (schedulers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, "vp"),
    "euler ancestral": (schedulers.EulerAncestralDiscreteScheduler, {}, "kappa"),
    "unipc": (schedulers.UniPCMultistepScheduler, {}, "vp"),
}


def pipeline_loop(scheduler, net, x, monkeypatch):
    """What a diffusers pipeline does, with the noise that the scheduler drew."""
    drawn: list[torch.Tensor] = []
    generator = torch.Generator().manual_seed(4)

    def randn_tensor(shape, **_):
        drawn.append(torch.randn(shape, generator=generator))
        return drawn[-1]

    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", randn_tensor)
    scheduler.set_timesteps(STEPS)
    x = x * scheduler.init_noise_sigma
    tilt = torch.from_numpy(TILT)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        times = torch.full((BATCH,), float(t))
        with torch.no_grad():
            cond, uncond = net.score(seen, times, tilt), net.score(seen, times, torch.zeros_like(tilt))
        x = scheduler.step(uncond + SCALE * (cond - uncond), t, x).prev_sample
    return x.numpy(), drawn


@pytest.mark.parametrize("name", CASES)
def test_a_pipelines_loop_is_replayed_in_rust(name, monkeypatch):
    kind, options, space = CASES[name]
    scheduler = kind(**BETAS, **options)
    net = toy_network(prediction.eps(), "timestep", space)
    imported = from_diffusers(scheduler, STEPS)
    g = sg.GraphBuilder("compat")
    cond, null = g.condition(net, g.input("tilt")), g.condition(net, None)
    with g.loop(imported.schedule, g.noise(net)) as step:
        pred = g.fuse(guidance.cfg(SCALE), g.score(net, step, cond), g.score(net, step, null))
        step.advance(imported.sampler, pred)
    g.output(x=step.result)
    plan = sg.compile(g, networks={net.ref.fingerprint: net}, use_cache=False, noise="bank")

    start = torch.randn(BATCH, toy.WIDTH, generator=torch.Generator().manual_seed(9))
    expected, drawn = pipeline_loop(scheduler, net, start, monkeypatch)
    bank = np.zeros((BATCH, *plan.draws), np.float32)
    bank[:, 0] = start.numpy()
    for i, (_, _) in enumerate(imported.report.draws):
        bank[:, 1 + i] = drawn[i].numpy()
    got = plan.run(tilt=TILT, noise=bank)["x"]
    assert plan.counters()["branch_evaluations"] == 2 * imported.report.calls
    worst = error(got, expected.astype(np.float64))
    print(f"{name}: {worst:.1e} after {imported.report.calls} calls, {len(imported.report.draws)} draws")
    assert worst <= 1e-5
