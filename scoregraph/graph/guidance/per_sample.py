"""Guidance whose weights depend on the sample: projections, lengths and standard deviations of its answers.

Each rule is the paper's arithmetic on ``Mix``: vectors over a sample's elements, and numbers made of their inner
products. One pass over memory takes all products, and the sampler's step stays one pass.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.expression import exp, maximum, minimum, sqrt
from scoregraph.graph.guidance.base import Scaled
from scoregraph.graph.mixture import At, Mix

TINY = 1e-24
"""Keeps quotients of squared lengths finite where an answer is 0 throughout."""


@dataclass(frozen=True)
class BySample(Scaled):
    """Base of these rules. ``rescale`` is phi of ``rescale``, applied to what the rule makes; 0 is off."""

    _: KW_ONLY
    rescale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "rescale", low=0.0, high=1.0)

    def weights(self, step: int, steps: int, alpha: float, sigma: float) -> tuple[float, ...] | None:
        """The first branch alone where the rule is off."""
        return None if self.is_on(step, steps, alpha, sigma) else self.off

    def combine(self, branches: tuple[Mix, ...], at: At) -> Mix:
        """What ``guide`` makes, rescaled."""
        cond, uncond = branches
        guided = self.guide(cond, uncond, at)
        if self.rescale == 0.0:
            return guided
        return guided * (self.rescale * cond.std() / guided.std() + (1.0 - self.rescale))

    def guide(self, cond: Mix, uncond: Mix, at: At) -> Mix:
        """The guided prediction."""
        return uncond + (cond - uncond) * self.strength


@dataclass(frozen=True)
class Rescale(BySample):
    """cfg, brought back to the spread of the conditional answer (Lin et al. 2024, section 3.4).

    guided * (phi std(cond) / std(guided) + 1 - phi), with phi = ``rescale``; std over all elements of a sample.
    """

    name: ClassVar[str] = "rescale"
    rescale: float = 0.7


@dataclass(frozen=True)
class Apg(BySample):
    """Adaptive projected guidance (Sadat et al. 2024): less of the update that points along the conditional answer.

    The update d = cond - uncond, plus ``momentum`` times the one before (negative: away from it), is shortened to the
    length ``threshold`` (0: not), and its part parallel to cond is multiplied with ``eta``. In the convention of Imagen
    (and diffusers) the result is uncond + scale * d, in that of Ho (and algorithm 1, whose w - 1 is ``scale``)
    cond + scale * d; the two are not one apart here. The paper guides answers that are x0: convert the others before.
    A step in which the rule is off leaves the memory as it is.
    """

    name: ClassVar[str] = "apg"
    eta: float = 0.0
    threshold: float = 15.0
    momentum: float = -0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "eta")
        options.real(self, "threshold", low=0.0)
        options.real(self, "momentum")

    def memory(self) -> tuple[str, ...]:
        """The running sum of updates, if there is a momentum."""
        return ("update",) if self.momentum else ()

    def guide(self, cond: Mix, uncond: Mix, at: At) -> Mix:
        """The projected update, from one of the two answers."""
        update = cond - uncond
        if self.momentum:
            update = update + at.memory["update"] * self.momentum
            at.remember(update=update)
        if self.threshold:
            update = update * minimum(1.0, self.threshold / maximum(update.norm(), TINY))
        parallel = cond * (update.dot(cond) / maximum(cond.dot(cond), TINY))
        update = update + parallel * (self.eta - 1.0)
        return (uncond if self.convention == "imagen" else cond) + update * self.scale


@dataclass(frozen=True)
class CfgZeroStar(BySample):
    """CFG-Zero* (Fan et al. 2025), for flows: the unconditional answer is first scaled to fit the conditional one.

    s* = <cond, uncond> / |uncond|^2; then cfg towards cond from s* uncond. In the first ``zero_init`` steps the
    prediction is 0, and no network is asked.
    """

    name: ClassVar[str] = "cfg_zero_star"
    zero_init: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        options.whole(self, "zero_init", low=0)

    def weights(self, step: int, steps: int, alpha: float, sigma: float) -> tuple[float, ...] | None:
        """No branch at all in the first steps."""
        return (0.0, 0.0) if step < self.zero_init else super().weights(step, steps, alpha, sigma)

    def guide(self, cond: Mix, uncond: Mix, at: At) -> Mix:
        """cfg with the fitted unconditional answer; the 1e-8 is the authors'."""
        fitted = uncond * (cond.dot(uncond) / (uncond.dot(uncond) + 1e-8))
        return fitted + (cond - fitted) * self.strength


@dataclass(frozen=True)
class Tcfg(BySample):
    """Tangential damping (Kwon et al. 2025): cfg with only that part of uncond that lies along the main direction.

    The main direction is the first right singular vector of [cond; uncond], y_1 cond + y_2 uncond with y the first
    eigenvector of their 2x2 Gram matrix ((a, b), (b, d)). uncond's part along it is y_1 y_2 cond + y_2^2 uncond, and
    y y^T = (Gram - lambda_2) / (lambda_1 - lambda_2), so y_1 y_2 = b / D and y_2^2 = (1 + (d - a) / D) / 2 with
    D = sqrt((a - d)^2 + 4 b^2).
    """

    name: ClassVar[str] = "tcfg"

    def guide(self, cond: Mix, uncond: Mix, at: At) -> Mix:
        """cfg from the part of uncond along the main direction."""
        a, b, d = cond.dot(cond), cond.dot(uncond), uncond.dot(uncond)
        gap = sqrt(maximum((a - d) ** 2 + 4.0 * b**2, TINY))
        along = cond * (b / gap) + uncond * (0.5 + 0.5 * (d - a) / gap)
        return along + (cond - along) * self.strength


@dataclass(frozen=True)
class MamboG(BySample):
    """Magnitude-aware guidance (Zhu et al. 2025): less of it where the branches differ much.

    cond + (scale - 1) exp(-damping r) (cond - uncond) with r = |cond - uncond| / |uncond|.
    """

    name: ClassVar[str] = "mambo_g"
    damping: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "damping", low=0.0)

    def guide(self, cond: Mix, uncond: Mix, at: At) -> Mix:
        """cfg with a damped scale."""
        update = cond - uncond
        ratio = update.norm() / maximum(uncond.norm(), TINY)
        return cond + update * ((self.strength - 1.0) * exp(-self.damping * ratio))


rescale = Rescale
apg = Apg
cfg_zero_star = CfgZeroStar
tcfg = Tcfg
mambo_g = MamboG
