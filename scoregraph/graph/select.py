"""Select rules: how one step of masked or discrete diffusion turns logits into tokens.

Every rule is the same step with other settings. On guided logits l at each position:

    shift      l_i := l_(i - shift)                       (models that predict the next position)
    forbid     l[forbidden] := -inf, after guidance
    candidate  y = argmax(l) at temperature 0, else a Gumbel-max sample of l/T after top-k and top-p
    score      how sure the model is of y: ``confidence``
    eligible   positions that hold the mask token and lie in the active block
    select     which eligible positions are written now: this is what the members of the family say
    write      x[selected] := y[selected]
    remask     which written positions become masks again
    finalize   what happens to masks left after the last step
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scoregraph.graph import options
from scoregraph.graph.spec import Spec

CONFIDENCES = ("probability", "margin", "entropy", "random", "perturbed")
REMASKS = ("none", "uniform", "confidence", "lowest", "renoise")
FINALS = ("keep", "candidate", "argmax")
COUNTS = ("linear", "cosine")


@dataclass(frozen=True)
class SelectRule(Spec):
    """Family of select rules; the fields here are common to all.

    ``mask`` is the token id that means "not yet written". ``temperature``, ``top_k`` and ``top_p`` shape the candidate.
    ``confidence`` is p(y) (``probability``), p(1st) - p(2nd) (``margin``), minus the entropy (``entropy``), a uniform
    number (``random``) or ln p(y) + ``perturbation`` * Gumbel (``perturbed``), of the ``raw`` logits or of the shaped
    ones. ``block`` restricts writing to blocks of that many positions, left to right. ``remask`` unwrites positions:
    each with probability ``remask_rate`` (``uniform``), the same weighted by low confidence (``confidence``), the least
    confident beyond the step's count (``lowest``), or by new random tokens where there is no mask token (``renoise``).
    ``final`` says what becomes of masks after the last step: ``keep``, the ``candidate``, or the ``argmax``.
    """

    family: ClassVar[str] = "select"
    mask: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    confidence: str = "probability"
    perturbation: float = 0.0
    raw: bool = True
    forbid: tuple[int, ...] = ()
    shift: int = 0
    block: int | None = None
    remask: str = "none"
    remask_rate: float = 0.0
    final: str = "argmax"

    def __post_init__(self) -> None:
        options.whole(self, "mask", low=0)
        options.real(self, "temperature", low=0.0)
        if self.top_k is not None:
            options.whole(self, "top_k", low=1)
        options.optional_real(self, "top_p", low=0.0, high=1.0)
        options.choice(self, "confidence", CONFIDENCES)
        options.real(self, "perturbation", low=0.0)
        options.flag(self, "raw")
        options.wholes(self, "forbid", low=0)
        options.whole(self, "shift", low=0)
        if self.block is not None:
            options.whole(self, "block", low=1)
        options.choice(self, "remask", REMASKS)
        options.real(self, "remask_rate", low=0.0, high=1.0)
        options.choice(self, "final", FINALS)


@dataclass(frozen=True)
class MostConfident(SelectRule):
    """The k_i most confident eligible positions (MaskGIT, LLaDA, Dream).

    The counts k_i of the steps sum to the number of masks; ``counts="linear"`` spreads them evenly (earlier steps take
    the remainder), ``"cosine"`` leaves masks * cos(pi/2 * (i+1)/N) after step i.
    """

    name: ClassVar[str] = "most_confident"
    counts: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        options.choice(self, "counts", COUNTS)


@dataclass(frozen=True)
class Threshold(SelectRule):
    """Every eligible position whose confidence is at least ``threshold``, and always the most confident one."""

    name: ClassVar[str] = "threshold"
    threshold: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "threshold", low=0.0, high=1.0)


@dataclass(frozen=True)
class Factor(SelectRule):
    """The n most confident positions for the largest n with (n + 1) (1 - confidence_n) <= ``factor`` (Fast-dLLM)."""

    name: ClassVar[str] = "factor"
    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "factor", low=0.0, above=True)


@dataclass(frozen=True)
class EntropyBound(SelectRule):
    """The positions of lowest entropy whose entropies, but the largest, sum to at most ``bound`` (Ben-Hamu 2025)."""

    name: ClassVar[str] = "entropy_bound"
    bound: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        options.real(self, "bound", low=0.0)


@dataclass(frozen=True)
class Ancestral(SelectRule):
    """Each eligible position by itself with probability (t - s) / t, from time t to s of the schedule (MDLM, D3PM)."""

    name: ClassVar[str] = "ancestral"


@dataclass(frozen=True)
class FirstHitting(SelectRule):
    """One eligible position, uniformly: ancestral sampling observed at the times of its jumps (Zheng et al. 2025)."""

    name: ClassVar[str] = "first_hitting"


@dataclass(frozen=True)
class Everything(SelectRule):
    """All eligible positions at once."""

    name: ClassVar[str] = "everything"


most_confident = MostConfident
threshold = Threshold
factor = Factor
entropy_bound = EntropyBound
ancestral = Ancestral
first_hitting = FirstHitting
everything = Everything
