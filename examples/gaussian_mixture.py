"""Your own network in a sampling graph: the exact denoiser of a mixture of Gaussians, sampled and drawn.

    python examples/gaussian_mixture.py [FOLDER]

Nothing is trained or downloaded: the score of a mixture has a closed form, so the picture shows what the sampler does
and nothing else. The condition picks how many of the eight centres count; guidance sharpens that choice.
"""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import scoregraph as sg


class Mixture(nn.Module):
    """E[x0 | x] for x = x0 + sigma eps, where x0 is drawn around the first ``count`` of eight points on a circle."""

    def __init__(self, radius: float = 1.0, spread: float = 0.06) -> None:
        super().__init__()
        angles = torch.arange(8) * (2 * math.pi / 8)
        self.register_buffer("centres", radius * torch.stack([angles.cos(), angles.sin()], dim=1))  # [8, 2]
        self.register_buffer("number", torch.arange(8.0))
        self.variance = spread**2

    def forward(self, x: Tensor, sigma: Tensor, count: Tensor) -> Tensor:
        """``x`` [n, 2], ``sigma`` [n], ``count`` [n] to the denoised points [n, 2]."""
        total = (sigma * sigma + self.variance)[:, None]
        offsets = x[:, None, :] - self.centres  # [n, 8, 2]
        logits = -(offsets * offsets).sum(-1) / (2 * total)
        logits = logits - 1e4 * torch.relu(self.number - count[:, None] + 1)  # centres beyond the count are out
        weights = torch.softmax(logits, -1)
        nearest = torch.matmul(weights, self.centres)
        return nearest + (self.variance / total) * (x - nearest)


def build(rule: sg.guidance.Guidance) -> sg.GraphBuilder:
    """24 steps of Heun's method under a guidance rule."""
    net = sg.models.from_module(
        Mixture(),
        {
            "x": torch.randn(4, 2),
            "sigma": torch.tensor([8.0, 2.0, 0.5, 0.1]),
            "count": torch.tensor([1.0, 2.0, 5.0, 8.0]),
        },
        prediction="x0",
        space="kappa",
        conds={"count": {"low": 1, "high": 8, "null": 8}},
        name="mixture",
    )
    g = sg.GraphBuilder("mixture")
    some, all_ = g.condition(net, g.input("count")), g.condition(net, None)
    with g.loop(sg.schedules.karras(steps=24, sigma_min=0.01, sigma_max=10.0), g.noise(net.latent)) as step:
        guided = g.fuse(rule, g.score(net, step, some), g.score(net, step, all_))
        step.advance(sg.samplers.heun(), guided)
    g.output(points=step.result)
    return g


def main(folder: Path) -> None:
    """Sample 4000 points for several counts and draw them."""
    from matplotlib.figure import Figure

    plan = sg.compile(build(sg.guidance.cfg(1.0)))
    print(plan.stages)
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axis, count in zip(figure.subplots(1, 4), (1, 3, 5, 8), strict=True):
        points = plan.run(count=count, batch=4000, seed=0)["points"]
        axis.scatter(*points.T, s=1)
        axis.set(title=f"count = {count}", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "mixture.png", dpi=110)
    print("wrote", folder / "mixture.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
