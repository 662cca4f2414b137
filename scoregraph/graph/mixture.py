"""Predictions as linear combinations whose weights may depend on the sample: what guidance rules compute with.

A ``Mix`` is a sum of vectors: a branch's answer, or whatever has been made of answers by ``+``, ``-`` and
multiplication with numbers. Its weights are numbers, or expressions in inner products of such vectors, of which every
sample has its own::

    cond, uncond = branches
    guided = uncond + scale * (cond - uncond)
    return guided * (cond.std() / guided.std())

Nothing is computed while a rule runs: it is recorded which vectors are multiplied with which (``Recorder``), so that
one pass over memory can take all products, a few instructions per sample make weights of them, and the next pass
steps. A mix over n sources is [rows, n] numbers for each of its terms, since numbers may change from row to row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scoregraph.graph.expression import Expr, Value, column, constant, given, maximum, sqrt

Form = NDArray[np.float64]
"""A linear combination of the sources with numbers as weights, in every row: float64 [rows, sources]."""


@dataclass
class Recorder:
    """Forms, their inner products, and named numbers by row, as rules ask for them.

    Attributes:
        rows: rows of the table.
        elements: elements of one sample.
        forms: the vectors whose products are needed.
        statistics: (i, j) for the product of forms i and j, (i,) for the sum of form i.
        parameters: numbers by row that expressions read as columns.
    """

    rows: int
    elements: int
    forms: list[Form] = field(default_factory=list[Form])
    statistics: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    parameters: dict[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])

    def _form(self, form: Form) -> int:
        for i, known in enumerate(self.forms):
            if np.array_equal(known, form):
                return i
        self.forms.append(form)
        return len(self.forms) - 1

    def statistic(self, *forms: Form) -> Expr:
        """The sum of a form's elements, or of the products of two forms' elements."""
        key = tuple(sorted(self._form(form) for form in forms))
        if key not in self.statistics:
            self.statistics.append(key)
        return given(0, self.statistics.index(key))

    def parameter(self, values: Sequence[float], name: str = "") -> Expr:
        """A number that may change from row to row, as a column of the table.

        Only what is 0, 1 or -1 throughout is a constant: a plan is compiled for the structure of its programs, and
        other numbers may be exchanged without compiling again.
        """
        numbers = tuple(float(value) for value in values)
        if len(set(numbers)) == 1 and numbers[0] in (0.0, 1.0, -1.0):
            return constant(numbers[0])
        for known, same in self.parameters.items():
            if same == numbers:
                return column(known)
        key = name or f"k{len(self.parameters)}"
        self.parameters[key] = numbers
        return column(key)


@dataclass(frozen=True, eq=False)
class Mix:
    """A sum of vectors, each times a weight; see the module.

    ``terms`` are (weight, form); at most one weight is a plain 1, the others are expressions.
    """

    recorder: Recorder
    terms: tuple[tuple[Expr, Form], ...]

    @classmethod
    def of(cls, recorder: Recorder, form: Form) -> Mix:
        """A vector by itself."""
        return cls(recorder, ((constant(1.0), form),))

    @property
    def linear(self) -> Form | None:
        """The whole as one form, if no weight depends on the sample."""
        if not self.terms:
            return None
        weight, form = self.terms[0]
        return form if len(self.terms) == 1 and weight.op == "const" else None

    def __add__(self, other: Mix) -> Mix:
        plain = [form for weight, form in (*self.terms, *other.terms) if weight.op == "const"]
        rest = [term for term in (*self.terms, *other.terms) if term[0].op != "const"]
        return Mix(self.recorder, (*([(constant(1.0), np.sum(plain, axis=0))] if plain else []), *rest))

    def __sub__(self, other: Mix) -> Mix:
        return self + other * -1.0

    def __neg__(self) -> Mix:
        return self * -1.0

    def __mul__(self, factor: Value | Sequence[float]) -> Mix:
        """Times a number, one number per row, or a number of each sample."""
        if isinstance(factor, Expr) and factor.op != "const":
            return Mix(self.recorder, tuple((factor * weight, form) for weight, form in self.terms))
        number = float(factor.leaf[0]) if isinstance(factor, Expr) else factor
        by_row = np.broadcast_to(np.asarray(number, dtype=np.float64), (self.recorder.rows,))[:, None]
        return Mix(self.recorder, tuple((weight, form * by_row) for weight, form in self.terms))

    __rmul__ = __mul__

    def __truediv__(self, divisor: Value) -> Mix:
        return self * (1.0 / divisor)

    def dot(self, other: Mix) -> Expr:
        """The inner product over a sample's elements."""
        total: Expr = constant(0.0)
        for weight, form in self.terms:
            for other_weight, other_form in other.terms:
                total = total + weight * other_weight * self.recorder.statistic(form, other_form)
        return total

    def norm(self) -> Expr:
        """The Euclidean length over a sample's elements."""
        return sqrt(maximum(self.dot(self), 0.0))

    def sum(self) -> Expr:
        """The sum of a sample's elements."""
        total: Expr = constant(0.0)
        for weight, form in self.terms:
            total = total + weight * self.recorder.statistic(form)
        return total

    def mean(self) -> Expr:
        """The mean of a sample's elements."""
        return self.sum() / float(self.recorder.elements)

    def std(self) -> Expr:
        """The standard deviation of a sample's elements, with n - 1 as torch has it."""
        n = float(self.recorder.elements)
        total = self.sum()
        return sqrt(maximum(self.dot(self) - total * total / n, 0.0) / max(n - 1.0, 1.0))

    def weight(self, source: int) -> Expr:
        """What this mix multiplies source number ``source`` with."""
        total: Expr = constant(0.0)
        for weight, form in self.terms:
            total = total + weight * self.recorder.parameter(form[:, source].tolist())
        return total


@dataclass
class At:
    """Where a rule stands, in numbers that may change from row to row, and what it remembers.

    Attributes:
        alpha, sigma: of the row's point, in the space of the latent.
        memory: the rule's registers before the row, by name.
        kept: what they become, by name; one that is not kept is forgotten.
    """

    alpha: Expr
    sigma: Expr
    memory: Mapping[str, Mix]
    numbers: Mapping[str, Expr]
    kept: dict[str, Mix] = field(default_factory=dict[str, Mix])

    @property
    def kappa(self) -> Expr:
        """sigma / alpha; not to be used where alpha may be 0."""
        return self.sigma / self.alpha

    def __getitem__(self, name: str) -> Expr:
        """One of the rule's own numbers (``Guidance.numbers``)."""
        return self.numbers[name]

    def remember(self, **mixes: Mix) -> None:
        """Set registers of the rule for the next row."""
        self.kept.update(mixes)
