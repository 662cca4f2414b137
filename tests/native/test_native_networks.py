"""Real networks inside Rust: the pretrained terrain network, DiT, a U-Net of diffusers and plain modules.

The oracle is torch in float64 on the module itself, not on what was captured; for terrain also ONNX Runtime on the
published file. Unless it is said, an error is the worst number's, over the largest one of the same sample.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from subjects import ISAS, captured_once, distance, dit, error, evaluate, exact, lively, program, small_dit
from torch import Tensor, nn
from torch.nn import functional

import scoregraph as sg
from scoregraph.errors import BadMachineSetting
from scoregraph.models import from_module, toy
from scoregraph.models.network import Network

pytestmark = pytest.mark.native


def on(plan: sg.CompiledPlan, isa: str | None, threads: int | None = None):
    """A program for one instruction set; the test is skipped where the machine lacks it."""
    try:
        return program(plan, threads, isa)
    except BadMachineSetting as problem:
        pytest.skip(str(problem).splitlines()[0])


def pieces(count: int, size: int) -> list[slice]:
    """0 … count-1 in slices of exactly ``size``; the last one overlaps its neighbour where it must."""
    return [slice(min(at, count - size), min(at, count - size) + size) for at in range(0, count, size)]


# --- terrain ------------------------------------------------------------------------------------

SIGMAS = np.geomspace(0.002, 80.0, 8)
DIFFICULTIES = (1.0, 40.0, 100.0)


@pytest.fixture(scope="module")
def levels(terrain) -> tuple[np.ndarray, tuple[Tensor, ...]]:
    """24 noisy states, one for every sigma and difficulty, [24, 1, 128, 128], and the network's inputs for them."""
    pairs = list(itertools.product(SIGMAS, DIFFICULTIES))
    sigma = torch.tensor([s for s, _ in pairs], dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    # Smooth fields at the scale of the data, and noise on them.
    rough = torch.randn(len(pairs), 1, 8, 8, generator=generator, dtype=torch.float64)
    clean = 0.5 * functional.interpolate(rough, size=(128, 128), mode="bicubic")
    noisy = clean + sigma[:, None, None, None] * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    scale = torch.tensor([terrain.ref.prediction.c_in(1.0, float(s)) for s in sigma])
    inputs = (
        (noisy * scale[:, None, None, None]).float(),
        (sigma.log() / 4).float(),
        torch.tensor([d for _, d in pairs]),
    )
    return noisy.float().numpy(), inputs


@pytest.fixture(scope="module")
def answers(terrain_plan, levels) -> dict[int, list[tuple[slice, np.ndarray]]]:
    """What Rust answers to all 24, in batches of 1, 2 and 5."""
    made = program(terrain_plan)
    _, inputs = levels
    return {
        size: [(at, evaluate(made, *(value[at] for value in inputs))) for at in pieces(len(inputs[0]), size)]
        for size in (1, 2, 5)
    }


@pytest.mark.slow
def test_terrain_is_float64_torch(terrain, levels, answers):
    _, inputs = levels
    parts = pieces(len(inputs[0]), 2)
    expected = np.concatenate([exact(terrain, *(value[at] for value in inputs)) for at in parts])
    far = {size: max(distance(got, expected[at]) for at, got in found) for size, found in answers.items()}
    worst = {size: max(error(got, expected[at]) for at, got in found) for size, found in answers.items()}
    print(f"terrain to float64 torch, worst of 8 sigmas x 3 difficulties by batch: {_shown(far)}")
    print(f"  the worst pixel over the largest: {_shown(worst)}")
    assert max(far.values()) <= 1e-5
    # A single pixel is as far off as float32 arithmetic puts it: torch's own float32 is at 1.4e-5 on these inputs.
    assert max(worst.values()) <= 2e-5


@pytest.mark.slow
def test_terrain_is_the_published_onnx(terrain, levels, answers):
    """The file computes clip(c_skip x + c_out F, -1, 1) at the sigma it is given."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from scoregraph.models.terrain import weights_file

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(weights_file()), options, providers=["CPUExecutionProvider"])
    noisy, inputs = levels
    sigma = np.repeat(SIGMAS, len(DIFFICULTIES))
    p, q = np.array([terrain.ref.prediction.to_x0(1.0, s) for s in sigma]).T[:, :, None, None, None]
    worst = {}
    for size, found in answers.items():
        errors = []
        for at, answer in found:
            level = (inputs[2][at].numpy() - 1) / 99
            feeds = {"noisy": noisy[at], "sigma": sigma[at].astype(np.float32), "difficulty": level}
            (published,) = session.run(None, feeds)
            errors.append(error(np.clip(p[at] * noisy[at] + q[at] * answer, -1, 1), published))
        worst[size] = max(errors)
    print(f"terrain to ONNX Runtime, worst of 8 sigmas x 3 difficulties by batch: {_shown(worst)}")
    assert max(worst.values()) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_terrain_on_every_instruction_set(terrain, terrain_plan, levels, answers, isa):
    made = on(terrain_plan, isa)
    _, inputs = levels
    at = slice(10, 11)
    got = evaluate(made, *(value[at] for value in inputs))
    found = error(got, exact(terrain, *(value[at] for value in inputs)))
    print(f"terrain on {isa}: {found:.1e}")
    assert found <= 1e-5


def _shown(worst: dict[int, float]) -> str:
    return ", ".join(f"{size}: {value:.1e}" for size, value in worst.items())


# --- Networks with random weights -----------------------------------------------------------------


class Block(nn.Module):
    """A transformer block of today: RMS norms, attention to a context, GEGLU; 12 tokens of width 32."""

    def __init__(self, width: int = 32, heads: int = 4, context: int = 24) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in range(3))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(context, 2 * width)
        self.out, self.out2 = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)
        self.time = nn.Linear(1, width)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = functional.scaled_dot_product_attention(self.split(q), self.split(k), self.split(v))
        return mixed.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """``x`` [n, 12, 32], ``t`` [n], ``context`` [n, 7, 24] to [n, 12, 32]."""
        h = x + self.time(t[:, None])[:, None]
        h = h + self.out(self.attend(*self.qkv(self.norms[0](h)).chunk(3, dim=-1)))
        h = h + self.out2(self.attend(self.q(self.norms[1](h)), *self.kv(context).chunk(2, dim=-1)))
        value, gate = self.up(self.norms[2](h)).chunk(2, dim=-1)
        return h + self.down(value * functional.gelu(gate))


def block() -> Network:
    example = {"x": torch.randn(3, 12, 32), "t": torch.rand(3), "context": torch.randn(3, 7, 24)}
    return from_module(lively(Block()), example, prediction="flow", name="block")


def unet(height: int, width: int) -> Network:
    """diffusers' U-Net with attention, at two resolutions."""
    from diffusers import UNet2DModel

    module = UNet2DModel(
        sample_size=(height, width),
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
        layers_per_block=1,
    )
    example = (torch.randn(3, 3, height, width), torch.tensor([900, 500, 10]))
    return from_module(lively(module), example, prediction="eps", name="unet")


def mlp(width: int, hidden: int) -> Network:
    """Layers whose widths are no multiple of any tile."""

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(width + 1, hidden), nn.Linear(hidden, hidden)])
            self.norm = nn.LayerNorm(hidden)
            self.last = nn.Linear(hidden, width)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            h = functional.gelu(self.layers[0](torch.cat([x, t[:, None]], dim=1)), approximate="tanh")
            return self.last(torch.tanh(self.norm(h + self.layers[1](h))))

    return from_module(lively(Mlp()), (torch.randn(3, width), torch.rand(3)), prediction="x0", convention="c_noise")


