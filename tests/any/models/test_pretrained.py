"""Folders of diffusers pipelines: one image from ours and one from diffusers, with the same weights and noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoregraph as sg
from scoregraph import errors

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

STEPS = 4
TOKENS = 7


def seeded(module: nn.Module) -> Any:
    """Random weights of the scale that training gives them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.3 * noise + ("norm" in name and name.endswith("weight")))
    return module.eval()


def pixel_unet() -> Any:
    return seeded(
        diffusers.UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=8,
        )
    )


def text_unet() -> Any:
    return seeded(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=4,
            cross_attention_dim=24,
            attention_head_dim=2,
        )
    )


def autoencoder() -> Any:
    return seeded(
        diffusers.AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
        )
    )


def transformer(kind: str, **options: Any) -> Any:
    common = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 2}
    return seeded(getattr(diffusers, kind)(**common, sample_size=8, patch_size=2, **options))


def clip() -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=49,
    )
    return seeded(transformers.CLIPTextModel(config))


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=50, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return seeded(transformers.T5EncoderModel(config))


def ids(seed: int) -> Tensor:
    return torch.randint(0, 50, (2, TOKENS), generator=torch.Generator().manual_seed(seed))


def images(pipeline: Any, kind: str, monkeypatch: pytest.MonkeyPatch, noise: Tensor, *args: Any, **how: Any) -> Tensor:
    """What diffusers draws, taking its noise [2, draws, …] in the order in which it asks for it."""
    left = iter(noise.unbind(1))
    for module in (f"diffusers.pipelines.{kind}.pipeline_{kind}", "diffusers.schedulers.scheduling_ddpm"):
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *args, **options: next(left).clone())
    drawn = pipeline(*args, num_inference_steps=STEPS, output_type="np", **how).images
    return torch.from_numpy(drawn).permute(0, 3, 1, 2)


def compare(
    pipeline: Any, folder: Path, theirs: Callable[[Tensor], Tensor], options: dict[str, Any], **inputs: Tensor
) -> None:
    """The two differ by 1e-4 at most, in images of 0…1."""
    pipeline.save_pretrained(folder / "tiny")
    g = sg.pipelines.from_pretrained(folder / "tiny", steps=STEPS, **options)
    plan = sg.compile(g, device="reference", noise="bank", use_cache=False)
    noise = torch.randn(2, *plan.draws, generator=torch.Generator().manual_seed(3))
    got = plan.run(noise=noise.numpy(), batch=2, **{name: value.numpy() for name, value in inputs.items()})["image"]
    pipeline.set_progress_bar_config(disable=True)
    expected = theirs(noise).numpy()
    assert got.shape == expected.shape
    assert expected.std() > 0.05, "an image without contrast would prove nothing"
    assert np.abs(got - expected).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
