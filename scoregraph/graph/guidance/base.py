"""The family of guidance rules: how the answers of several branches become one prediction.

Linear rules give weights, m = sum_k w_k m_k with sum w = 1, which may change from step to step (an interval): they fold
into the sampler's table. Other rules ``combine`` the answers with weights that depend on the sample, as functions of
inner products over its elements, and say by their weights only in which steps they are off.

Scales have two conventions in the literature, one apart. ``cfg`` and the rest take the one of Imagen and diffusers
unless told otherwise: 1 is off. ``convention="ho"`` is that of Ho and Salimans, LLaDA, Muse and MaskGIT: 0 is off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from scoregraph.errors import BadWeights
from scoregraph.graph import options
from scoregraph.graph.mixture import At, Mix
from scoregraph.graph.spec import Spec
from scoregraph.graph.table import StepTable, check_weights

CONVENTIONS = ("imagen", "ho")


@dataclass(frozen=True)
class Guidance(Spec):
    """Family of guidance rules. A linear one defines ``weights``, another one ``combine``."""

    family: ClassVar[str] = "guidance"
    splits: ClassVar[bool] = False
    """True where only x0 follows the weights, and eps is that of the last branch alone (CFG++)."""

    @property
    def roles(self) -> tuple[str, ...]:
        """What each branch is, in the order in which ``g.fuse`` takes them."""
        raise TypeError(f"{type(self).__name__} does not define roles")

    @property
    def branches(self) -> int:
        """How many predictions the rule mixes."""
        return len(self.roles)

    @property
    def is_linear(self) -> bool:
        """Whether the weights say all; otherwise ``combine`` does, in the steps without weights."""
        return type(self).combine is Guidance.combine

    def weights(self, step: int, steps: int, alpha: float, sigma: float) -> tuple[float, ...] | None:
        """The weight of each branch at loop step ``step`` of ``steps``, at the point (alpha, sigma). Their sum is 1.

        None where the weights depend on the sample, which only a rule that combines may say.
        """
        if self.is_linear:
            raise TypeError(f"{type(self).__name__} defines neither weights nor combine")
        return None

    def combine(self, branches: tuple[Mix, ...], at: At) -> Mix:
        """The prediction, of the branches' answers and what is known at the step (``scoregraph.graph.mixture``)."""
        raise TypeError(f"{type(self).__name__} is linear: its weights say all")

    def memory(self) -> tuple[str, ...]:
        """The names of what ``combine`` remembers from step to step; each costs a register."""
        return ()

    def numbers(self, step: int, steps: int, alpha: float, sigma: float) -> Mapping[str, float]:
        """Numbers that ``combine`` reads as ``at[name]`` and that may change from step to step."""
        return {}

    def table_weights(self, table: StepTable) -> tuple[tuple[float, ...], ...]:
        """The weights at every micro-step of a table, [rows][branches]; raises ``BadWeights`` if a sum is not 1."""
        steps = table.steps
        points = zip(steps, table.values("alpha"), table.values("sigma"), strict=True)
        rows: list[tuple[float, ...]] = []
        for i, (step, alpha, sigma) in enumerate(points):
            row = self.weights(step, steps[-1] + 1, alpha, sigma)
            if row is None:
                raise BadWeights(problem=f"{self} has weights that depend on the sample")
            check_weights(row, self.branches, f"{self} at micro-step {i}")
            rows.append(row)
        return tuple(rows)


@dataclass(frozen=True)
class Scaled(Guidance):
    """Base of the rules that go away from a second branch, towards the first, by a scale.

    With ``low`` and ``high`` they are on only where low <= kappa < high, with kappa = sigma / alpha (Kynkäänniemi et
    al. 2024); with ``start`` and ``stop`` only in steps floor(start * steps) <= step < floor(stop * steps), as in
    diffusers. Elsewhere, and at the neutral scale, the first branch has weight 1 and no other is evaluated.
    """

    scale: float
    _: KW_ONLY
    convention: str = "imagen"
    low: float | None = None
    high: float | None = None
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        options.real(self, "scale")
        options.choice(self, "convention", CONVENTIONS)
        options.optional_real(self, "low", low=0.0)
        options.optional_real(self, "high", low=0.0)
        options.real(self, "start", low=0.0, high=1.0)
        options.real(self, "stop", low=0.0, high=1.0)
        options.ordered(self, "start", "stop")
        if self.low is not None and self.high is not None:
            options.ordered(self, "low", "high")

    @property
    def roles(self) -> tuple[str, ...]:
        """(cond, uncond): the conditional one first."""
        return ("cond", "uncond")

    @property
    def strength(self) -> float:
        """The scale in the convention of Imagen, where 1 is off."""
        return self.scale if self.convention == "imagen" else 1.0 + self.scale

    @property
    def off(self) -> tuple[float, ...]:
        """The weights where the rule is off: the first branch as it is."""
        return (1.0, *[0.0] * (self.branches - 1))

    def is_on(self, step: int, steps: int, alpha: float, sigma: float) -> bool:
        """Whether the rule does anything in this step."""
        kappa = sigma / alpha if alpha else math.inf
        inside = (self.low is None or kappa >= self.low) and (self.high is None or kappa < self.high)
        return inside and int(self.start * steps) <= step < int(self.stop * steps) and self.strength != 1.0
