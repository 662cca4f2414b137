"""Register allocation: the same trajectory from fewer registers and fewer writes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoregraph.graph import prediction, samplers, schedules
from scoregraph.graph.table import Row, StepTable
from scoregraph.passes.sampling.allocate_registers import allocate, patterns, writes

SIZE = 5


def trajectory(table: StepTable, seed: int = 0) -> np.ndarray:
    """What the machine does with answers that depend on the state in a non-linear way."""
    rng = np.random.default_rng(seed)
    registers = np.zeros((len(table.registers), SIZE))
    registers[0] = rng.normal(size=SIZE)
    for i in range(len(table.rows)):
        row = table.row(i)
        answers = np.stack([np.tanh((k + 1) * registers[0]) for k in range(table.branches)])
        z = rng.normal(size=SIZE)
        sources = np.concatenate([registers, answers])
        y = np.clip(row.e @ sources, -0.5, 0.5)[: table.outputs]
        registers = row.a @ registers + row.b @ answers + np.outer(row.c, z) + row.h @ y
    return registers[0]


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("sampler", [samplers.ddim(), samplers.heun(), samplers.dpmpp_2m()], ids=str)
def test_samplers_go_the_same_way(sampler: samplers.Sampler, steps: int) -> None:
    table = sampler.table(schedules.scaled_linear(steps=steps), prediction.eps(), "timestep", "vp")
    new = allocate(table)
    np.testing.assert_allclose(trajectory(new), trajectory(table), rtol=1e-13)
    assert len(new.registers) <= len(table.registers)
    assert writes(new) <= writes(table)


def shifting(order: int, steps: int) -> StepTable:
    """A multistep method that keeps ``order`` - 1 answers and moves each one register on at every row."""
    r = order
    rows = []
    for i in range(steps):
        a, b = np.zeros((r, r)), np.zeros((r, 1))
        a[0, 0], b[0, 0] = 0.9, 0.3
        known = min(i, r - 1)
        a[0, 1 : 1 + known] = 0.1 / (1 + np.arange(known))
        b[1:2, 0] = 1.0
        for j in range(2, r):
            a[j, j - 1] = 1.0
        rows.append(Row(a, b, np.zeros(r), np.zeros((0, r + 1)), np.zeros((r, 0)), np.zeros((0, r + 1))))
    names = ["x", *(f"d{j}" for j in range(1, r))]
    return StepTable.from_rows(names, [0.0] * steps, [1.0] * steps, rows, {}, 1.0)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_a_history_is_renamed_not_copied(order: int) -> None:
    table = shifting(order, 12)
    new = allocate(table)
    np.testing.assert_allclose(trajectory(new), trajectory(table), rtol=1e-13)
    # The state and one new answer per row; the last answer is read by nobody.
    assert writes(new) == 2 * 12 - 1
    assert patterns(new) <= 2 * order


def test_what_nobody_reads_is_not_kept() -> None:
    table = shifting(4, 1)
    assert allocate(table).registers == ("x",)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 4), st.integers(1, 2))
def test_any_machine_goes_the_same_way(seed: int, steps: int, registers: int, answers: int) -> None:
    rng = np.random.default_rng(seed)

    def sparse(*shape: int) -> np.ndarray:
        """Zeros, ones and fractions: what makes copies, dead values and sums."""
        return rng.choice([0.0, 0.0, 0.0, 1.0, 0.5, -0.25], size=shape)

    rows = []
    for _ in range(steps):
        a = sparse(registers, registers)
        for j in range(registers):
            if rng.random() < 0.5:  # a plain copy of some register
                a[j] = np.eye(registers)[rng.integers(registers)]
        b = sparse(registers, answers) * (rng.random((registers, 1)) < 0.5)
        c = sparse(registers) * (rng.random(registers) < 0.3)
        h = sparse(registers, 1) * (rng.random((registers, 1)) < 0.3)
        rows.append(Row(a, b, c, sparse(1, registers + answers), h, sparse(0, registers + answers)))
    names = ["x", *(f"s{j}" for j in range(1, registers))]
    table = StepTable.from_rows(names, [0.0] * steps, [1.0] * steps, rows, {}, 1.0)
    new = allocate(table)
    np.testing.assert_allclose(trajectory(new, seed), trajectory(table, seed), rtol=1e-12, atol=1e-12)
    assert len(new.registers) <= len(table.registers)
