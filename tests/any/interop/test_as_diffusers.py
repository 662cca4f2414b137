"""Our samplers behind the interface of a diffusers scheduler: in loops as pipelines write them, and in a pipeline."""

import inspect
import warnings

import numpy as np
import pytest
import torch

from scoregraph.errors import ImportedElsewhere
from scoregraph.graph import prediction, samplers, schedules
from scoregraph.interop.importer import from_diffusers
from scoregraph.interop.probing import network
from scoregraph.interop.scheduler import TableScheduler, as_diffusers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS, SHAPE = 10, (2, 3, 4, 4)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def pipeline_loop(scheduler, steps: int, start: torch.Tensor, **extra: object) -> torch.Tensor:
    """As StableDiffusionPipeline has it."""
    scheduler.set_timesteps(steps, device="cpu")
    latents = start * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x_in = scheduler.scale_model_input(latents, t)
        noise_pred = network(x_in.double(), float(t) / 1000.0).to(latents.dtype)
        latents = scheduler.step(noise_pred, t, latents, **extra, return_dict=False)[0]
    return latents


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


START = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_dpmpp_2m_in_a_pipelines_loop(kind: str):
    kinds = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    theirs = diffusers.DPMSolverMultistepScheduler(**SD, prediction_type=kinds[kind], timestep_spacing="trailing")
    ours = as_diffusers(
        samplers.dpmpp_2m(), schedules.scaled_linear(steps=3, spacing="trailing"), getattr(prediction, kind)()
    )
    assert ours.config.prediction_type == kinds[kind]
    assert error(pipeline_loop(ours, STEPS, START), pipeline_loop(theirs, STEPS, START)) < 1e-5
    assert ours.step_index == STEPS


def test_a_sampler_of_two_calls_a_step():
    theirs = diffusers.HeunDiscreteScheduler(**SD, timestep_spacing="leading", steps_offset=1)
    ours = as_diffusers(samplers.heun(), schedules.scaled_linear(steps=STEPS, offset=1), prediction.eps())
    got = pipeline_loop(ours, STEPS, START)
    assert ours.order == theirs.order == 2
    theirs.set_timesteps(STEPS)
    assert len(ours.timesteps) == len(theirs.timesteps) == 2 * STEPS - 1
    # Theirs carries x / alpha: it starts from another multiple of the same noise.
    alpha = ours.table.values("alpha")[0]
    assert error(got, pipeline_loop(theirs, STEPS, START / alpha / theirs.init_noise_sigma)) < 1e-5


@pytest.mark.parametrize("name", ["DDIMScheduler", "UniPCMultistepScheduler", "IPNDMScheduler", "PNDMScheduler"])
def test_there_and_back(name: str):
    """A scheduler that was imported, put back behind the interface it came from."""
    theirs = getattr(diffusers, name)(**({"clip_sample": False} if name == "DDIMScheduler" else {}))
    found = from_diffusers(theirs, STEPS)
    ours = as_diffusers(found.sampler, found.schedule, prediction.eps())
    # Every timestep of theirs is a step of ours, so PNDM's warm-up calls count.
    calls = len(found.sampler.rows)
    assert error(pipeline_loop(ours, calls, START), pipeline_loop(theirs, STEPS, START)) < 1e-5
    with pytest.raises(ImportedElsewhere):
        ours.set_timesteps(calls + 1)


