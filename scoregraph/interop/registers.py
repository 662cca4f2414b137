"""From probed steps to a register machine of few registers.

What a scheduler keeps is followed by value, not by place: a tensor that moves from ``model_outputs[1]`` to
``model_outputs[0]`` stays the value it is, in the register where it lies. Values that nothing needs any more are
dropped, so a scheduler that keeps all it has ever seen (iPNDM) needs the four registers that it reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from scoregraph.graph.table import Float64
from scoregraph.interop.probing import ProbedStep, Vector, identifier

Value = int
"""The number of a value: 0 is the state that the loop starts with, then one for every state and every tensor kept."""


@dataclass
class _Definition:
    """A value as a combination of the values before its step, the answer m, and the step's normals."""

    path: str
    values: dict[Value, float]
    m: float
    z: dict[int, float]


@dataclass
class _Step:
    """What one step defines; the state is ``x``."""

    x: Value
    defined: dict[Value, _Definition] = field(default_factory=dict)


def _number_values(steps: Sequence[ProbedStep]) -> list[_Step]:
    """Give every new combination a number, and equal ones the same."""
    held: dict[str, Value] = {}
    state, count = 0, 1
    numbered: list[_Step] = []
    for step in steps:
        places = {**held, "x": state}

        def define(path: str, vector: Vector, places: dict[str, Value] = places) -> _Definition:
            made = _Definition(path, {}, vector.get("m", 0.0), {})
            for name, number in vector.items():
                if name in places:
                    made.values[places[name]] = made.values.get(places[name], 0.0) + number
                elif name != "m":
                    made.z[int(name[1:])] = number
            return made

        row = _Step(count, {count: define("x", step.x)})
        count += 1
        held = {}
        for path, vector in step.kept.items():
            made = define(path, vector)
            same = next((v for v, old in row.defined.items() if _equal(old, made)), None)
            moved = [v for v, share in made.values.items() if share == 1.0 and v != state]
            if len(made.values) == 1 and moved and not made.m and not made.z:
                held[path] = moved[0]
            elif same is not None:
                held[path] = same
            else:
                row.defined[count] = made
                held[path] = count
                count += 1
        state = row.x
        numbered.append(row)
    return numbered


def _equal(a: _Definition, b: _Definition) -> bool:
    return (a.values, a.m, a.z) == (b.values, b.m, b.z)


def _live_after(steps: Sequence[_Step]) -> list[set[Value]]:
    """The values that are needed after every step."""
    live: set[Value] = {steps[-1].x}
    after: list[set[Value]] = []
    for step in reversed(steps):
        after.append(live | {step.x})
        needed = [step.defined[v].values for v in step.defined if v in after[-1]]
        live = (live - step.defined.keys()).union(*needed)
    return after[::-1]


@dataclass(frozen=True)
class MachineRow:
    """A [R, R], B [R, 1] and C [R] of one row; ``step`` is the number of the probed step that it belongs to.

    ``draw`` is the number of the normal that C multiplies, among those that the scheduler draws in this step.
    """

    step: int
    network: bool
    a: Float64
    b: Float64
    c: Float64
    draw: int


@dataclass(frozen=True)
class Machine:
    """The registers, the state first, and the rows."""

    registers: tuple[str, ...]
    rows: tuple[MachineRow, ...]


def allocate(steps: Sequence[ProbedStep]) -> Machine:
    """Registers by liveness: the state has register 0, every other value one of its own for as long as it is needed."""
    numbered = _number_values(steps)
    places: list[dict[Value, int]] = []
    names = ["x"]
    at: dict[Value, int] = {0: 0}
    for step, live in zip(numbered, _live_after(numbered), strict=True):
        after = {v: place for v, place in at.items() if v in live and place != 0}
        after[step.x] = 0
        for value in sorted(v for v in step.defined if v in live and v != step.x):
            free = next(i for i in range(1, len(names) + 1) if i not in after.values())
            if free == len(names):
                names.append(_fresh(identifier(step.defined[value].path), names))
            after[value] = free
        places.append(after)
        at = after
    rows = [
        row
        for i, (step, numbers) in enumerate(zip(steps, numbered, strict=True))
        for row in _rows(i, step, numbers, places[i - 1] if i else {0: 0}, places[i], len(names))
    ]
    return Machine(tuple(names), tuple(rows))


def _fresh(name: str, taken: Sequence[str]) -> str:
    """The name, numbered where it is taken."""
    candidates = [name, *(f"{name}_{i}" for i in range(2, 100))]
    return next(c for c in candidates if c not in taken)


def _rows(
    index: int, step: ProbedStep, numbers: _Step, before: dict[Value, int], after: dict[Value, int], count: int
) -> Iterator[MachineRow]:
    """The row of a step, and behind it one without a network call for every further normal that it uses."""
    a, b = np.zeros((count, count)), np.zeros((count, 1))
    noises: dict[int, Float64] = {}
    for value, place in after.items():
        made = numbers.defined.get(value)
        if made is None:
            a[place, place] = 1.0  # still the same value
            continue
        for used, share in made.values.items():
            a[place, before[used]] = share
        b[place, 0] = made.m
        for draw, share in made.z.items():
            noises.setdefault(draw, np.zeros(count))[place] = share
    draws = sorted(noises) or [0]
    yield MachineRow(index, step.call.network, a, b, noises.get(draws[0], np.zeros(count)), draws[0])
    for draw in draws[1:]:
        yield MachineRow(index, False, np.eye(count), np.zeros((count, 1)), noises[draw], draw)
