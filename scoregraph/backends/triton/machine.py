"""The kernels of a step whose shape the plan gives: the register machine, inner products, programs per sample.

Their texts are made for one call each: how many registers, estimates and results there are, and which instructions a
program has, is compiled in; coefficients are read from the table, or from a row of each sample's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scoregraph.backends.protocol import Miss
from scoregraph.backends.triton.expression import DOUBLE, FORMS, Dialect, expressions
from scoregraph.backends.triton.launch import Kernel

ELEMENTWISE = Dialect(
    FORMS,
    "tl.full((GROUPS, 4), {0}, tl.float32)",
    {
        "row": "tl.full((GROUPS, 4), 0.0, tl.float32) + tl.load(here + {0})",
        "coef": "tl.full((GROUPS, 4), 0.0, tl.float32) + tl.load(weights + {0})",
    },
)
PER_SAMPLE = Dialect(
    DOUBLE,
    "tl.full((), {0}, tl.float64)",
    {
        "in": "tl.load(inputs[{0}] + sample * sizes[{0}] + {1}).to(tl.float64)",
        "row": "tl.load(table + row * columns + {0}).to(tl.float64)",
        "next": "tl.load(table + tl.minimum(row + 1, rows - 1) * columns + {0}).to(tl.float64)",
    },
)


def step_program(attrs: Mapping[str, Any], extras: int) -> list[str] | Miss:
    """The expressions of a sampler step's elementwise program, over estimates, the noise and the extras."""
    return expressions(attrs.get("program", ()), attrs.get("estimates", 0) + 1 + extras, ELEMENTWISE)


def sampler_step_kernel(attrs: Mapping[str, Any], extras: int) -> Kernel:
    """One micro-step in place, and the network's next input; grid (samples, blocks of GROUPS groups of four).

    One pass over memory: every element of every register and answer is read at most once per use, a term whose
    coefficient is 0 is not read at all, and noise is drawn in registers, only in rows that use it. Arguments:

        registers: tuple of [samples, n]; read and replaced.
        predictions, strides, ANSWERS: see ``add_answers``; WIDTH answers are spoken of in all.
        extras: tuple of views of the shape of a register, walked by ``sizes`` and ``extra_strides``.
        x_in: [samples * IN_BRANCHES, n] or None; takes table[row+1, C_IN] * new_0 unless ``row`` is the last.
        bank: [samples, draws, n] or None; coef: [samples, coefs] or None.
        A, B, C, E, H: where the groups of coefficients begin; DRAW: the column of the bank's draw.
    """
    estimates, results = attrs.get("estimates", 0), attrs.get("results", ())
    lines = step_program(attrs, extras)
    if isinstance(lines, Miss):
        raise ValueError(lines.reason)
    body: list[str] = []
    for i in range(estimates):
        body += [
            f"form = weights + E + {i} * (len(registers) + WIDTH)",
            f"v{i} = add_registers(nothing, form, registers, sample, n, element, inside)",
            f"v{i} = add_answers(v{i}, form + len(registers), predictions, strides, sample, element, inside, ANSWERS)",
        ]
    body.append(f"v{estimates} = z")
    for i in range(extras):
        place = f"offset(sample * n + tl.minimum(element, n - 1), sizes, extra_strides[{i}])"
        body.append(f"v{estimates + 1 + i} = tl.load(extras[{i}] + {place})")
    body += [f"v{number} = {line}" for number, line in enumerate(lines, start=estimates + 1 + extras)]
    outputs = [
        f"""
        h = tl.load(weights + H + j * {len(results)} + {i})
        if h != 0.0:
            total += h * v{value}"""
        for i, value in enumerate(results)
    ]
    program, added = "\n    ".join(body if results else ()), "".join(outputs)
    text = f"""
@triton.jit(do_not_specialize=["row", "micro", "site"])
def sampler_step(
    registers, predictions, strides, extras, sizes, extra_strides, x_in, seeds, bank, draws, coef, coefs, table, row,
    micro, rows, columns, site, n,
    A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, E: tl.constexpr, H: tl.constexpr, C_IN: tl.constexpr,
    DRAW: tl.constexpr, ANSWERS: tl.constexpr, WIDTH: tl.constexpr, IN_BRANCHES: tl.constexpr, GROUPS: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    element = group[:, None] * 4 + tl.arange(0, 4)[None, :]
    inside = element < n
    nothing = tl.full((GROUPS, 4), 0.0, tl.float32)
    here = table + row * columns
    weights = coef + sample * coefs if coef is not None else here

    noisy = {bool(attrs.get("draws", False))}
    for j in tl.static_range(len(registers)):
        noisy = noisy | (tl.load(weights + C + j) != 0.0)
    z = nothing
    if noisy:
        draw = tl.load(here + DRAW).to(tl.int64) if bank is not None else 0
        z = fresh(bank, draw, draws, seeds, sample, group, element, inside, n, micro, site)
    {program}

    new = ()
    for j in tl.static_range(len(registers)):
        total = add_registers(nothing, weights + A + j * len(registers), registers, sample, n, element, inside)
        total = add_answers(total, weights + B + j * WIDTH, predictions, strides, sample, element, inside, ANSWERS)
        c = tl.load(weights + C + j)
        if c != 0.0:
            total += c * z{added}
        new = new + (total,)

    # Every register has been read by now; element e belongs to this lane alone, so replacing in place is safe.
    for j in tl.static_range(len(registers)):
        tl.store(registers[j] + sample * n + element, new[j], mask=inside)
    if IN_BRANCHES > 0 and row + 1 < rows:
        value = tl.load(here + columns + C_IN) * new[0]
        for k in tl.static_range(IN_BRANCHES):
            tl.store(x_in + (sample * IN_BRANCHES + k) * n + element, value, mask=inside)
"""
    return Kernel("sampler_step", text.lstrip())


