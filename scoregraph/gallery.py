"""Sampling graphs that come with the package: what ``scoregraph generate NAME`` runs, and a place to copy from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scoregraph import models
from scoregraph.errors import UnknownName, here
from scoregraph.graph import guidance, samplers, schedules
from scoregraph.graph.builder import GraphBuilder


def terrain(steps: int = 4, guidance_scale: float = 1.0) -> GraphBuilder:
    """Heightfields in metres, [B, 128, 128], for a ``difficulty`` from 1 to 100, from a pretrained U-Net.

    The network was distilled to jump from sigma 80 to a heightfield, so the schedule stays at large noise, where its
    jumps are good; solving an ODE down to small noise leaves speckle.
    """
    net = models.load("terrain")
    g = GraphBuilder("terrain")
    level = g.condition(net, g.input("difficulty"))
    x = g.noise(net.latent)
    with g.loop(schedules.karras(steps=steps, sigma_min=30.0, sigma_max=80.0), x) as step:
        pred = g.score(net, step, level)
        if guidance_scale != 1.0:
            pred = g.fuse(guidance.cfg(guidance_scale), pred, g.score(net, step, g.condition(net, None)))
        step.advance(samplers.consistency(), pred)
    g.output(terrain=g.decode(net, step.result))
    return g


def toy(steps: int = 20, guidance_scale: float = 1.5) -> GraphBuilder:
    """A two-layer network with random weights on vectors: nothing to look at, everything to test."""
    net = models.load("toy")
    g = GraphBuilder("toy")
    level = g.condition(net, g.input("tilt"))
    x = g.noise(net.latent)
    with g.loop(schedules.linear(steps=steps), x) as step:
        pred = g.score(net, step, level)
        if guidance_scale != 1.0:
            pred = g.fuse(guidance.cfg(guidance_scale), pred, g.score(net, step, g.condition(net, None)))
        step.advance(samplers.dpmpp_2m(), pred)
    g.output(sample=step.result)
    return g


@dataclass(frozen=True)
class Exhibit:
    """A graph of the gallery: how to build it, and the inputs that ``generate`` uses where none are set."""

    build: Callable[..., GraphBuilder]
    defaults: dict[str, float]
    steps: int


GALLERY = {
    "terrain": Exhibit(terrain, {"difficulty": 60.0}, steps=4),
    "toy": Exhibit(toy, {"tilt": 0.5}, steps=20),
}


def find(name: str) -> Exhibit:
    """The exhibit of that name; raises ``UnknownName``."""
    if name not in GALLERY:
        raise UnknownName(kind="graph", name=name, known=GALLERY, where=here())
    return GALLERY[name]
