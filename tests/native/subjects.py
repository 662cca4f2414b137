"""Networks of the native tests, each captured once however often it is compiled, and how answers are compared."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from toys import captured_once

import scoregraph as sg
from scoregraph.backends.cpu import Cpu, CpuProgram
from scoregraph.graph.builder import GraphBuilder
from scoregraph.graph.guidance import Guidance
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule
from scoregraph.graph.values import Latent, Space, TimeConvention
from scoregraph.models import from_module, toy
from scoregraph.models.network import Network

ISAS = ("scalar", "avx2", "avx512")


@functools.cache
def _toy(training_times: bool) -> Network:
    return captured_once(toy.load(time="timestep" if training_times else "c_noise", space="kappa"))


def toy_network(prediction: Prediction, time: TimeConvention, space: Space) -> Network:
    """The toy network as one of any parameterization: its layers, and so its capture, are the same for all."""
    base = _toy(time in ("timestep", "flow1000"))
    ref = replace(base.ref, prediction=prediction, time=time, latent=Latent(space, (toy.WIDTH,)))
    network = replace(base, ref=ref)
    object.__setattr__(network, "capture_part", base.capture_part)
    return network


def sampling(net: Network, schedule: Schedule, sampler: Sampler, rule: Guidance) -> GraphBuilder:
    """A guided loop over ``net``: as many conditions as the rule has branches, the last of them absent.

    The inputs are ``cond0``, ``cond1``, …; the outputs the final state and, where the network has a head, its value.
    """
    g = GraphBuilder("sampling")
    *given, _ = rule.roles
    levels = [g.condition(net, g.input(f"cond{i}")) for i in range(len(given))] + [g.condition(net, None)]
    with g.loop(schedule, g.noise(net)) as step:
        step.advance(sampler, g.fuse(rule, *(g.score(net, step, level) for level in levels)))
    g.output(x=step.result)
    if net.heads:
        g.output(decoded=g.decode(net, step.result))
    return g


def program(plan: sg.CompiledPlan, threads: int | None = None, isa: str | None = None) -> CpuProgram:
    """A program of its own for a compiled plan."""
    return Cpu(threads, isa).compile(plan.plan, plan._constants)


def exact(network: Network, *inputs: Tensor) -> np.ndarray:
    """One evaluation of a network, encoder included, in float64: inputs x, t and the raw conditions."""

    def double(value: Tensor) -> Tensor:
        return value.double() if value.is_floating_point() else value

    x, t, *raw = (double(value) for value in inputs)
    with torch.no_grad():
        encoded = raw
        if network.encoder is not None:
            out = copy.deepcopy(network.encoder).double()(*raw)
            encoded = [out] if isinstance(out, Tensor) else list(out)
        return copy.deepcopy(network.score).double()(x, t, *encoded).numpy()


def evaluate(made: CpuProgram, *inputs: Tensor) -> np.ndarray:
    """One evaluation of a network's plan: inputs x, t and the raw conditions, in the order of the plan."""
    names = [spec.name for spec in made.plan.inputs]
    assert len(names) == len(inputs)
    bound = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return made.run(bound, np.zeros(len(inputs[0]), np.uint64))["m"]


def error(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference in a sample over the largest number in it, of the worst sample."""
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    assert np.isfinite(expected).all()
    gap = np.abs(got.astype(np.float64) - expected).reshape(len(got), -1).max(axis=1)
    return float((gap / np.abs(expected).reshape(len(got), -1).max(axis=1)).max())


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    """The Euclidean distance of a sample to the expected one over the length of that, of the worst sample."""
    assert got.shape == expected.shape
    gap = np.linalg.norm((got - expected).reshape(len(got), -1), axis=1)
    return float((gap / np.linalg.norm(expected.reshape(len(got), -1), axis=1)).max())


# --- Transformers and U-Nets --------------------------------------------------------------------


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of the scale that training gives them: gates, modulations and biases that all matter.

    A fresh network hides mistakes: its biases and often its last layers are zero, and its gains are one.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                noise *= parameter[0].numel() ** -0.5
                parameter.copy_(noise)
            else:
                parameter.copy_(0.3 * noise + ("norm" in name and name.endswith("weight")))
    return module.eval()


def dit(layers: int, heads: int, head_width: int, size: int) -> Network:
    """A DiT with AdaLN-Zero and class labels over ``size`` x ``size`` latents in patches of 2."""
    from diffusers import DiTTransformer2DModel

    module = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=head_width,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        sample_size=size,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    example = {
        "hidden_states": torch.randn(3, 4, size, size),
        "timestep": torch.tensor([900, 500, 10]),
        "class_labels": torch.tensor([1, 2, 3]),
    }
    bounds = {"class_labels": {"low": 0, "high": 1000, "null": 1000}}
    return captured_once(from_module(lively(module), example, prediction="eps", conds=bounds, name="dit"))


@functools.cache
def small_dit() -> Network:
    """Two layers of width 64 over 64 tokens."""
    return dit(layers=2, heads=2, head_width=32, size=16)