def gram_kernel(forms: int, stats: Sequence[Sequence[int]]) -> Kernel:
    """Inner products of linear forms, one program per sample: products and sums in float64, tile after tile."""
    used = sorted({form for stat in stats for form in stat})
    assert all(form < forms for form in used)
    starts = "\n    ".join(f"s{i} = tl.full((1,), 0.0, tl.float64)" for i in range(len(stats)))
    body: list[str] = []
    for i in used:
        body += [
            f"form = weights + F + {i} * (len(registers) + WIDTH)",
            f"v{i} = add_registers(nothing, form, registers, sample, n, element, inside)",
            f"v{i} = add_answers(v{i}, form + len(registers), predictions, strides, sample, element, inside, ANSWERS)",
            # Lanes past the end hold 0, which adds nothing to any sum.
            f"v{i} = v{i}.to(tl.float64)",
        ]
    body += [f"s{i} += pairwise_sum({' * '.join(f'v{form}' for form in stat)})" for i, stat in enumerate(stats)]
    loop = "\n        ".join(body)
    stores = "\n    ".join(
        f"tl.store(g + sample * {len(stats)} + {i} + tl.arange(0, 1), s{i}.to(tl.float32))" for i in range(len(stats))
    )
    text = f"""
@triton.jit(do_not_specialize=["row"])
def gram(registers, predictions, strides, g, table, row, columns, n,
         F: tl.constexpr, ANSWERS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    weights = table + row * columns
    nothing = tl.full((TILE,), 0.0, tl.float32)
    {starts}
    for start in range(0, n, TILE):
        element = start + tl.arange(0, TILE)
        inside = element < n
        {loop}
    {stores}
"""
    return Kernel("gram", text.lstrip())


def scalars_kernel(program: Sequence[Sequence[Any]], results: Sequence[int]) -> Kernel:
    """A program of numbers in float64, one sample each."""
    lines = expressions(program, 0, PER_SAMPLE)
    if isinstance(lines, Miss):
        raise ValueError(lines.reason)
    body = [f"v{number} = {line}" for number, line in enumerate(lines)]
    body += [f"tl.store(y + sample * {len(results)} + {i}, v{value}.to(tl.float32))" for i, value in enumerate(results)]
    steps = "\n    ".join(body)
    text = f"""
@triton.jit(do_not_specialize=["row"])
def scalars(inputs, sizes, y, table, row, rows, columns):
    sample = tl.program_id(0).to(tl.int64)
    {steps}
"""
    return Kernel("scalars", text.lstrip())
