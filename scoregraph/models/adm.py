"""The ADM U-Net (Dhariwal & Nichol 2021, "Diffusion models beat GANs"), as EDM and consistency models use it.

Residual blocks with scale-shift group norm, resampling inside a residual block, attention at chosen resolutions.
Parameter names are those of the guided-diffusion code base, so its state dicts load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class ADMConfig:
    """The shape of an ADM U-Net; level ``i`` works at ``size / 2**i`` with ``channels * multipliers[i]`` channels."""

    in_channels: int
    out_channels: int
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    """Residual blocks per level on the way down; one more on the way up."""
    attention: tuple[int, ...]
    """The levels that attend."""
    head_width: int
    label_width: int
    """Features of the label vector that enters beside the time."""
    groups: int = 32

    @property
    def embedding(self) -> int:
        """The width of the vector that time and label become."""
        return 4 * self.channels


def sinusoids(t: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """``[cos(t f_i), sin(t f_i)]`` with ``f_i = longest**(-i / (width/2))``: ``t`` [n] to [n, width]."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float64, device=t.device)
    frequencies = torch.exp(steps * (-math.log(longest) / half)).to(t.dtype)
    angle = t[:, None] * frequencies[None]
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class Residual(nn.Module):
    """``skip(x) + conv(silu(norm(conv(resample(silu(norm x)))) * (1 + scale) + shift))``; scale, shift from ``emb``."""

    def __init__(self, width_in: int, width_out: int, config: ADMConfig, resample: str = "none") -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(
            nn.GroupNorm(config.groups, width_in), nn.SiLU(), nn.Conv2d(width_in, width_out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(config.embedding, 2 * width_out))
        # The third place was dropout while the network was trained; the name of the convolution counts on it.
        self.out_layers = nn.Sequential(
            nn.GroupNorm(config.groups, width_out),
            nn.SiLU(),
            nn.Identity(),
            nn.Conv2d(width_out, width_out, 3, padding=1),
        )
        self.skip_connection = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """``x`` [n, width_in, H, W] and ``emb`` [n, embedding] to [n, width_out, H', W']."""
        norm, silu, conv = self.in_layers
        h = conv(self._resampled(silu(norm(x))))
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        norm, silu, _, conv = self.out_layers
        h = conv(silu(norm(h) * (1 + scale) + shift))
        return self.skip_connection(self._resampled(x)) + h

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return functional.avg_pool2d(x, 2)
        if self.resample == "up":
            return functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return x


class Attention(nn.Module):
    """``x + proj(attention(qkv(norm x)))`` over the pixels; channels are q, k, v, each split into heads."""

    def __init__(self, width: int, config: ADMConfig) -> None:
        super().__init__()
        self.heads = width // config.head_width
        self.norm = nn.GroupNorm(config.groups, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [n, width, H, W] to the same shape."""
        n, width, height, breadth = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, 3, self.heads, width // self.heads, height * breadth)
        q, k, v = qkv.transpose(-1, -2).unbind(dim=1)
        h = functional.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.proj_out(h.reshape(n, width, height, breadth))


class Blocks(nn.ModuleList):
    """Layers in sequence; residual blocks also get the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """``x`` [n, C, H, W] through every layer."""
        for layer in self:
            x = layer(x, emb) if isinstance(layer, Residual) else layer(x)
        return x


class ADMUNet(nn.Module):
    """The raw network F: ``forward(x [n, C, H, W], t [n], label [n, L]) -> [n, C', H, W]``.

    ``t`` is EDM's noise condition ln(sigma)/4. Input scaling and the skip and output weights of the preconditioning
    are not in here: they belong to the prediction (``edm``, ``consistency``) and to the sampler's table.
    """

    def __init__(self, config: ADMConfig) -> None:
        super().__init__()
        self.config = config
        emb = config.embedding
        self.time_embed = nn.Sequential(nn.Linear(config.channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label_emb = nn.Sequential(nn.Linear(config.label_width, emb), nn.SiLU(), nn.Linear(emb, emb))

        width = config.channels * config.multipliers[0]
        self.input_blocks = nn.ModuleList([Blocks([nn.Conv2d(config.in_channels, width, 3, padding=1)])])
        skips = [width]
        last = len(config.multipliers) - 1
        for level, multiplier in enumerate(config.multipliers):
            for _ in range(config.blocks):
                self.input_blocks.append(_attending(width, multiplier * config.channels, level, config))
                width = multiplier * config.channels
                skips.append(width)
            if level != last:
                self.input_blocks.append(Blocks([Residual(width, width, config, "down")]))
                skips.append(width)

        self.middle_block = Blocks(
            [Residual(width, width, config), Attention(width, config), Residual(width, width, config)]
        )

        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            for block in range(config.blocks + 1):
                stage = _attending(width + skips.pop(), multiplier * config.channels, level, config)
                width = multiplier * config.channels
                if level and block == config.blocks:
                    stage.append(Residual(width, width, config, "up"))
                self.output_blocks.append(stage)

        self.out = nn.Sequential(
            nn.GroupNorm(config.groups, width), nn.SiLU(), nn.Conv2d(width, config.out_channels, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """The network's output at scaled input ``x``, noise condition ``t`` and label features ``label``."""
        # The sinusoids were trained on a time of 1000 * c_noise, that is 250 ln(sigma).
        emb = self.time_embed(sinusoids(1000.0 * t, self.config.channels)) + self.label_emb(label)
        skips: list[Tensor] = []
        for block in self.input_blocks:
            x = block(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb)
        return self.out(x)


def _attending(width_in: int, width_out: int, level: int, config: ADMConfig) -> Blocks:
    """A residual block, followed by attention where the level attends."""
    blocks: Sequence[nn.Module] = [Residual(width_in, width_out, config)]
    if level in config.attention:
        blocks = [*blocks, Attention(width_out, config)]
    return Blocks(blocks)