def test_noise_comes_from_the_generator():
    ours = as_diffusers(samplers.ddim(eta=1.0), schedules.scaled_linear(steps=STEPS), prediction.eps())
    seeded = [pipeline_loop(ours, STEPS, START, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    theirs = diffusers.DDIMScheduler(**SD, clip_sample=False)
    expected = pipeline_loop(theirs, STEPS, START, eta=1.0, generator=torch.Generator().manual_seed(1))
    assert error(seeded[0], expected) < 1e-5


@pytest.mark.parametrize("cut", [1, 4])
@pytest.mark.parametrize("sampler", [samplers.dpmpp_2m(), samplers.heun(), samplers.ddim()], ids=str)
def test_image_to_image_starts_in_the_middle(sampler, cut: int):
    """As StableDiffusionImg2ImgPipeline has it; with an exact network any start leads to the same image."""
    ours = as_diffusers(sampler, schedules.scaled_linear(steps=STEPS, spacing="trailing"), prediction.x0())
    image, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    timesteps = ours.timesteps[cut * ours.order :]
    ours.set_begin_index(cut * ours.order)
    latents = ours.add_noise(image, noise, timesteps[:1])
    alpha, sigma = ours._level(cut * ours.order)
    assert torch.allclose(latents, alpha * image + sigma * noise)
    for t in timesteps:
        latents = ours.step(image, t, ours.scale_model_input(latents, t)).prev_sample
    assert error(latents, image) < 1e-5


def test_a_middle_start_without_set_begin_index():
    ours = as_diffusers(samplers.dpmpp_2m(), schedules.scaled_linear(steps=STEPS, spacing="trailing"), prediction.x0())
    image = torch.randn(SHAPE)
    latents = ours.add_noise(image, torch.randn(SHAPE), ours.timesteps[3:4])
    for t in ours.timesteps[3:]:
        latents = ours.step(image, t, latents).prev_sample
    assert error(latents, image) < 1e-5


def test_noise_before_the_first_call_is_seen_by_the_network():
    """EDM's churn is a row without a call; the network and the step see the same churned state."""
    sampler = samplers.euler(s_churn=3.0, order="before")
    schedule = schedules.karras(steps=5, sigma_max=10.0)
    ours = as_diffusers(sampler, schedule, prediction.edm(), time="c_noise")
    assert ours.table.values("calls")[0] == 0.0
    x = ours.init_noise_sigma * START
    torch.manual_seed(0)
    x_in = ours.scale_model_input(x, ours.timesteps[0])
    churned = x_in / ours.table.values("c_in")[1]
    assert not torch.allclose(churned, x, rtol=1e-3)
    output = ours.step(torch.zeros(SHAPE), ours.timesteps[0], x)
    p, _ = prediction.edm().to_x0(1.0, ours.table.values("sigma")[1])
    assert torch.allclose(output.pred_original_sample, p * churned, rtol=1e-4)


def test_the_interface_is_the_one_that_pipelines_ask_for():
    theirs = diffusers.DPMSolverMultistepScheduler(**SD)
    theirs.set_timesteps(STEPS)
    ours = as_diffusers(samplers.dpmpp_2m(), schedules.scaled_linear(steps=STEPS), prediction.eps())
    for name in ("config", "timesteps", "sigmas", "init_noise_sigma", "order", "step_index", "begin_index"):
        assert hasattr(ours, name)
        assert hasattr(theirs, name)
    for name in ("set_timesteps", "scale_model_input", "step", "add_noise", "set_begin_index", "index_for_timestep"):
        assert callable(getattr(ours, name))
    known = set(inspect.signature(ours.step).parameters)
    assert known >= {"model_output", "timestep", "sample", "generator", "return_dict"}
    assert len(ours.sigmas) == STEPS + 1
    assert len(ours) == 1000
    assert ours.timesteps.dtype == torch.int64


def test_a_timestep_that_is_none_and_a_sampler_of_two_answers():
    ours = as_diffusers(samplers.ddim(), schedules.scaled_linear(steps=STEPS), prediction.eps())
    with pytest.raises(ValueError, match="none of the timesteps"):
        ours.add_noise(START, START, torch.tensor([3, 3]))
    with pytest.raises(ImportedElsewhere):
        as_diffusers(samplers.ddpm("learned_range"), schedules.linear(steps=STEPS), prediction.eps())


def test_in_a_pipeline_of_diffusers():
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()

    def images(scheduler: object) -> np.ndarray:
        pipe = diffusers.DDPMPipeline(unet, scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe(
            batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=STEPS, output_type="np"
        ).images

    ours = as_diffusers(samplers.dpmpp_2m(), schedules.linear(steps=5, spacing="trailing"), prediction.eps())
    assert isinstance(ours, TableScheduler)
    theirs = diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing")
    assert np.abs(images(ours) - images(theirs)).max() < 1e-4
