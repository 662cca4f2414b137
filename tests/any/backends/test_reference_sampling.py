"""The calls of sampling loops against einsum, torch and numpy; plans with variants, rounds and a noise bank by hand."""

import math
import threading

import numpy as np
import pytest
import torch
from loop_plans import guided_then_single_then_noise, halving
from torch import Tensor
from triton_plans import Sketch

from scoregraph.backends.protocol import COUNTERS
from scoregraph.backends.reference.frame import Frame
from scoregraph.backends.reference.ops import OPS
from scoregraph.backends.reference.program import Reference, ReferenceProgram
from scoregraph.errors import Cancelled, LoopUnfinished
from scoregraph.graph import noise

GENERATOR = torch.Generator().manual_seed(4)
SEEDS = np.array([3, 2**63 + 9], dtype=np.uint64)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def call(
    op: str,
    ins: dict[str, Tensor],
    attrs: dict,
    outs: dict[str, tuple[int, ...]],
    table: Tensor | None = None,
    row: int | None = None,
    **around: int,
) -> dict[str, Tensor]:
    """The results of one call by role; outs hold NaN before it."""
    frame = Frame(
        {role: torch.full(shape, math.nan, dtype=torch.float64) for role, shape in outs.items()},
        {} if table is None else {0: table},
        row,
        torch.from_numpy(SEEDS.view(np.int64)),
        torch.float64,
        "site",
        **around,
    )
    made = OPS[op](ins, {"table": 0, **attrs}, frame)
    return {next(iter(outs)): made} if isinstance(made, Tensor) else made


# --- The register machine -----------------------------------------------------------------------

R, K, E, Y, SHAPE = 2, 3, 2, 2, (5, 4)
SIZES = {"c_in": 1, "a": R * R, "b": R * K, "c": R, "e": E * (R + K), "h": R * Y}
OFFSETS = dict(zip(SIZES, np.cumsum([0, *SIZES.values()]).tolist(), strict=False))
# y_0 = clamp(e_0, -1, 1) * x_0, y_1 = e_1 z + row's c_in
PROGRAM = [["const", 1.0], ["neg", 4], ["max", 0, 5], ["min", 6, 4], ["mul", 7, 3], ["mul", 1, 2], ["row", 0]]
PROGRAM += [["add", 9, 10]]
STEP = {
    **{name: OFFSETS[name] for name in ("a", "b", "c", "e", "h")},
    "estimates": E,
    "program": PROGRAM,
    "results": [8, 11],
    "draws": True,
    "cin": 0,
    "site": 7,
}


def machine(entries: Tensor, registers: list[Tensor], answers: list[Tensor], z: Tensor, extra: Tensor) -> Tensor:
    """The page's four formulas as products of matrices; entries [n] of one sample, everything else [2, …]."""
    part = {name: entries[OFFSETS[name] : OFFSETS[name] + size] for name, size in SIZES.items()}
    sources = torch.stack([*registers, *answers])
    estimates = torch.einsum("is,sb...->ib...", part["e"].reshape(E, R + K), sources)
    y = torch.stack([estimates[0].clamp(-1, 1) * extra, estimates[1] * z + entries[0]])
    linear = torch.cat([part["a"].reshape(R, R), part["b"].reshape(R, K)], dim=1)
    new = torch.einsum("js,sb...->jb...", linear, sources)
    new = new + part["c"].reshape(R, *[1] * z.dim()) * z
    return new + torch.einsum("ji,ib...->jb...", part["h"].reshape(R, Y), y)


def step_operands() -> tuple[dict[str, Tensor], list[Tensor], list[Tensor], Tensor]:
    """Two registers, p0 of two branches, p1 of one whose rows are strided, an extra that is broadcast."""
    registers = [randn(2, *SHAPE) for _ in range(R)]
    guided, wide, extra = randn(4, *SHAPE), randn(2, 2, *SHAPE), randn(1, 1, 4).expand(2, *SHAPE)
    ins = {"r0": registers[0], "r1": registers[1], "p0": guided, "p1": wide[:, 1], "x0": extra}
    return ins, registers, [guided[0::2], guided[1::2], wide[:, 1]], extra


