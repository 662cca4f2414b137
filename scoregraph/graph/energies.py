"""Energies: functions E whose gradient g steers a sample. A gradient is added to a prediction in its eps form,

    eps' = eps + sigma * scale * g,

which is what adding ``-scale * g`` to the score -eps / sigma means: samples move to where E is small, as if their
density had been multiplied by exp(-scale * E). Samples are independent: E answers one number for each.

| wrt  | through | g                                                                                           |
|------|---------|---------------------------------------------------------------------------------------------|
| `x`  |         | dE(x, t)/dx, of the noisy state                                                             |
| `x0` | False   | dE(x0)/dx0 at the clean sample that the prediction implies; the network's slope is left out |
| `x0` | True    | dE(x0(x))/dx, through the network (Chung et al. 2023, DPS)                                  |

x is the state in the latent's own space, and sigma its noise level there.

With ``form="mean"`` the gradient moves the mean of a stochastic step instead,

    x' = … - c^2 * scale * g,

where c is the standard deviation of the noise that the step adds (Dhariwal and Nichol 2021, algorithm 1; the form above
is their algorithm 2). For small steps of the reverse diffusion both are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.spec import Spec

WRT = ("x", "x0")
FORMS = ("eps", "mean")


@dataclass(frozen=True)
class Energy(Spec):
    """Family of energies. ``wrt`` and ``through`` say what E is a function of and where its gradient is taken, ``form``
    what it moves: the prediction, or the mean of the step."""

    family: ClassVar[str] = "energy"
    scale: float
    wrt: str = "x"
    through: bool = False
    form: str = field(default="eps", kw_only=True)

    def __post_init__(self) -> None:
        options.choice(self, "form", FORMS)
        options.real(self, "scale")
        options.choice(self, "wrt", WRT)
        options.flag(self, "through")

    @property
    def rooted(self) -> bool:
        """True where the gradient is that of sqrt(2 E)."""
        return False

    @property
    def joint(self) -> bool:
        """True where the gradient goes back through the score network."""
        return self.wrt == "x0" and self.through


@dataclass(frozen=True)
class Term(Energy):
    """Any energy: with scale 1 the sampled density is multiplied by exp(-E)."""

    name: ClassVar[str] = "energy"


@dataclass(frozen=True)
class Classifier(Energy):
    """E = -log p(label | x) of a classifier of noisy samples (Dhariwal and Nichol 2021, algorithm 2)."""

    name: ClassVar[str] = "classifier"


@dataclass(frozen=True)
class Measurement(Energy):
    """E = |y - A(x0)|^2 / 2 for a measurement y.

    ``normalize`` divides the gradient by |y - A(x0)|, as DPS does (Chung et al. 2023, section 3.3 and appendix C.2).
    As the gradient of r^2 / 2 over r is that of r, it is taken of r = sqrt(2 E).
    """

    name: ClassVar[str] = "measurement"
    wrt: str = "x0"
    through: bool = True
    normalize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        options.flag(self, "normalize")

    @property
    def rooted(self) -> bool:
        """The gradient of r instead of r^2 / 2, if it is to be divided by r."""
        return self.normalize


energy = Term
classifier = Classifier
measurement = Measurement
