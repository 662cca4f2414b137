"""Your own sampler: the classical Runge-Kutta method of order 4, compiled to native code like any other.

    python examples/own_sampler.py [FOLDER]

A sampler says what its registers become, in the formulas of its paper; the compiler makes one table of numbers of it,
into which guidance and parameterization are folded. Errors fall with the fourth power of the number of steps.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import scoregraph as sg
from scoregraph.graph.samplers.base import MicroStep, Sampler, Walk


@dataclass(frozen=True)
class Rk4(Sampler):
    """dx_f/ds = eps - x0 on the straight path x_f = x / (alpha + sigma), s = sigma / (alpha + sigma)."""

    name: ClassVar[str] = "rk4"

    def memory(self) -> tuple[str, ...]:
        return ("start", "total")

    def micro_steps(self, walk: Walk) -> Iterator[MicroStep]:
        def slope(at):
            x0, eps = walk.estimates(at)
            return eps - x0

        start, total = walk["start"], walk["total"]
        for i in range(walk.grid.steps):
            at, to = walk.grid.point(i), walk.grid.point(i + 1)
            s, end = (p.sigma / (p.alpha + p.sigma) for p in (at, to))
            h, middle = end - s, walk.grid.at_kappa((s + end) / (2 - s - end))
            half, whole, x = middle.alpha + middle.sigma, to.alpha + to.sigma, walk["x"] / (at.alpha + at.sigma)
            if to.sigma == 0.0:  # the network says nothing where there is no noise
                yield walk.call(i, at, x=whole * (x + h * slope(at)))
                continue
            k1, k2, k4 = slope(at), slope(middle), slope(to)  # of different rows: each of its own answer
            yield walk.call(i, at, x=half * (x + h / 2 * k1), start=x, total=k1 / 6)
            yield walk.call(i, middle, x=half * (start + h / 2 * k2), start=start, total=total + k2 / 3)
            yield walk.call(i, middle, x=whole * (start + h * k2), start=start, total=total + k2 / 3)
            yield walk.call(i, to, x=whole * (start + h * (total + k4 / 6)))


class TwoPoints(nn.Module):
    """E[x0 | x] of data that is drawn around -1 and +1."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(x / (sigma * sigma + 0.1)[:, None])


def sample(net: sg.models.Network, steps: int) -> np.ndarray:
    g = sg.GraphBuilder("rk4")
    schedule = sg.schedules.exponential(steps=steps, sigma_min=0.5, sigma_max=5.0, final="sigma_min")
    with g.loop(schedule, g.noise(net.latent)) as step:
        step.advance(Rk4(), g.score(net, step))
    g.output(x=step.result)
    return sg.compile(g).run(batch=4, seed=1)["x"]


def main(folder: Path) -> None:
    """Measure the error for several numbers of steps, and draw it."""
    from matplotlib.figure import Figure

    example = {"x": torch.randn(4, 8), "sigma": torch.tensor([5.0, 2.0, 1.0, 0.5])}
    net = sg.models.from_module(TwoPoints(), example, prediction="x0", space="kappa", name="two-points")
    exact, numbers = sample(net, 128), (2, 4, 8, 16)
    errors = [float(np.abs(sample(net, steps) - exact).max()) for steps in numbers]
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.loglog(numbers, errors, "o-", label="rk4")
    axis.loglog(numbers, [errors[-1] * (numbers[-1] / n) ** 4 for n in numbers], "k:", label="fourth power")
    axis.set(xlabel="steps", ylabel="largest error", title="four network calls a step")
    axis.legend()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "own_sampler.png", dpi=110)
    for steps, error in zip(numbers, errors, strict=True):
        print(f"{steps:3d} steps: error {error:.1e}")
    print("wrote", folder / "own_sampler.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
