"""``from_diffusers``: the denoisers of diffusers as networks, their shapes and conditions from their configurations.

One function per family gives what ``from_module`` asks a user for: example inputs by the names of ``forward``, bounds
of the conditions, and which half of the channels is the prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scoregraph.errors import UnknownDenoiser, here
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.values import TimeConvention
from scoregraph.models.adapter import Half, from_module
from scoregraph.models.network import Network

Size = int | Sequence[int]


@dataclass(frozen=True)
class Arguments:
    """How a denoiser is called.

    Attributes:
        examples: example inputs by name, the state first, for a batch of 2, and constants.
        conds: bounds of the conditions by name.
        prediction: what it predicts; None where only its training knows.
        half: which half of its channels that is.
        time: what it calls time; None: what follows from the prediction.
        module: what is called in place of the denoiser itself.
    """

    examples: Mapping[str, Any]
    conds: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    prediction: str | None = None
    half: Half | None = None
    time: TimeConvention | None = None
    module: nn.Module | None = None


def from_diffusers(
    denoiser: nn.Module,
    *,
    prediction: Prediction | str | None = None,
    size: Size | None = None,
    tokens: int = 77,
    controlnet: nn.Module | None = None,
    name: str | None = None,
) -> Network:
    """A ``Network`` around a denoiser of diffusers.

    Covered are ``UNet2DModel``, ``UNet2DConditionModel``, ``DiTTransformer2DModel``, ``PixArtTransformer2DModel``,
    ``SD3Transformer2DModel`` and ``FluxTransformer2DModel``; any other module goes through ``from_module``.

    Args:
        denoiser: the module, used as it is.
        prediction: ``"eps"``, ``"v"``, ``"x0"``, ``"flow"`` …; U-Nets must be told, their training knows.
        size: height and width of the latent, by default the configuration's ``sample_size``.
        tokens: the length of the text conditions.
        controlnet: a ``ControlNetModel`` for a ``UNet2DConditionModel``; its image is the condition
            ``controlnet_cond``.
        name: of the network, by default that of the class.

    Raises ``UnknownDenoiser`` and what ``from_module`` raises.
    """
    kind = type(denoiser).__name__
    if kind not in _FAMILIES:
        raise UnknownDenoiser(kind=kind, known=", ".join(_FAMILIES), where=here(), help=_USE_MODULE)
    height, width = _size(denoiser.config, size)
    if controlnet is not None:
        denoiser = Controlled(denoiser, controlnet)
        told = _controlled(denoiser, height, width, tokens)
    else:
        told = _FAMILIES[kind](denoiser, height, width, tokens)
    prediction = prediction or told.prediction
    if prediction is None:
        raise UnknownDenoiser(kind=kind, known=", ".join(_FAMILIES), where=here(), help=_SAY_PREDICTION)
    tensors = [key for key, value in told.examples.items() if isinstance(value, Tensor)]
    return from_module(
        told.module or denoiser,
        told.examples,
        prediction=prediction,
        x=tensors[0],
        time="timestep",
        conds={key: told.conds.get(key, {}) for key in tensors[1:] if key != "timestep"},
        name=name or kind,
        half=told.half,
        convention=told.time,
    )


_USE_MODULE = "give it to from_module, with example inputs and what it predicts"
_SAY_PREDICTION = 'say what it was trained to predict: prediction="eps", "v", "x0" or "flow"'


def _size(config: Any, size: Size | None) -> tuple[int, int]:
    """(height, width)."""
    size = size if size is not None else getattr(config, "sample_size", None)
    if size is None:
        size = 64
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _common(channels: int, height: int, width: int, state: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        state: torch.randn(2, channels, height, width, generator=generator),
        "timestep": torch.tensor([900.0, 20.0]),
    }


def _text(tokens: int, width: int) -> Tensor:
    return torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(1))


def _unet(module: nn.Module, height: int, width: int, tokens: int) -> Arguments:
    config: Any = module.config
    examples = _common(config.in_channels, height, width, "sample")
    conds: dict[str, Mapping[str, float]] = {}
    if config.num_class_embeds is not None:
        examples["class_labels"] = torch.tensor([0, 1])
        conds["class_labels"] = {"low": 0, "high": config.num_class_embeds - 1}
    return Arguments(examples, conds)


def _unet_condition(module: nn.Module, height: int, width: int, tokens: int) -> Arguments:
    config: Any = module.config
    examples = _common(config.in_channels, height, width, "sample")
    examples["encoder_hidden_states"] = _text(tokens, config.cross_attention_dim)
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        examples["text_embeds"] = _text(1, pooled)[:, 0]
        examples["time_ids"] = torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]]).repeat(2, 1)
        return Arguments(examples, module=WithAddedConditions(module))
    return Arguments(examples)


def _dit(module: nn.Module, height: int, width: int, tokens: int) -> Arguments:
    config: Any = module.config
    examples = _common(config.in_channels, height, width, "hidden_states")
    examples["class_labels"] = torch.tensor([0, 1])
    null = config.num_embeds_ada_norm
    conds = {"class_labels": {"low": 0, "high": null, "null": null}}
    return Arguments(examples, conds, "eps", _learned_variance(config))


def _pixart(module: nn.Module, height: int, width: int, tokens: int) -> Arguments:
    config: Any = module.config
    examples = _common(config.in_channels, height, width, "hidden_states")
    examples["encoder_hidden_states"] = _text(tokens, config.caption_channels)
    examples["encoder_attention_mask"] = torch.ones(2, tokens)
    constants: dict[str, Any] = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    if module.use_additional_conditions:
        pixels = [8.0 * height, 8.0 * width]
        module = WithResolution(module, pixels)
        constants = {}
    conds = {"encoder_attention_mask": {"low": 0.0, "high": 1.0}}
    return Arguments({**examples, **constants}, conds, "eps", _learned_variance(config), module=module)


def _sd3(module: nn.Module, height: int, width: int, tokens: int) -> Arguments:
    config: Any = module.config
    examples = _common(config.in_channels, height, width, "hidden_states")
    examples["encoder_hidden_states"] = _text(tokens, config.joint_attention_dim)
    examples["pooled_projections"] = _text(1, config.pooled_projection_dim)[:, 0]
    return Arguments(examples, prediction="flow", time="flow1000")


def _flux(module: nn.Module, height: int, width: int, tokens: int) -> Arguments:
    config: Any = module.config
    examples = _common(config.in_channels // 4, height, width, "hidden_states")
    examples["timestep"] = torch.tensor([0.9, 0.05])
    examples["encoder_hidden_states"] = _text(tokens, config.joint_attention_dim)
    examples["pooled_projections"] = _text(1, config.pooled_projection_dim)[:, 0]
    if config.guidance_embeds:
        examples["guidance"] = torch.tensor([3.5, 2.0])
    return Arguments(examples, prediction="flow", module=Packed(module, height, width, tokens))


def _controlled(module: nn.Module, height: int, width: int, tokens: int) -> Arguments:
    assert isinstance(module, Controlled)
    examples = _common(module.unet.config.in_channels, height, width, "sample")
    examples["encoder_hidden_states"] = _text(tokens, module.unet.config.cross_attention_dim)
    # The image is as much larger than the latent as the ControlNet's own convolutions make it smaller.
    factor = 2 ** (len(module.controlnet.config.conditioning_embedding_out_channels) - 1)
    channels = module.controlnet.config.conditioning_channels
    generator = torch.Generator().manual_seed(2)
    examples["controlnet_cond"] = torch.rand(2, channels, factor * height, factor * width, generator=generator)
    return Arguments(examples)


def _learned_variance(config: Any) -> Half | None:
    """DiT and PixArt answer a variance behind the prediction, which most samplers do not read."""
    return "first" if config.out_channels == 2 * config.in_channels else None


class Controlled(nn.Module):
    """A U-Net with a ControlNet: the residuals of the one are added in the other."""

    def __init__(self, unet: Any, controlnet: Any) -> None:
        super().__init__()
        self.unet, self.controlnet = unet, controlnet

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, controlnet_cond: Tensor
    ) -> Tensor:
        """``sample`` [n, C, H, W], ``timestep`` [n], the text [n, T, D], the image [n, 3, 8 H, 8 W] to [n, C, H, W]."""
        down, middle = self.controlnet(sample, timestep, encoder_hidden_states, controlnet_cond, return_dict=False)
        return self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]


class WithAddedConditions(nn.Module):
    """An SDXL U-Net, whose pooled text and sizes come as arguments of their own."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, text_embeds: Tensor, time_ids: Tensor
    ) -> Tensor:
        """``text_embeds`` [n, P] and ``time_ids`` [n, 6] (original size, crop, target size)."""
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.unet(sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)[0]


