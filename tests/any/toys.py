"""Small networks for tests of the spine, each captured once however often it is compiled."""

from __future__ import annotations

import functools
from dataclasses import replace

from scoregraph.graph import guidance, samplers, schedules
from scoregraph.graph.builder import GraphBuilder
from scoregraph.graph.prediction import Prediction
from scoregraph.models import toy
from scoregraph.models.network import Network


@functools.cache
def network(name: str = "toy", seed: int = 0, prediction: Prediction | None = None) -> Network:
    """A toy network under a name of its own, whose tensor programs are made on first use and kept."""
    made = toy.load(prediction, seed=seed)
    made = replace(made, ref=replace(made.ref, name=name))
    return captured_once(made)


def captured_once(network: Network) -> Network:
    """The same network, whose tensor programs are made on first use and kept."""
    capture, kept = network.capture_part, {}

    def capture_part(part, energies=None):
        if part not in kept:
            kept[part] = capture(part, energies)
        return kept[part]

    object.__setattr__(network, "capture_part", capture_part)
    return network


def guided(steps: int = 6, scale: float = 1.5, name: str = "guided", sampler=None, schedule=None) -> GraphBuilder:
    """Classifier-free guidance over the toy network; the input is ``tilt``."""
    net = network()
    g = GraphBuilder(name)
    level, blank = g.condition(net, g.input("tilt")), g.condition(net, None)
    with g.loop(schedule or schedules.linear(steps=steps), g.noise(net)) as step:
        pred = g.fuse(guidance.cfg(scale), g.score(net, step, level), g.score(net, step, blank))
        step.advance(sampler or samplers.dpmpp_2m(), pred)
    g.output(sample=step.result)
    return g
