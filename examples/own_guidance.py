"""A guidance rule of your own: a class with its branches and its arithmetic, compiled like the built-in ones.

    python examples/own_guidance.py [FOLDER]

The weights of this rule depend on the sample, through the lengths of two vectors. ``combine`` is run once, on symbols:
it is recorded what is multiplied with what, one pass over the answers takes those products, and the step of the
sampler stays one pass. The picture shows the mixture of gaussian_mixture.py, guided with and without the limit.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import gaussian_mixture

import scoregraph as sg
from scoregraph.graph.expression import maximum, minimum


@dataclass(frozen=True)
class Limited(sg.guidance.Guidance):
    """Classifier-free guidance with a pull of at most ``limit`` times the length of the conditional answer."""

    name: ClassVar[str] = "limited"
    scale: float
    limit: float

    @property
    def roles(self):
        return ("cond", "uncond")

    def combine(self, branches, at):
        cond, uncond = branches
        pull = (cond - uncond) * (self.scale - 1.0)
        return cond + pull * minimum(1.0, self.limit * cond.norm() / maximum(pull.norm(), 1e-12))


def main(folder: Path) -> None:
    """Draw 4000 points for three rules, and say how far each leads away from the conditional answer."""
    from matplotlib.figure import Figure

    rules = (sg.guidance.cfg(1.0), sg.guidance.cfg(4.0), Limited(4.0, 0.1))
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    for axis, rule in zip(figure.subplots(1, 3), rules, strict=True):
        plan = sg.compile(gaussian_mixture.build(rule))
        points = plan.run(count=3, batch=4000, seed=0)["points"]
        print(f"{rule}: the mean is {points.mean(axis=0).round(3)}, the spread {points.std(axis=0).round(3)}")
        axis.scatter(*points.T, s=1)
        axis.set(title=str(rule), xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "own_guidance.png", dpi=110)
    print("wrote", folder / "own_guidance.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
