"""Log-likelihoods by the instantaneous change of variables: how probable a sample is under a score network.

The probability-flow ODE in X = x / alpha and kappa = sigma / alpha is dX/dkappa = eps(X, kappa), and along it the
density changes by d log p / dkappa = -div eps (Chen et al. 2018, theorem 1; Song et al. 2021, section 4.3). So a sample
is walked up to the schedule's largest noise, where its density is known, and a second value collects -div eps beside::

    density = sg.likelihood(net, sg.schedules.karras(steps=40))
    plan = sg.compile(density.graph)
    log_p = density.log_prob(plan.run(**density.inputs(samples)))

Both move by the same sampler, so the error is that of its order. The density is that at the schedule's smallest noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scoregraph.graph.builder import GraphBuilder, HasRef
from scoregraph.graph.samplers import Sampler, heun
from scoregraph.graph.schedules import Point, Schedule, ascend
from scoregraph.graph.values import Latent, NetRef

STATE, NOISE_SIDE, COLLECTED = "x", "noise", "collected"


@dataclass(frozen=True)
class Likelihood:
    """The graph of a likelihood, and what its outputs mean.

    Attributes:
        graph: to be compiled. Inputs are ``x``, which ``inputs`` prepares, and the network's conditions by their names.
        first: the walk's first point, of the least noise; x there is alpha times a clean sample.
        last: its last, of the most, at which X is taken to be N(0, kappa^2).
    """

    graph: GraphBuilder = field(repr=False)
    latent: Latent
    first: Point
    last: Point

    def inputs(self, samples: ArrayLike, **conditions: Any) -> dict[str, Any]:
        """What ``plan.run`` takes for clean samples [B, *shape] and the conditions of each."""
        return {STATE: np.asarray(samples, np.float32) * np.float32(self.first.alpha), **conditions}

    def log_prob(self, outputs: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """The log-density of every sample, in nats: [B], float64, from the outputs of the plan.

        log p(X) = log N(X_last; 0, kappa^2) + the integral of div eps. It is the density of data with the first point's
        noise, at the clean sample and in its units.
        """
        noisy = np.asarray(outputs[NOISE_SIDE], np.float64).reshape(-1, math.prod(self.latent.shape)) / self.last.alpha
        kappa = self.last.kappa
        prior = -0.5 * (noisy / kappa) ** 2 - math.log(kappa) - 0.5 * math.log(2 * math.pi)
        return prior.sum(1) - np.asarray(outputs[COLLECTED], np.float64).reshape(-1)


def likelihood(
    net: HasRef | NetRef,
    schedule: Schedule,
    *,
    sampler: Sampler | None = None,
    unconditional: bool = False,
    probed: bool = False,
) -> Likelihood:
    """The log-likelihood of samples under a score network, as a graph.

    Args:
        net: a network of latents.
        schedule: is walked from its least noise to its most; a final point without noise is left out. The largest
            noise must drown the data, for only then is the density there that of the noise.
        sampler: moves the state and the density beside it: Heun's method unless given. It may not draw.
        unconditional: take the network without its conditions; otherwise they are inputs of the graph.
        probed: Hutchinson's estimate of the divergence, from one vector of random signs for each sample (the seed of
            the run chooses it), instead of its exact value, which costs as many evaluations as the state has numbers.
    """
    ref = net if isinstance(net, NetRef) else net.ref
    walk = ascend(schedule)
    rule = heun() if sampler is None else sampler
    g = GraphBuilder(f"{ref.name}-likelihood")
    given = None if unconditional else {cond.name: g.input(cond.name) for cond in ref.conds}
    cond = g.condition(net, None) if given is None else g.condition(net, **given)
    assert isinstance(ref.latent, Latent), "a likelihood is of latents"
    probe = g.noise(ref.latent) if probed else None
    with g.loop(walk, g.input(STATE, ref.latent), g.constant(0.0, Latent("kappa", (1,)))) as step:
        step.advance(rule, g.score(net, step, cond))
        step.advance(rule, g.divergence(net, step, cond, probe), index=1)
    x, collected = step.results
    g.output(**{NOISE_SIDE: x, COLLECTED: collected})
    grid = walk.grid().in_space(ref.latent.space)
    return Likelihood(g, ref.latent, grid.point(0), grid.point(grid.steps))
