"""What a loop emits of a step: sorted out before the step is folded, and found again in the folded one.

A state is seen as it stands before or behind a row; a prediction becomes a register; the length of a vector a number
per sample; a log-probability needs the noise itself, which becomes a register too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from scoregraph.graph import nodes as n
from scoregraph.graph import values as v
from scoregraph.graph.table import StepTable
from scoregraph.passes.sampling.algebra import NotAffineError, Sources

NOISE = "emitted.noise"
"""The register that keeps the noise of a step."""


@dataclass
class Observations:
    """The emitted values that one step can show, by name.

    Attributes:
        states: ``before`` or ``after`` the step.
        predictions: made of answers about the step's state.
        norms: lengths of such.
        log_probs: names under which the step's log-probability is emitted.
    """

    states: dict[str, str] = field(default_factory=dict[str, str])
    predictions: dict[str, n.Node] = field(default_factory=dict[str, n.Node])
    norms: dict[str, n.Norm] = field(default_factory=dict[str, n.Norm])
    log_probs: list[str] = field(default_factory=list[str])

    @classmethod
    def of(cls, step: n.SamplerStep, result: n.Node, emits: Sequence[n.Node]) -> Observations:
        """Those among ``emits`` that ``step`` can show; ``result`` is what its loop carries on."""
        found = cls()
        for emit in emits:
            assert isinstance(emit, n.Emit)
            name, value = emit.name, emit.value
            if value is step.state:
                found.states[name] = "before"
            elif value is result:
                found.states[name] = "after"
            elif isinstance(value, n.LogProb) and value.step in (step, result):
                found.log_probs.append(name)
            elif isinstance(value, n.Norm) and reads(value, step.state):
                found.norms[name] = value
            elif isinstance(value.type, v.Pred) and reads(value, step.state):
                found.predictions[name] = value
        return found

    def __bool__(self) -> bool:
        return bool(self.states or self.predictions or self.norms or self.log_probs)

    def registers(self) -> list[str]:
        """The registers that the folded step gets for them."""
        return [*(f"emit.{name}" for name in self.predictions), *([NOISE] if self.log_probs else [])]

    def parts(self) -> Iterator[n.Node]:
        """The outermost predictions in what is emitted, below corrections."""
        for value in (*self.predictions.values(), *self.norms.values()):
            yield from _predictions(value)

    def seen(self, sources: Sources) -> dict[str, tuple[str, int]]:
        """What of the folded step shows each of them: see ``nodes.Observe``."""
        return {
            **{name: (when, 0) for name, when in self.states.items()},
            **{name: ("register", sources.register(f"emit.{name}")) for name in self.predictions},
            **{name: ("statistic", i) for i, name in enumerate(self.norms)},
            **{name: ("log_prob", sources.register(NOISE)) for name in self.log_probs},
        }

    def check(self, table: StepTable, *, learned: bool, name: str) -> None:
        """Raises ``NotAffineError`` for a log-probability that the step does not have."""
        if not self.log_probs:
            return
        if learned:
            raise NotAffineError("the log-probability of a step with a learned variance is not recorded yet")
        slots = record_slots(table)
        if slots["first"] != slots["last"]:
            raise NotAffineError(f"{name} moves in several parts per step, which have no one log-probability")


def record_slots(table: StepTable) -> dict[str, list[float]]:
    """Where in its record a row's values go: before a step, at its first call, behind it; -1 for nowhere."""
    steps, calls = table.steps, table.values("calls")
    first = [float(s) if i == 0 or steps[i - 1] != s else -1.0 for i, s in enumerate(steps)]
    last = [float(s) if i + 1 == len(steps) or steps[i + 1] != s else -1.0 for i, s in enumerate(steps)]
    called: list[float] = []
    for step, calling in zip(steps, calls, strict=True):
        called.append(float(step) if calling and float(step) not in called else -1.0)
    return {"first": first, "called": called, "last": last}


def reads(value: n.Node, state: n.Node) -> bool:
    """Whether a value is made of answers about a state."""
    if value is state:
        return True
    if isinstance(value, n.Score):
        return value.x is state
    return any(reads(operand, state) for operand in value.operands)


def _predictions(value: n.Node) -> Iterator[n.Node]:
    if isinstance(value, n.Correct):
        yield value.pred
    elif isinstance(value, n.Convert) and isinstance(value.pred, n.Correct):
        yield value.pred.pred
    elif isinstance(value.type, v.Pred):
        yield value
    else:
        for operand in value.operands:
            yield from _predictions(operand)
