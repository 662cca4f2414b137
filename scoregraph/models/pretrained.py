"""``from_pretrained``: the folder of a diffusers pipeline as a network with its text encoder and its decoder.

A folder is what ``pipeline.save_pretrained`` writes: ``model_index.json`` and one folder per component. Nothing is
downloaded, weights are read from safetensors only, and only classes of diffusers and transformers are made.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoregraph.errors import UnreadablePipeline, here
from scoregraph.graph.values import CondInput
from scoregraph.models.denoisers import Size, from_diffusers
from scoregraph.models.network import Network, network

DENOISERS = ("unet", "transformer")
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
"""What schedulers call the prediction."""
COVERED = (
    "DDIMPipeline",
    "DDPMPipeline",
    "DiTPipeline",
    "PixArtAlphaPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionPipeline",
)
_LIBRARIES = ("diffusers", "transformers")


def from_pretrained(folder: str | Path, *, size: Size | None = None, tokens: int | None = None) -> Network:
    """The network of a pipeline folder: its denoiser, its text encoder where it has one, and the head ``image``.

    Conditions are what the encoder reads: ``prompt`` [tokens], whole numbers as the folder's tokenizer gives them (and
    ``prompt_mask`` for T5), or ``class_labels``. The head answers [3, H, W] in 0…1, as ``output_type="pt"`` does.

    ``size`` is height and width of the latent, by default the configuration's; ``tokens`` the length of a prompt.
    Raises ``UnreadablePipeline``.
    """
    folder = Path(folder)
    parts = components(folder)
    kind = parts.pop("_class_name", None)
    if kind not in COVERED:
        problem = f"it holds a {kind}; covered are {', '.join(COVERED)}"
        raise UnreadablePipeline(path=folder, problem=problem, where=here())
    role = next((role for role in DENOISERS if role in parts), None)
    if role is None:
        raise UnreadablePipeline(path=folder, problem="it names no unet and no transformer", where=here())
    denoiser = component(folder, parts, role)
    text = component(folder, parts, "text_encoder") if "text_encoder" in parts else None
    decoder = component(folder, parts, next((role for role in ("vae", "vqvae") if role in parts), None))
    controlnet = component(folder, parts, "controlnet") if "controlnet" in parts else None
    masked = kind == "PixArtAlphaPipeline"
    if tokens is None:
        tokens = 120 if masked else int(getattr(getattr(text, "config", None), "max_position_embeddings", 77))
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    prediction = PREDICTIONS.get(scheduler.get("prediction_type", "epsilon"))
    net = from_diffusers(denoiser, prediction=prediction, size=size, tokens=tokens, controlnet=controlnet)
    encoder, conds = _encoder(text, tokens, masked, net.ref.conds)
    return network(
        folder.name or str(kind),
        net.score,
        latent=net.latent,
        prediction=net.ref.prediction,  # pyright: ignore[reportArgumentType]  # every continuous network has one
        time=net.ref.time,
        conds=conds,
        encoder=encoder,
        heads={"image": Image(decoder)},
    )


def components(folder: Path) -> dict[str, Any]:
    """``model_index.json``: the pipeline's class, and (library, class) of each component that is there."""
    file = folder / "model_index.json"
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadablePipeline(path=folder, problem=f"model_index.json: {error}", where=here()) from None
    return {
        key: value
        for key, value in index.items()
        if key == "_class_name" or (isinstance(value, list) and len(value) == 2 and all(value))
    }


def component(folder: Path, parts: Mapping[str, Any], role: str | None) -> Any:
    """A component, made from its folder; None for no role. Raises ``UnreadablePipeline``."""
    if role is None:
        return None
    library, kind = parts[role]
    made: Any = getattr(importlib.import_module(library), str(kind), None) if library in _LIBRARIES else None
    if made is None:
        raise UnreadablePipeline(path=folder, problem=f"its {role} is a {library}.{kind}", where=here())
    options: dict[str, Any] = {"local_files_only": True}
    if _is_module(made):
        options |= {"use_safetensors": True, "torch_dtype": torch.float32}
        if library == "diffusers":
            options["low_cpu_mem_usage"] = False  # what it falls back to, with a warning, without another package
    try:
        found = made.from_pretrained(folder / role, **options)
    except (OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise UnreadablePipeline(path=folder, problem=f"its {role}: {line}", where=here()) from None
    return found.eval().requires_grad_(False) if isinstance(found, nn.Module) else found


def _is_module(made: Any) -> bool:
    return isinstance(made, type) and issubclass(made, nn.Module)


def _encoder(
    text: Any, tokens: int, masked: bool, conds: tuple[CondInput, ...]
) -> tuple[nn.Module | None, tuple[CondInput, ...]]:
    """The encoder of all conditions and what it reads: ids of tokens where the denoiser reads text."""
    if text is None:
        return None, conds
    prompt = CondInput("prompt", (tokens,), "i64", low=0, high=text.config.vocab_size - 1)
    if masked:
        return MaskedText(text), (prompt, CondInput("prompt_mask", (tokens,), "i64", low=0, high=1))
    others = tuple(cond for cond in conds if cond.name != "encoder_hidden_states")
    return Text(text), (prompt, *others)


class Text(nn.Module):
    """A text encoder for the first condition; the others pass."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, prompt: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Ids [B, T] to features [B, T, D]."""
        return self.encoder(prompt).last_hidden_state, *others


class MaskedText(nn.Module):
    """A text encoder that is told which tokens count, as is the denoiser after it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, prompt: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, T] to features [B, T, D] and the mask as numbers."""
        features = self.encoder(prompt, attention_mask=prompt_mask).last_hidden_state
        return features, prompt_mask.to(features.dtype)


class Image(nn.Module):
    """The final state as an image in 0…1: decoded where there is an autoencoder."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder
        config = getattr(decoder, "config", None)
        self.scale = float(getattr(config, "scaling_factor", None) or 1.0)
        self.shift = float(getattr(config, "shift_factor", None) or 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, 3, height, width]."""
        if self.decoder is not None:
            x = self.decoder.decode(x / self.scale + self.shift, return_dict=False)[0]
        return (x / 2 + 0.5).clamp(0, 1)
