"""Noise schedules: from how much noise, over which points, to none.

A schedule of N steps is a ``Grid`` of N + 1 points (alpha, sigma); the network is called at the first N. Grids are
float64 and exact neighbours: the step from a point always ends at the next one.

    schedules.scaled_linear(steps=20, offset=1)      Stable Diffusion 1 and 2
    schedules.karras(steps=12)                       EDM
    schedules.flow(steps=28, shift=3.0)              rectified flows (Stable Diffusion 3, Flux)
    schedules.flow_for((16, 128, 128), steps=28)     the same, its shift fitted to the shape of a latent
    schedules.custom(alphas, sigmas, timesteps)      any points at all

Every schedule takes ``skip=k``, which leaves out its first k steps (a start from a given image), and
``ascending=True``, which turns it around (likelihoods, inversion); ``ascend(schedule)`` is the same.
"""

from scoregraph.graph.schedules.base import SPACINGS as SPACINGS
from scoregraph.graph.schedules.base import TIMES as TIMES
from scoregraph.graph.schedules.base import Grid, Point, Schedule, ascend
from scoregraph.graph.schedules.continuous import (
    Beta,
    Exponential,
    Karras,
    Polyexponential,
    TrigFlow,
    VpSde,
)
from scoregraph.graph.schedules.custom import Custom
from scoregraph.graph.schedules.discrete import (
    Betas,
    Cosine,
    Discrete,
    ExponentialDecay,
    Laplace,
    Linear,
    ScaledLinear,
    Sigmoid,
)
from scoregraph.graph.schedules.flow import Flow, flow_for, resolution_shift

linear = Linear
scaled_linear = ScaledLinear
cosine = Cosine
laplace = Laplace
exponential_decay = ExponentialDecay
sigmoid = Sigmoid
betas = Betas
karras = Karras
exponential = Exponential
polyexponential = Polyexponential
beta = Beta
vp_sde = VpSde
trigflow = TrigFlow
flow = Flow
custom = Custom

__all__ = [
    "Discrete",
    "Grid",
    "Point",
    "Schedule",
    "ascend",
    "beta",
    "betas",
    "cosine",
    "custom",
    "exponential",
    "exponential_decay",
    "flow",
    "flow_for",
    "karras",
    "laplace",
    "linear",
    "polyexponential",
    "resolution_shift",
    "scaled_linear",
    "sigmoid",
    "trigflow",
    "vp_sde",
]