def normals(micro: int) -> Tensor:
    z = noise.normals(SEEDS, site=7, micro=micro, count=math.prod(SHAPE)).reshape(2, *SHAPE)
    return torch.from_numpy(z).double()


def test_the_step_is_the_pages_four_formulas():
    ins, registers, answers, extra = step_operands()
    table = randn(3, sum(SIZES.values()))
    outs = {"r0": (2, *SHAPE), "r1": (2, *SHAPE), "xin0": (6, *SHAPE)}
    ours = call("sampler_step", ins, STEP, outs, table, row=1)
    expected = machine(table[1], registers, answers, normals(micro=1), extra)
    for j in range(R):
        torch.testing.assert_close(ours[f"r{j}"], expected[j], rtol=1e-12, atol=1e-12)
    scaled = (table[2, 0] * expected[0]).repeat_interleave(3, dim=0)
    torch.testing.assert_close(ours["xin0"], scaled, rtol=1e-12, atol=1e-12)
    # Behind the last row there is no next input; in a later round the noise goes on counting.
    last = call("sampler_step", ins, STEP, outs, table, row=2, round=4)
    assert set(last) == {"r0", "r1"}
    expected = machine(table[2], registers, answers, normals(micro=4 * 3 + 2), extra)
    torch.testing.assert_close(last["r1"], expected[1], rtol=1e-12, atol=1e-12)


