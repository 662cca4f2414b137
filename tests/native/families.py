"""The families of networks that compile whole: small ones with random weights, and inputs for any batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from subjects import lively
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """A module and its inputs by name, the batch in front (2 samples)."""

    module: nn.Module
    inputs: dict[str, Tensor]
    method: str = "forward"

    def at(self, batch: int) -> dict[str, Tensor]:
        """Other inputs, for ``batch`` samples."""
        generator = torch.Generator().manual_seed(batch)
        return {key: _like(value, batch, generator) for key, value in self.inputs.items()}


def _like(value: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    rows = value[torch.arange(batch) % len(value)]
    smooth = value.is_floating_point() and value.ndim > 1
    return torch.randn(rows.shape, generator=generator) if smooth else rows


class Called(nn.Module):
    """A module with constants bound, that answers one of its tensors."""

    def __init__(self, module: nn.Module, pick: Callable[[Any], Tensor], **constants: Any) -> None:
        super().__init__()
        self.module, self.pick, self.constants = module, pick, constants

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.pick(self.module(**inputs, **self.constants))


def first(answer: Any) -> Tensor:
    return answer[0]


def normal(*shape: int) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(len(shape)))


TIMES = torch.tensor([900.0, 20.0])
SMALL_BLOCKS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
TINY_BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
}


def denoiser(module: nn.Module, **inputs: Tensor) -> Family:
    return Family(Called(lively(module), first, return_dict=False), {**inputs})


def dit() -> Family:
    from diffusers import DiTTransformer2DModel

    module = DiTTransformer2DModel(2, 16, 4, 8, num_layers=2, sample_size=8, patch_size=2, num_embeds_ada_norm=10)
    return denoiser(module, hidden_states=normal(4, 8, 8), timestep=TIMES, class_labels=torch.tensor([3, 10]))


def pixart() -> Family:
    """Over an oblong image, under a mask of the text."""
    from diffusers import PixArtTransformer2DModel

    module = PixArtTransformer2DModel(
        2, 16, 4, 8, 2, sample_size=8, cross_attention_dim=32, caption_channels=24, use_additional_conditions=False
    )
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    made = Called(
        lively(module), first, return_dict=False, added_cond_kwargs={"resolution": None, "aspect_ratio": None}
    )
    inputs = {"hidden_states": normal(4, 8, 12), "timestep": TIMES, "encoder_hidden_states": normal(6, 24)}
    return Family(made, {**inputs, "encoder_attention_mask": mask})


def sd3() -> Family:
    """With RMS norms of q and k, and a second attention in one block."""
    from diffusers import SD3Transformer2DModel

    module = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=20, out_channels=4,
        pos_embed_max_size=12, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    return denoiser(
        module, hidden_states=normal(4, 8, 12), timestep=TIMES, encoder_hidden_states=normal(6, 24),
        pooled_projections=normal(20),
    )  # fmt: skip


def flux() -> Family:
    """With rotary embeddings and distilled guidance, 4 x 6 tokens."""
    from diffusers import FluxTransformer2DModel

    from scoregraph.models.denoisers import Packed

    module = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=20, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    inputs = {"hidden_states": normal(4, 8, 12), "timestep": torch.tensor([0.9, 0.1])}
    inputs |= {"encoder_hidden_states": normal(5, 24), "pooled_projections": normal(20)}
    return Family(Packed(lively(module), 8, 12, 5), {**inputs, "guidance": torch.tensor([3.5, 2.0])})


def unet() -> Family:
    """Resampling inside residual blocks, time as scale and shift."""
    from diffusers import UNet2DModel

    module = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, attention_head_dim=8, resnet_time_scale_shift="scale_shift",
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"), downsample_type="resnet",
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"), upsample_type="resnet", **SMALL_BLOCKS,
    )  # fmt: skip
    return denoiser(module, sample=normal(3, 8, 12), timestep=TIMES)


def text_unet(**options: Any) -> nn.Module:
    from diffusers import UNet2DConditionModel

    blocks = {**CROSS, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), **SMALL_BLOCKS}
    return UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, **blocks, **options)


def stable_diffusion() -> Family:
    return denoiser(text_unet(), sample=normal(4, 8, 12), timestep=TIMES, encoder_hidden_states=normal(7, 24))


def controlled_unet() -> Family:
    """The residuals of a ControlNet are inputs."""

    class Residuals(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = lively(text_unet(use_linear_projection=True))

        def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, middle: Tensor, **down: Tensor) -> Tensor:
            return self.unet(
                sample, timestep, text, down_block_additional_residuals=tuple(down.values()),
                mid_block_additional_residual=middle, return_dict=False,
            )[0]  # fmt: skip

    shapes = [(8, 8, 12), (8, 8, 12), (8, 4, 6), (16, 4, 6)]
    down = {f"down{i}": normal(*shape) for i, shape in enumerate(shapes)}
    inputs = {"sample": normal(4, 8, 12), "timestep": TIMES, "text": normal(7, 24), "middle": normal(16, 4, 6)}
    return Family(Residuals(), inputs | down)


def controlnet() -> Family:
    from diffusers import ControlNetModel

    module = ControlNetModel(in_channels=4, conditioning_embedding_out_channels=(4, 8), **CROSS, **SMALL_BLOCKS)
    inputs = {"sample": normal(4, 8, 12), "timestep": TIMES, "encoder_hidden_states": normal(7, 24)}
    picked = Called(lively(module), lambda answer: answer[1], return_dict=False)
    return Family(picked, {**inputs, "controlnet_cond": normal(3, 16, 24)})


def autoencoder(kind: str, **options: Any) -> nn.Module:
    import diffusers

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return lively(getattr(diffusers, kind)(in_channels=3, out_channels=3, **blocks, **SMALL_BLOCKS, **options))


def kl_decoder() -> Family:
    return Family(autoencoder("AutoencoderKL", latent_channels=4), {"z": normal(4, 6, 8)}, "decode")


def kl_encoder() -> Family:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vae = autoencoder("AutoencoderKL", latent_channels=4)

        def forward(self, x: Tensor) -> Tensor:
            return self.vae.encode(x).latent_dist.mode()

    return Family(Mean(), {"x": normal(3, 12, 16)})


def vq_decoder() -> Family:
    return Family(autoencoder("VQModel", latent_channels=3, num_vq_embeddings=20), {"h": normal(3, 6, 8)}, "decode")


def tiny_decoder() -> Family:
    from diffusers import AutoencoderTiny

    module = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )  # fmt: skip
    return Family(lively(module), {"x": normal(4, 6, 8)}, "decode")


def deep_compression_decoder() -> Family:
    """Depthwise and grouped convolutions, linear attention."""
    from diffusers import AutoencoderDC

    kinds, widths = ("ResBlock", "EfficientViTBlock"), (8, 16)
    module = AutoencoderDC(
        latent_channels=4, attention_head_dim=8, encoder_block_types=kinds, decoder_block_types=kinds,
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        upsample_block_type="interpolate", downsample_block_type="Conv", decoder_act_fns="silu",
    )  # fmt: skip
    return Family(lively(module), {"z": normal(4, 6, 8)}, "decode")


IDS = torch.tensor([[5, 17, 3, 8, 21, 49, 49, 9, 0], [40, 2, 49, 12, 0, 0, 0, 1, 7]])
MASK = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])


def encoder(module: nn.Module, pick: str = "last_hidden_state", **inputs: Tensor) -> Family:
    return Family(Called(lively(module), lambda answer: answer[pick]), {"input_ids": IDS, **inputs})


def bert() -> Family:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=50, max_position_embeddings=16, **TINY_BLOCKS)
    return encoder(BertModel(config), attention_mask=MASK)


def clip() -> Family:
    """The pooled answer is that of the first token with the highest id."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    options = {"bos_token_id": 0, "eos_token_id": 2, "projection_dim": 16, "max_position_embeddings": 9}
    config = CLIPTextConfig(vocab_size=50, **options, **TINY_BLOCKS)
    return encoder(CLIPTextModelWithProjection(config), "text_embeds")


def t5() -> Family:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    config.feed_forward_proj, config.dense_act_fn, config.is_gated_act = "gated-gelu", "gelu_new", True
    return encoder(T5EncoderModel(config), attention_mask=MASK)


FAMILIES: Sequence[Callable[[], Family]] = (
    dit, pixart, sd3, flux, unet, stable_diffusion, controlled_unet, controlnet, kl_decoder, kl_encoder, vq_decoder,
    tiny_decoder, deep_compression_decoder, bert, clip, t5,
)  # fmt: skip
SLOW = (controlled_unet, controlnet, stable_diffusion, unet, deep_compression_decoder)
"""Those whose capture takes longest, or that hold little that the others do not."""