class WithResolution(nn.Module):
    """A PixArt transformer told the size of its image, which is fixed with its latent's."""

    resolution: Tensor
    ratio: Tensor

    def __init__(self, transformer: nn.Module, pixels: Sequence[float]) -> None:
        super().__init__()
        self.transformer = transformer
        self.register_buffer("resolution", torch.tensor([list(pixels)]))
        self.register_buffer("ratio", torch.tensor([[pixels[0] / pixels[1]]]))

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
    ) -> Tensor:
        """[n, C, H, W], [n], [n, T, D] and [n, T] to [n, C or 2 C, H, W]."""
        n = hidden_states.shape[0]
        added = {"resolution": self.resolution.expand(n, -1), "aspect_ratio": self.ratio.expand(n, -1)}
        return self.transformer(
            hidden_states,
            timestep=timestep,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]


class Packed(nn.Module):
    """A Flux transformer over images: squares of 2 x 2 pixels are its tokens, with their places as indices."""

    places: Tensor
    text_places: Tensor

    def __init__(self, transformer: nn.Module, height: int, width: int, tokens: int) -> None:
        super().__init__()
        self.transformer = transformer
        rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
        self.register_buffer("places", places.float())
        self.register_buffer("text_places", torch.zeros(tokens, 3))

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """[n, C, H, W], [n] in 0…1, [n, T, D], [n, P] and the distilled guidance [n] to [n, C, H, W]."""
        n, channels, height, width = hidden_states.shape
        squares = hidden_states.reshape(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        answer = self.transformer(
            hidden_states=squares.reshape(n, (height // 2) * (width // 2), 4 * channels),
            timestep=timestep,
            guidance=guidance,
            pooled_projections=pooled_projections,
            encoder_hidden_states=encoder_hidden_states,
            txt_ids=self.text_places,
            img_ids=self.places,
            return_dict=False,
        )[0]
        pixels = answer.reshape(n, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return pixels.reshape(n, channels, height, width)


_FAMILIES: dict[str, Callable[[nn.Module, int, int, int], Arguments]] = {
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _unet_condition,
    "DiTTransformer2DModel": _dit,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}