def test_coefficients_of_each_sample_are_each_samples_own_step():
    ins, registers, answers, extra = step_operands()
    coef = randn(2, sum(SIZES.values()))
    coef[1, OFFSETS["a"] : OFFSETS["b"]] = 0.0
    outs = {"r0": (2, *SHAPE), "r1": (2, *SHAPE)}
    # The program's row entry is the table's, and the coefficients' own is by number.
    program = [["coef", 0] if instruction == ["row", 0] else instruction for instruction in PROGRAM]
    attrs = {**STEP, "program": program, "cin": -1}
    ours = call("sampler_step", {**ins, "coef": coef}, attrs, outs, torch.zeros(1, 1), row=0)
    for s in range(2):
        expected = machine(coef[s], registers, answers, normals(micro=0), extra)
        for j in range(R):
            torch.testing.assert_close(ours[f"r{j}"][s], expected[j, s], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("numbers", [[0], [2, 1], [1, 2]])
def test_a_call_for_some_branches_skips_the_columns_of_the_others(numbers: list[int]):
    ins, registers, answers, extra = step_operands()
    table = randn(1, sum(SIZES.values()))
    some = {"r0": ins["r0"], "r1": ins["r1"], "x0": extra}
    some |= {f"p{i}": answers[number] for i, number in enumerate(numbers)}
    attrs = {**STEP, "answers": numbers, "width": K}
    ours = call("sampler_step", some, attrs, {"r0": (2, *SHAPE), "r1": (2, *SHAPE)}, table, row=0)
    silent = [answer if k in numbers else torch.zeros_like(answer) for k, answer in enumerate(answers)]
    expected = machine(table[0], registers, silent, normals(micro=0), extra)
    torch.testing.assert_close(ours["r0"], expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours["r1"], expected[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("per_sample", [False, True])
def test_what_is_multiplied_by_zero_is_not_read(per_sample: bool):
    """A register, an answer, an estimate's source and an output that are NaN stay out of rows that do not use them."""
    ins, _, _, _ = step_operands()
    ins["r1"] = torch.full_like(ins["r1"], math.nan)
    ins["p1"] = torch.full_like(ins["p1"], math.nan)
    row = randn(sum(SIZES.values()))
    for j in range(R):
        row[OFFSETS["a"] + j * R + 1] = 0.0
        row[OFFSETS["b"] + j * K + 2] = 0.0
        row[OFFSETS["h"] + j * Y + 1] = 0.0
    row[[OFFSETS["e"] + 1, OFFSETS["e"] + R + 2]] = 0.0
    outs = {"r0": (2, *SHAPE), "r1": (2, *SHAPE)}
    if per_sample:
        ins["coef"] = row.expand(2, -1)
    ours = call("sampler_step", ins, {**STEP, "cin": -1}, outs, row[None], row=0)
    assert torch.isfinite(ours["r0"]).all()
    assert torch.isfinite(ours["r1"]).all()


def test_the_next_rows_variant_chooses_the_input_that_is_written():
    x = randn(2, 3)
    # c_in, a, c, variant
    table = torch.tensor([[1.0, 2.0, 0.0, 0.0], [5.0, 1.0, 0.0, 1.0], [7.0, 1.0, 0.0, 2.0]], dtype=torch.float64)
    attrs = {"a": 1, "b": 2, "c": 2, "cin": 0, "site": 0}
    outs = {"r0": (2, 3), "xin0": (4, 3), "xin1": (2, 3)}
    first = call("sampler_step", {"r0": x}, attrs, outs, table, row=0, variant=3)
    assert set(first) == {"r0", "xin1"}
    assert torch.equal(first["xin1"], 5 * (2 * x))
    # Variant 2 has no input: it evaluates no network.
    assert set(call("sampler_step", {"r0": x}, attrs, outs, table, row=1, variant=3)) == {"r0"}


def test_a_bank_replaces_drawn_noise():
    x, bank = torch.zeros(2, 3, dtype=torch.float64), randn(2, 4, 3)
    table = torch.tensor([[1.0, 0.5, 2.0], [1.0, 0.0, -1.0]], dtype=torch.float64)  # a, c, draw
    attrs = {"a": 0, "b": 1, "c": 1, "cin": -1, "site": 0, "draw": 2}
    drawn = call("sampler_step", {"r0": x, "bank": bank}, attrs, {"r0": (2, 3)}, table, row=0)["r0"]
    assert torch.equal(drawn, 0.5 * bank[:, 2])
    assert torch.equal(call("sampler_step", {"r0": x, "bank": bank}, attrs, {"r0": (2, 3)}, table, row=1)["r0"], x)
    attrs = {"site": 0, "micro": 0, "scale": 3.0, "draw": 1}
    assert torch.equal(call("noise", {"bank": bank}, attrs, {"x": (2, 3)})["x"], 3.0 * bank[:, 1])


# --- Lookups ------------------------------------------------------------------------------------


def test_times_and_inputs_of_each_sample():
    time, x, coef = torch.tensor([0.25, 0.75], dtype=torch.float64), randn(2, 3), randn(2, 2)
    assert call("step_time", {"time": time}, {"column": 0}, {"t": (4,)})["t"].tolist() == [0.25, 0.25, 0.75, 0.75]
    ours = call("step_input", {"x": x, "coef": coef}, {"column": 1}, {"xin": (4, 3)})["xin"]
    assert torch.equal(ours, (coef[:, 1:] * x).repeat_interleave(2, dim=0))


def test_a_record_fills_one_slot_and_a_negative_one_none():
    x, table = randn(2, 3), torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    y = call("record", {"x": x}, {"column": 0}, {"y": (2, 2, 3)}, table, row=0)["y"]
    assert torch.equal(y[:, 1], x)
    assert torch.isnan(y[:, 0]).all()
    assert call("record", {"x": x}, {"column": 0}, {"y": (2, 2, 3)}, table, row=1) == {}


def test_interpolation_is_numpys():
    xs, ys = np.array([0.0, 1.0, 1.5, 4.0]), np.array([2.0, -1.0, 0.5, 8.0])
    x = np.array([-3.0, 0.0, 0.3, 1.0, 1.2, 3.9, 4.0, 9.0])
    given = {name: torch.from_numpy(value) for name, value in (("x", x), ("xs", xs), ("ys", ys))}
    ours = call("interpolate", given, {}, {"y": (8,)})["y"]
    np.testing.assert_allclose(ours.numpy(), np.interp(x, xs, ys), rtol=1e-14)
    alone = {"x": given["x"], "xs": given["xs"][:1], "ys": given["ys"][:1]}
    assert call("interpolate", alone, {}, {"y": (8,)})["y"].tolist() == [2.0] * 8


# --- Statistics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [7, 8192, 20_001])
def test_gram_is_einsum(n: int):
    registers, answers = [randn(2, n) for _ in range(2)], randn(4, n)
    table = randn(1, 1 + 3 * 4)
    table[0, 1] = 0.0
    ins = {"r0": registers[0], "r1": registers[1], "p0": answers}
    stats = [[0, 0], [0, 2], [1, 2], [1]]
    ours = call("gram", ins, {"f": 1, "forms": 3, "stats": stats}, {"g": (2, 4)}, table, row=0)["g"]
    sources = torch.stack([*registers, answers[0::2], answers[1::2]])
    forms = torch.einsum("fs,sbe->fbe", table[0, 1:].reshape(3, 4), sources)
    products = torch.einsum("ibe,jbe->bij", forms, forms)
    expected = torch.stack([products[:, 0, 0], products[:, 0, 2], products[:, 1, 2], forms[1].sum(dim=1)], dim=1)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("q", [0.0, 0.31, 0.5, 0.995, 1.0])
@pytest.mark.parametrize("n", [1, 2, 201])
def test_quantile_is_torchs(q: float, n: int):
    x, m, table = randn(2, n), randn(2, n), torch.tensor([[9.0, 0.5, -2.0]], dtype=torch.float64)
    ours = call("quantile", {"r0": x, "p0": m}, {"e": 1, "q": q}, {"y": (2, 1)}, table, row=0)["y"]
    expected = torch.quantile((0.5 * x - 2.0 * m).abs(), q, dim=1, keepdim=True)
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=0.0)


def test_scalars_are_float64_arithmetic():
    x, y = randn(2, 2), randn(2, 1).abs() + 0.1
    table = torch.tensor([[3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)
    program = [
        ["in", 0, 1],  # 0
        ["in", 1, 0],  # 1
        ["row", 0],  # 2
        ["next", 1],  # 3
        ["const", 0.1],  # 4
        ["pow", 1, 4],  # 5: y^0.1
        ["log", 5],  # 6
        ["less", 0, 6],  # 7
        ["where", 7, 2, 3],  # 8
        ["sqrt", 1],  # 9
        ["div", 8, 9],  # 10
    ]
    for row, following in ((0, 6.0), (1, 6.0)):
        attrs = {"program": program, "results": [10, 6]}
        ours = call("scalars", {"x0": x, "x1": y}, attrs, {"y": (2, 2)}, table, row=row)["y"]
        for s in range(2):
            a, b = float(x[s, 1]), float(y[s, 0])
            logarithm = math.log(b**0.1)
            chosen = float(table[row, 0]) if a < logarithm else following
            assert ours[s].tolist() == pytest.approx([chosen / math.sqrt(b), logarithm], rel=1e-14)


def test_scalars_are_float64_inside_a_float32_run():
    """(1 + 1e-9) - 1 is 0 in float32."""
    frame = Frame({"y": torch.zeros(1, 1)}, {}, None, torch.zeros(1, dtype=torch.int64), torch.float32, "site")
    program = [["const", 1.0], ["const", 1e-9], ["add", 0, 1], ["sub", 2, 0]]
    made = OPS["scalars"]({}, {"program": program, "results": [3]}, frame)
    assert isinstance(made, Tensor)
    assert made.dtype == torch.float32
    assert float(made) == pytest.approx(1e-9, rel=1e-6)


# --- Plans with variants and rounds --------------------------------------------------------------


def program_of(sketch: Sketch, **options: object) -> ReferenceProgram:
    return Reference("float64", **options).compile(*sketch.data())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("planned", [False, True])
def test_rows_of_three_variants(planned: bool):
    program = program_of(guided_then_single_then_noise(), planned=planned)
    given = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.5]], np.float32)
    ours = program.run({"x": given}, SEEDS)["x"]

    def z(row: int) -> np.ndarray:
        return noise.normals(SEEDS, site=4, micro=row, count=3).astype(np.float64)

    x = given.astype(np.float64)
    x = x + 3 * x - 2 * (2 * x)
    x = x + 0.25 * (0.5 * x) + 0.5 * (2 * 0.5 * x) + 0.125 * z(1)
    x = 0.5 * x + 2 * x
    x = x + 4 * z(3)
    np.testing.assert_allclose(ours, x, rtol=1e-14)
    program.run({"x": given}, SEEDS)
    counters = program.counters()
    assert tuple(counters) == COUNTERS
    # Per run: 1 call before the loop, 3 in each of two guided rows, 2 in the single one, 1 in the last.
    expected = {"runs": 2, "steps": 8, "calls": 20, "network_calls": 6, "branch_evaluations": 10, "rounds": 0}
    assert counters == {**expected, "binds": 2}


def test_rounds_go_on_while_anything_is_active():
    told: list[tuple[int, int]] = []
    program = program_of(halving(limit=9))
    given = {"x": np.array([0.25, 40.0], np.float32), "active": np.ones(2, np.float32)}
    ours = program.run(given, SEEDS, progress=lambda done, total: told.append((done, total)))["x"]
    x, rounds = given["x"].astype(np.float64), 0
    while rounds == 0 or (x >= 1).any():
        z = noise.normals(SEEDS, site=4, micro=2 * rounds, count=1)[:, 0]
        x = 0.5 * (0.5 * x + 0.125 * z)
        rounds += 1
    assert rounds == 3
    np.testing.assert_allclose(ours, x, rtol=1e-14)
    # The last row of the last round knows that no other comes.
    assert told == [*((i, 18) for i in range(1, 6)), (6, 6)]
    counters = program.counters()
    assert (counters["rounds"], counters["steps"], counters["network_calls"]) == (3, 6, 6)
    assert counters["branch_evaluations"] == 18


def test_nothing_active_is_no_round():
    program = program_of(halving(limit=3))
    given = {"x": np.full(2, 8.0, np.float32), "active": np.zeros(2, np.float32)}
    assert program.run(given, SEEDS)["x"].tolist() == [8.0, 8.0]
    assert program.counters()["rounds"] == 0


def test_rounds_end_at_the_limit_or_fail_if_that_is_strict():
    given = {"x": np.array([0.25, 1000.0], np.float32), "active": np.ones(2, np.float32)}
    for table in (True, False):
        program = program_of(halving(limit=2, table=table))
        assert program.run(given, SEEDS)["x"][1] > 1
        assert program.counters()["rounds"] == 2
        assert program.counters()["steps"] == (4 if table else 2)
        with pytest.raises(LoopUnfinished, match=r"SG610.*loop was not done after 2 rounds: 1 of 2 samples"):
            program_of(halving(limit=2, table=table, strict=True)).run(given, SEEDS)


def test_a_round_can_be_cancelled():
    stop = threading.Event()
    given = {"x": np.full(2, 1e9, np.float32), "active": np.ones(2, np.float32)}
    with pytest.raises(Cancelled, match="after 3 of 18 steps"):
        program_of(halving(limit=9)).run(given, SEEDS, lambda done, total: stop.set() if done == 3 else None, stop)
