"""A product of experts and an energy, in which everything is Gaussian, so that the samples can be checked.

    python examples/product_of_experts.py [FOLDER]

Two networks each know one thing about a point in space, and both leave the rest to a common prior. Their product over
that prior is Liu et al.'s composition. A third thing is known only as an energy, -log p(y | x) of a measurement y given
the noisy point, whose gradient is compiled like the networks. Each looks along a direction of its own; only then do
scores add up at every noise level (Du et al. 2023). What is left is the error of the steps and of counting.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import scoregraph as sg

DIRECTIONS = np.linalg.qr(np.array([[2.0, 1.0, 0.5], [-1.0, 2.0, 1.0], [0.3, -0.4, 2.0]]))[0].T
"""Three orthogonal unit vectors."""

KNOWN = (
    (DIRECTIONS[0], 1.5, 0.3),
    (DIRECTIONS[1], -1.0, 0.5),
    (DIRECTIONS[2], 2.0, 0.8),
)
"""What the two experts and the energy know: a direction, the value along it, and its standard deviation."""

COUNT = 10_000


class Expert(nn.Module):
    """E[x0 | x] of x = x0 + sigma eps, under the prior N(0, 1) and the knowledge ``along`` . x0 = ``at`` +- ``spread``.

    Without ``along`` it knows the prior alone.
    """

    def __init__(self, along: np.ndarray | None = None, at: float = 0.0, spread: float = 1.0) -> None:
        super().__init__()
        precision = np.eye(3)
        pull = np.zeros(3)
        if along is not None:
            precision = precision + np.outer(along, along) / spread**2
            pull = along * at / spread**2
        values, vectors = np.linalg.eigh(precision)
        self.register_buffer("variances", torch.tensor(1.0 / values, dtype=torch.float32))
        self.register_buffer("axes", torch.tensor(vectors, dtype=torch.float32))
        self.register_buffer("mean", torch.tensor(np.linalg.solve(precision, pull), dtype=torch.float32))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """``x`` [n, 3] and ``sigma`` [n] to the denoised points [n, 3]."""
        kept = self.variances / (self.variances + (sigma * sigma)[:, None])
        offset = torch.matmul(x - self.mean, self.axes)
        return self.mean + torch.matmul(offset * kept, self.axes.T)


class Measured(nn.Module):
    """-log p(y | x) of y = ``along`` . x0 + ``spread`` n, under the prior N(0, 1) of x0, at the noise level sigma."""

    def __init__(self, along: np.ndarray, spread: float) -> None:
        super().__init__()
        self.register_buffer("along", torch.tensor(along, dtype=torch.float32))
        self.variance = spread**2

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        """``x`` [n, 3], ``sigma`` [n] and ``y`` [n] to [n]."""
        left = sigma * sigma / (1 + sigma * sigma)  # the variance of x0 that x leaves open
        seen = (x * self.along).sum(1) * (1 - left)
        return (y - seen).square() / (2 * (self.variance + left))


def build() -> sg.GraphBuilder:
    """64 steps of Heun's method on the product; the input is ``y``."""
    x, sigma = torch.randn(3, 3), torch.tensor([8.0, 1.0, 0.1])

    def expert(name: str, *knows) -> sg.models.Network:
        return sg.models.from_module(Expert(*knows), (x, sigma), prediction="x0", space="kappa", name=name)

    first, second, prior = expert("first", *KNOWN[0]), expert("second", *KNOWN[1]), expert("prior")
    direction, _, spread = KNOWN[2]
    energy = sg.models.energy(
        Measured(direction, spread), (x, sigma, torch.zeros(3)), values=["y"], time="sigma", space="kappa", name="third"
    )
    g = sg.GraphBuilder("product-of-experts")
    y = g.input("y")
    with g.loop(sg.schedules.karras(steps=64, sigma_min=0.01, sigma_max=80.0), g.noise(prior)) as step:
        pull = g.energy(sg.energies.energy(1.0), step, y, net=energy)
        branches = [g.score(net, step) for net in (first, second, prior)]
        step.advance(sg.samplers.heun(), g.fuse(sg.guidance.compose((1.0, 1.0)), *branches, grads=[pull]))
    g.output(points=step.result)
    return g


def product() -> tuple[np.ndarray, np.ndarray]:
    """Mean [3] and covariance [3, 3] of the product: precisions add up."""
    precision = np.eye(3) + sum(np.outer(along, along) / spread**2 for along, _, spread in KNOWN)
    pull = sum(along * at / spread**2 for along, at, spread in KNOWN)
    covariance = np.linalg.inv(precision)
    return covariance @ pull, covariance


def errors(points: np.ndarray) -> tuple[float, float]:
    """Relative errors of the mean and of the covariance of ``points`` [n, 3], in the Euclidean and Frobenius norms."""
    mean, covariance = product()
    of_mean = np.linalg.norm(points.mean(0) - mean) / np.linalg.norm(mean)
    return of_mean, np.linalg.norm(np.cov(points.T) - covariance) / np.linalg.norm(covariance)


def main(folder: Path) -> None:
    """Sample the product, compare its moments, and draw it with the ellipse of two standard deviations."""
    from matplotlib.figure import Figure

    plan = sg.compile(build())
    points = plan.run(y=np.full(COUNT, KNOWN[2][1], np.float32), seed=0)["points"].astype(np.float64)
    print("{} samples: mean within {:.2%}, covariance within {:.2%}".format(COUNT, *errors(points)))
    mean, covariance = product()
    turn = np.linspace(0, 2 * math.pi, 200)
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    for axis, (i, j) in zip(figure.subplots(1, 3), ((0, 1), (0, 2), (1, 2)), strict=True):
        pair = [i, j]
        root = np.linalg.cholesky(covariance[np.ix_(pair, pair)])
        ellipse = mean[pair, None] + 2 * root @ np.stack([np.cos(turn), np.sin(turn)])
        axis.scatter(points[:, i], points[:, j], s=0.5)
        axis.plot(*ellipse, color="black")
        axis.set(xlabel=f"x{i}", ylabel=f"x{j}", aspect="equal")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "product_of_experts.png", dpi=110)
    print("wrote", folder / "product_of_experts.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
