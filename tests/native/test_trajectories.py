"""Whole trajectories of real networks in Rust against the graph, interpreted in float64 by the formulas of the papers.

Conditions with encoders and lookups, absent conditions, guidance, noise in every step and heads all take part.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from subjects import captured_once, distance, lively, sampling, small_dit

import scoregraph as sg
from scoregraph.backends.reference import eager
from scoregraph.graph import guidance, noise, samplers, schedules
from scoregraph.models import from_module
from scoregraph.models.network import Network

pytestmark = pytest.mark.native

BATCH = 2
SEEDS = noise.sample_seeds(123, BATCH)


def unet() -> Network:
    """A U-Net of diffusers on class labels, embedded as numbers by the network itself; no square."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    module = UNet2DModel(
        sample_size=(8, 16),
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        layers_per_block=1,
        num_class_embeds=11,
    )
    example = {
        "sample": torch.randn(3, 2, 8, 16),
        "timestep": torch.tensor([900, 500, 10]),
        "class_labels": torch.tensor([1, 2, 10]),
    }
    bounds = {"class_labels": {"low": 0, "high": 10, "null": 10}}
    return captured_once(from_module(lively(module), example, prediction="v", conds=bounds, name="unet"))


CASES = {
    "dit heun": (small_dit, schedules.cosine(steps=5), samplers.heun(), guidance.cfg(3.0)),
    "dit ddim": (small_dit, schedules.scaled_linear(steps=10), samplers.ddim(1.0), guidance.compose((2.0, 1.0))),
    "unet dpmpp_2m": (unet, schedules.linear(steps=10), samplers.dpmpp_2m(), guidance.cfg(3.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_trajectory_is_the_graph(name):
    make, schedule, sampler, rule = CASES[name]
    net = make()
    graph = sampling(net, schedule, sampler, rule).build()
    given = {f"cond{i}": np.array([3, 9 - i]) for i in range(rule.branches - 1)}
    plan = sg.compile(graph, device="cpu", networks={net.ref.fingerprint: net}, use_cache=False)
    got = plan.run(seeds=SEEDS, **given)["x"]
    expected = eager.run(graph, {net.ref.name: net}, given, SEEDS)["x"]
    found = distance(got, expected)
    print(f"{name}: {found:.1e}")
    assert found <= 1e-5


@pytest.mark.slow
def test_terrain_is_the_graph(terrain, terrain_sampling):
    """Two guided jumps and the head, which bends errors of the state: heights in metres."""
    graph, plan = terrain_sampling
    given = {"cond0": np.array([20.0, 90.0], np.float32)}
    got = plan.run(seeds=SEEDS, **given)
    expected = eager.run(graph, {"terrain": terrain}, given, SEEDS)
    found = {name: distance(got[name], expected[name]) for name in got}
    print(f"terrain: {', '.join(f'{name} {value:.1e}' for name, value in found.items())}")
    assert got["decoded"].shape == (BATCH, 128, 128)
    assert max(found.values()) <= 1e-5