def test_pixels(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = getattr(diffusers, f"{kind.upper()}Scheduler")(clip_sample=False)
    pipeline = getattr(diffusers, f"{kind.upper()}Pipeline")(pixel_unet(), scheduler)
    compare(pipeline, tmp_path, lambda noise: images(pipeline, kind, monkeypatch, noise, batch_size=2), {})


def test_dit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = transformer("DiTTransformer2DModel", num_embeds_ada_norm=1000)
    pipeline = diffusers.DiTPipeline(module, autoencoder(), diffusers.DDIMScheduler(clip_sample=False))
    labels = torch.tensor([3, 7])

    def theirs(noise: Tensor) -> Tensor:
        return images(pipeline, "dit", monkeypatch, noise, labels.tolist(), guidance_scale=2.0)

    compare(pipeline, tmp_path, theirs, {"guidance_scale": 2.0}, class_labels=labels)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_stable_diffusion(tmp_path: Path) -> None:
    pipeline = diffusers.StableDiffusionPipeline(
        autoencoder(),
        clip(),
        None,
        text_unet(),
        diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        None,
        None,
        requires_safety_checker=False,
    )
    prompt, negative = ids(1), ids(2)

    def theirs(noise: Tensor) -> Tensor:
        with torch.no_grad():
            told, untold = (pipeline.text_encoder(each)[0] for each in (prompt, negative))
        return pipeline(
            prompt_embeds=told, negative_prompt_embeds=untold, guidance_scale=3.0, num_inference_steps=STEPS,
            latents=noise[:, 0], output_type="pt", height=16, width=16,
        ).images  # fmt: skip

    compare(pipeline, tmp_path, theirs, {"guidance_scale": 3.0}, prompt=prompt, negative_prompt=negative)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_pixart(tmp_path: Path) -> None:
    module = transformer(
        "PixArtTransformer2DModel", cross_attention_dim=32, caption_channels=24, use_additional_conditions=False
    )
    scheduler = diffusers.DPMSolverMultistepScheduler()
    pipeline = diffusers.PixArtAlphaPipeline(None, t5(), autoencoder(), module, scheduler)
    prompt, negative = ids(1), ids(2)
    masks = torch.tensor([[1] * TOKENS, [1, 1, 1, 1, 0, 0, 0]]), torch.tensor([[1, 1, 0, 0, 0, 0, 0]] * 2)

    def theirs(noise: Tensor) -> Tensor:
        with torch.no_grad():
            told, untold = (
                pipeline.text_encoder(each, attention_mask=mask)[0]
                for each, mask in zip((prompt, negative), masks, strict=True)
            )
        return pipeline(
            prompt=None, negative_prompt=None, prompt_embeds=told, negative_prompt_embeds=untold,
            prompt_attention_mask=masks[0], negative_prompt_attention_mask=masks[1], guidance_scale=3.0,
            num_inference_steps=STEPS, latents=noise[:, 0], output_type="pt", height=16, width=16,
            use_resolution_binning=False, clean_caption=False,
        ).images  # fmt: skip

    inputs = {"prompt": prompt, "negative_prompt": negative}
    inputs |= {"prompt_mask": masks[0], "negative_prompt_mask": masks[1]}
    compare(pipeline, tmp_path, theirs, {"guidance_scale": 3.0, "tokens": TOKENS}, **inputs)


# --- denoisers ------------------------------------------------------------------------------------


def test_a_transformer_tells_its_roles() -> None:
    net = sg.models.from_diffusers(transformer("DiTTransformer2DModel", num_embeds_ada_norm=10))
    assert net.latent.shape == (4, 8, 8)
    assert str(net.ref.prediction) == "eps()"
    assert [(cond.name, cond.low, cond.high, cond.null) for cond in net.ref.conds] == [("class_labels", 0, 10, 10)]


def test_flux_packs_its_pixels() -> None:
    module = seeded(
        diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=20,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        )
    )
    net = sg.models.from_diffusers(module, size=(4, 6), tokens=5)
    assert net.latent.shape == (4, 4, 6)
    assert [cond.name for cond in net.ref.conds] == ["encoder_hidden_states", "pooled_projections", "guidance"]
    x, t, *conds = net.score_example()
    pack = diffusers.FluxPipeline._pack_latents(x, len(x), 4, 4, 6)
    places = diffusers.FluxPipeline._prepare_latent_image_ids(len(x), 2, 3, "cpu", torch.float32)
    with torch.no_grad():
        answer = module(pack, conds[0], conds[1], t, places, torch.zeros(5, 3), conds[2], return_dict=False)[0]
        theirs = diffusers.FluxPipeline._unpack_latents(answer, 4 * 8, 6 * 8, 8)
        assert torch.equal(net.score(x, t, *conds), theirs)


def test_a_unet_must_be_told_its_prediction() -> None:
    with pytest.raises(errors.UnknownDenoiser, match='prediction="eps"'):
        sg.models.from_diffusers(pixel_unet())


def test_folders_that_are_no_pipelines(tmp_path: Path) -> None:
    with pytest.raises(errors.UnreadablePipeline, match=r"model_index\.json"):
        sg.models.from_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"_class_name": "CogVideoXPipeline"}))
    with pytest.raises(errors.UnreadablePipeline, match="it holds a CogVideoXPipeline"):
        sg.models.from_pretrained(tmp_path)
    index.write_text(json.dumps({"_class_name": "DDPMPipeline", "unet": ["os", "system"]}))
    with pytest.raises(errors.UnreadablePipeline, match=r"its unet is a os\.system"):
        sg.models.from_pretrained(tmp_path)
