"""A folded step as numbers: its mixes become the columns of a table, or the results of a program per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scoregraph.graph import nodes as n
from scoregraph.graph.expression import Expr
from scoregraph.graph.mixture import Form, Mix
from scoregraph.graph.prediction import Prediction
from scoregraph.graph.table import Row
from scoregraph.passes.sampling.algebra import Algebra, NotAffineError, Sources, joint_score
from scoregraph.passes.sampling.fold_tables import scale_column


@dataclass
class Folded:
    """All registers and estimates of a step as mixes of its sources, and the lengths that are observed."""

    algebra: Algebra
    new: dict[str, Mix]
    estimates: list[Mix]
    norms: list[Expr]

    @property
    def linear(self) -> bool:
        """Whether numbers say it all."""
        return all(mix.linear is not None for mix in (*self.new.values(), *self.estimates))

    def entries(self, sources: Sources) -> list[Expr]:
        """The machine's entries as expressions, in the order of the table's columns."""
        r, stop, new = len(sources.registers), sources.noise, list(self.new.values())
        return [
            *(mix.weight(s) for mix in new for s in range(r)),
            *(mix.weight(s) for mix in new for s in range(r, stop)),
            *(mix.weight(stop) for mix in new),
            *(mix.weight(s) for mix in self.estimates for s in range(stop)),
            *(mix.weight(sources.output(i)) for mix in new for i in range(sources.outputs)),
        ]

    def rows(self, sources: Sources, forms: Sequence[Form]) -> list[Row]:
        """The machine's entries as numbers, row by row; all mixes are linear."""
        r, stop = len(sources.registers), sources.noise
        new = np.stack([_numbers(mix) for mix in self.new.values()], axis=1)  # [rows, R, sources]
        estimates = [_numbers(mix)[:, :stop] for mix in self.estimates]
        rows: list[Row] = []
        for i, matrix in enumerate(new):
            e = np.array([form[i] for form in estimates]).reshape(len(estimates), stop)
            f = np.array([form[i] for form in forms]).reshape(len(forms), stop)
            rows.append(Row(matrix[:, :r], matrix[:, r:stop], matrix[:, stop], e, matrix[:, stop + 1 :], f))
        return rows

    def used(self, sources: Sources) -> Form:
        """Which registers and answers each row reads, [rows, sources before the noise], as booleans."""
        mixes = (*self.new.values(), *self.estimates)
        return np.any([form[:, : sources.noise] != 0.0 for mix in mixes for _, form in mix.terms], axis=0)


def _numbers(mix: Mix) -> Form:
    assert mix.linear is not None, "a table holds numbers"
    return mix.linear


def without(mix: Mix, first: int) -> Mix:
    """A mix without the sources from number ``first`` on."""
    terms: list[tuple[Expr, Form]] = []
    for weight, form in mix.terms:
        kept = form.copy()
        kept[:, first:] = 0.0
        terms.append((weight, kept))
    return Mix(mix.recorder, tuple(terms))


def clean_gradients(leaves: Sequence[n.Node]) -> list[n.EnergyGrad]:
    """The gradients among a step's operands that are taken at a clean sample, in order."""
    return [leaf for leaf in leaves if isinstance(leaf, n.EnergyGrad) and leaf.pred is not None]


def gradient_columns(algebra: Algebra) -> dict[str, list[float]]:
    """What the gradients of clean samples need, row by row.

    That is a machine that makes x0 of [x0, x] and the answers, or p and q with x0 = p x_in + q m for one that goes
    through the network itself.
    """
    sources, table = algebra.sources, algebra.table
    columns: dict[str, list[float]] = {}
    r, width = len(sources.registers), sources.answers
    for i, grad in enumerate(clean_gradients([leaf for leaf, _ in sources.leaves])):
        assert grad.pred is not None
        form = algebra.clean(grad.pred).linear if joint_score(grad) is None else None
        if form is not None:
            a = np.zeros((len(form), 4))
            a[:, 1], a[:, 3] = form[:, 0], 1.0
            b = np.concatenate([form[:, r : r + width], np.zeros((len(form), width))], axis=1)
            numbers = np.concatenate([a, b, np.zeros((len(form), 2))], axis=1)
            names = [f"g{i}_a{j}" for j in range(4)] + [f"g{i}_b{j}" for j in range(2 * width)]
            names += [f"g{i}_c{j}" for j in range(2)]
            columns |= {name: numbers[:, j].tolist() for j, name in enumerate(names)}
            continue
        score = joint_score(grad)
        if score is None:
            raise NotAffineError("the clean sample of a gradient depends on guidance that differs by sample")
        assert isinstance(score.net.prediction, Prediction)
        points = zip(table.values("alpha"), table.values("sigma"), strict=True)
        pairs = [score.net.prediction.to_x0(alpha, sigma) for alpha, sigma in points]
        scales = table.values(scale_column(table, score.net))
        columns[f"g{i}_p"] = [p / scale for (p, _), scale in zip(pairs, scales, strict=True)]
        columns[f"g{i}_q"] = [q for _, q in pairs]
    return columns


def live_answers(
    made: Folded, numbers: Folded, on: Sequence[bool], forms: Sequence[Form], gradients: Mapping[str, Sequence[float]]
) -> list[float]:
    """Which answers a row reads, as a sum of 2^answer; 0 in rows without a network call.

    ``made`` holds in the rows that are ``on``, where products of ``forms`` are taken, and ``numbers`` in the others.
    """
    sources, table = made.algebra.sources, made.algebra.table
    used = np.where(np.array(on)[:, None], made.used(sources), numbers.used(sources))
    for form in forms:
        used |= np.array(on)[:, None] & (form != 0.0)
    for i, grad in enumerate(clean_gradients([leaf for leaf, _ in sources.leaves])):
        for k in range(sources.answers):  # what the clean sample is made of
            if f"g{i}_b{k}" in gradients:
                needed = np.array(gradients[f"g{i}_b{k}"]) != 0.0
                used[:, len(sources.registers) + k] |= needed & used[:, sources.answer(grad)]
    used[np.array(table.values("calls")) == 0.0] = False
    return (used[:, len(sources.registers) :] @ (2.0 ** np.arange(sources.answers))).tolist()