NETWORKS = {
    "toy": toy.load,
    "mlp 5-7": lambda: mlp(5, 7),
    "mlp 33-130": lambda: mlp(33, 130),
    "block": block,
    "unet 16x16": lambda: unet(16, 16),
    "unet 8x24": lambda: unet(8, 24),
    "dit 2x64": small_dit,
}


@pytest.fixture(scope="module", params=NETWORKS)
def compiled(request) -> tuple[Network, sg.CompiledPlan]:
    net = captured_once(NETWORKS[request.param]())
    return net, sg.compile(net, device="cpu", use_cache=False)


def example(net: Network, batch: int) -> tuple[Tensor, ...]:
    """Inputs of a network's plan."""
    x, t, *_ = net.score_example(batch)
    return (x, t, *net.raw_conditions(batch))


@pytest.mark.parametrize("isa", ISAS)
def test_a_network_is_float64_torch(compiled, isa):
    net, plan = compiled
    made = on(plan, isa)
    worst = {}
    for batch in (1, 2, 3):
        inputs = example(net, batch)
        worst[batch] = error(evaluate(made, *inputs), exact(net, *inputs))
    print(f"{net.ref.name} {net.ref.latent} on {isa}, by batch: {_shown(worst)}")
    assert max(worst.values()) <= 1e-5


@pytest.mark.slow
def test_dit_of_twelve_layers_is_float64_torch():
    """AdaLN-Zero, 12 layers, width 384, 16 x 16 patches, class labels; weights at the scale of trained ones."""
    net = dit(layers=12, heads=6, head_width=64, size=32)
    plan = sg.compile(net, device="cpu", use_cache=False)
    worst = {}
    for batch in (1, 3):
        inputs = example(net, batch)
        worst[batch] = error(evaluate(program(plan), *inputs), exact(net, *inputs))
    print(f"dit 12x384, by batch: {_shown(worst)}")
    assert max(worst.values()) <= 1e-5


RUN = """
import sys
import numpy as np
import scoregraph as sg

plan = sg.load(sys.argv[1], threads=1)
print(plan.program.native.target()[0])
np.save(sys.argv[2], plan.run(x=np.load(sys.argv[3]), t=0.5, context=0.25)["m"])
"""


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_chooses_the_instruction_set(tmp_path, isa):
    """A process that is started with SCOREGRAPH_ISA computes the bits of that instruction set."""
    net = captured_once(block())
    plan = sg.compile(net, device="cpu", use_cache=False)
    made = on(plan, isa, threads=1)
    x = net.score_example(2)[0]
    expected = evaluate(made, x, torch.full((2,), 0.5), torch.full((2, 7, 24), 0.25))
    np.save(tmp_path / "x.npy", x.numpy())
    paths = [str(plan.save(tmp_path / "plan")), str(tmp_path / "m.npy"), str(tmp_path / "x.npy")]
    environment = {**os.environ, "SCOREGRAPH_ISA": isa}
    said = subprocess.check_output([sys.executable, "-c", RUN, *paths], env=environment, text=True, timeout=100)
    assert said.strip() == isa
    assert np.load(tmp_path / "m.npy").tobytes() == expected.tobytes()
