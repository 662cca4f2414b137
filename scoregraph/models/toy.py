"""A two-layer score network on vectors, with seeded random weights: for examples and tests that need no download.

It knows nothing about any data. Its answers are smooth and bounded, so samplers, guidance and backends can be
compared on it, and nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from scoregraph.graph.prediction import Eps, Prediction
from scoregraph.graph.values import CondInput, Latent, Space, TimeConvention
from scoregraph.models.network import Network, network

WIDTH = 16
HIDDEN = 64
TILT = 4


class ToyScore(nn.Module):
    """``m = W2 silu(W1 [x, t, tilt] + b1) + b2``, written as three products so that each is one kernel call."""

    def __init__(self, time_scale: float) -> None:
        super().__init__()
        self.time_scale = time_scale
        self.enter = nn.Linear(WIDTH, HIDDEN)
        self.tilt = nn.Linear(TILT, HIDDEN, bias=False)
        self.time = nn.Parameter(torch.empty(HIDDEN))
        self.leave = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor, t: Tensor, tilt: Tensor) -> Tensor:
        """``x`` [n, 16], ``t`` [n], ``tilt`` [n, 4] to [n, 16]."""
        hidden = self.enter(x) + self.tilt(tilt) + (self.time_scale * t)[:, None] * self.time
        return self.leave(functional.silu(hidden))


def load(
    prediction: Prediction | None = None,
    *,
    space: Space = "vp",
    time: TimeConvention = "timestep",
    seed: int = 0,
) -> Network:
    """The toy network; by default it answers ``eps`` in vp space at a training index 0…999.

    ``tilt`` is its one condition: four numbers in [-1, 1], zero when absent.
    """
    score = ToyScore(0.001 if time in ("timestep", "flow1000") else 1.0).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in score.parameters():
        fan_in = parameter.shape[-1] if parameter.ndim == 2 else HIDDEN
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan_in**-0.5)
    return network(
        "toy",
        score,
        latent=Latent(space, (WIDTH,)),
        prediction=prediction or Eps(),
        time=time,
        conds=[CondInput("tilt", (TILT,), low=-1.0, high=1.0, null=0.0)],
    )
