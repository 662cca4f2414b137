"""The calls of sampling loops as launches: noise, lookups in tables, the register machine, statistics, records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scoregraph.backends.protocol import Miss
from scoregraph.backends.triton.binding import (
    BLOCK,
    GROUPS,
    Scope,
    block,
    blocks,
    collapse,
    dense,
    numbered,
    refuse,
    with_row,
)
from scoregraph.backends.triton.expression import expressions
from scoregraph.backends.triton.launch import Kernel, Launch
from scoregraph.backends.triton.machine import (
    PER_SAMPLE,
    gram_kernel,
    sampler_step_kernel,
    scalars_kernel,
    step_program,
)
from scoregraph.plan.schema import Call

if TYPE_CHECKING:
    import torch

GRAM_TILE = 8192  # elements whose products are summed before tiles are added up


def noise(call: Call, scope: Scope) -> Launch:
    """Normals, or a row of the noise bank, times a scale."""
    x = dense(call, scope, call.outs["x"])
    n = x.numel() // scope.memory.batch
    groups = block(-(-n // 4), GROUPS)
    return Launch(
        Kernel("noise"),
        (scope.memory.batch, blocks(n, 4 * groups)),
        {
            "x": x,
            **_bank(call, scope),
            "draw": call.attrs.get("draw", 0),
            "seeds": scope.memory.seeds,
            "micro": call.attrs["micro"],
            "site": call.attrs["site"],
            "scale": float(call.attrs["scale"]),
            "n": n,
        },
        {"GROUPS": groups},
        site=call.site,
    )


def _bank(call: Call, scope: Scope) -> dict[str, Any]:
    bank = _optional(call, scope, "bank")
    return {"bank": bank, "draws": 0 if bank is None else bank.shape[1]}


def _optional(call: Call, scope: Scope, role: str) -> torch.Tensor | None:
    return dense(call, scope, call.ins[role]) if role in call.ins else None


def step_time(call: Call, scope: Scope) -> Launch:
    """The network's time, from the table or from each sample."""
    t, time = dense(call, scope, call.outs["t"]), _optional(call, scope, "time")
    size = block(t.numel(), BLOCK)
    table = {"table": None, "columns": 0} if time is not None else scope.lookup(call.attrs["table"])
    arguments = {"t": t, "time": time, **table, "column": call.attrs.get("column", 0), "n": t.numel()}
    constants = {"BRANCHES": t.numel() // scope.memory.batch, "BLOCK": size}
    launch = Launch(Kernel("step_time"), (blocks(t.numel(), size),), arguments, constants, site=call.site)
    if time is not None:
        return replace(launch, arguments={**arguments, "row": 0})
    return with_row(call, scope, launch)


def step_input(call: Call, scope: Scope) -> Launch:
    """The network's input for all branches."""
    x, x_in = dense(call, scope, call.ins["x"]), dense(call, scope, call.outs["xin"])
    coef = _optional(call, scope, "coef")
    samples, n = scope.memory.batch, x.numel() // scope.memory.batch
    size = block(n, BLOCK)
    table = {"table": None, "columns": 0} if coef is not None else scope.lookup(call.attrs["table"])
    arguments = {
        "x": x,
        "x_in": x_in,
        "coef": coef,
        "coefs": 0 if coef is None else coef.shape[1],
        **table,
        "column": call.attrs["column"],
        "n": n,
    }
    constants = {"BRANCHES": x_in.numel() // x.numel(), "BLOCK": size}
    launch = Launch(Kernel("step_input"), (samples, blocks(n, size)), arguments, constants, site=call.site)
    if coef is not None:
        return replace(launch, arguments={**arguments, "row": 0})
    return with_row(call, scope, launch)


def record(call: Call, scope: Scope) -> Launch:
    """One slot of what a loop records."""
    x, y = dense(call, scope, call.ins["x"]), dense(call, scope, call.outs["y"])
    samples, n = scope.memory.batch, x.numel() // scope.memory.batch
    size = block(n, BLOCK)
    arguments = {
        "x": x,
        "y": y,
        **scope.lookup(call.attrs["table"]),
        "column": call.attrs["column"],
        "slots": y.shape[1],
        "n": n,
    }
    launch = Launch(Kernel("record"), (samples, blocks(n, size)), arguments, {"BLOCK": size})
    return with_row(call, scope, launch)


def _machine(call: Call, scope: Scope) -> tuple[dict[str, Any], dict[str, Any]]:
    """Registers, answers and their numbers: arguments and constants of a kernel that reads linear forms."""
    registers = tuple(dense(call, scope, ref) for ref in numbered(call.ins, "r"))
    predictions = tuple(scope.memory[ref] for ref in numbered(call.ins, "p"))
    each = registers[0].numel()
    for p in predictions:
        if not p[:1].is_contiguous():
            refuse(call, f"rows of its answers have gaps: shape {tuple(p.shape)}, strides {tuple(p.stride())}")
    branches = [p.numel() // each for p in predictions]
    answers = list(call.attrs.get("answers") or range(sum(branches)))
    firsts = [sum(branches[:i]) for i in range(len(branches))]
    arguments = {
        "registers": registers,
        "predictions": predictions,
        "strides": tuple(p.stride(0) for p in predictions),
        "n": each // scope.memory.batch,
        **scope.lookup(call.attrs["table"]),
    }
    constants = {
        "ANSWERS": tuple(tuple(answers[a : a + k]) for a, k in zip(firsts, branches, strict=True)),
        "WIDTH": call.attrs.get("width") or len(answers),
    }
    return arguments, constants


def sampler_step(call: Call, scope: Scope) -> Launch:
    """The register machine, in place, and the next input."""
    if scope.table is None:
        refuse(call, "a sampler step reads a row of its loop's table, and this segment has none")
    if numbered(call.outs, "r") != numbered(call.ins, "r"):
        refuse(call, "registers are replaced in place")
    arguments, constants = _machine(call, scope)
    state, attrs = arguments["registers"][0], call.attrs
    extras = tuple(scope.memory[ref] for ref in numbered(call.ins, "x"))
    sizes, strides = collapse(state.shape, [extra.stride() for extra in extras])
    coef = _optional(call, scope, "coef")
    role = f"xin{scope.following}"
    x_in = dense(call, scope, call.outs[role]) if role in call.outs and attrs.get("cin", -1) >= 0 else None
    groups = block(-(-arguments["n"] // 4), GROUPS)
    return Launch(
        sampler_step_kernel(attrs, len(extras)),
        (scope.memory.batch, blocks(arguments["n"], 4 * groups)),
        {
            **arguments,
            "extras": extras,
            "sizes": sizes,
            "extra_strides": tuple(strides),
            "x_in": x_in,
            "seeds": scope.memory.seeds,
            **_bank(call, scope),
            "coef": coef,
            "coefs": 0 if coef is None else coef.shape[1],
            "rows": scope.table_at(attrs["table"]).rows,
            "site": attrs["site"],
        },
        {
            **constants,
            **{name.upper(): attrs.get(name, 0) for name in ("a", "b", "c", "e", "h")},
            "C_IN": attrs.get("cin", -1),
            "DRAW": attrs.get("draw", 0),
            "IN_BRANCHES": 0 if x_in is None else x_in.numel() // state.numel(),
            "GROUPS": groups,
        },
        takes_row=True,
        takes_micro=True,
        site=call.site,
    )


def gram(call: Call, scope: Scope) -> Launch:
    """Inner products of linear forms."""
    arguments, constants = _machine(call, scope)
    g = dense(call, scope, call.outs["g"])
    launch = Launch(
        gram_kernel(call.attrs["forms"], call.attrs["stats"]),
        (scope.memory.batch,),
        {**arguments, "g": g},
        {**constants, "F": call.attrs["f"], "TILE": block(arguments["n"], GRAM_TILE)},
        warps=8,
    )
    return with_row(call, scope, launch)


def scalars(call: Call, scope: Scope) -> Launch:
    """A program of each sample's numbers."""
    inputs = tuple(dense(call, scope, ref) for ref in numbered(call.ins, "x"))
    y, number = dense(call, scope, call.outs["y"]), call.attrs.get("table")
    table = {"table": None, "columns": 0} if number is None else scope.lookup(number)
    arguments = {
        "inputs": inputs,
        "sizes": tuple(x.shape[1] for x in inputs),
        "y": y,
        "rows": 0 if number is None else scope.table_at(number).rows,
        **table,
    }
    kernel = scalars_kernel(call.attrs["program"], call.attrs["results"])
    launch = Launch(kernel, (scope.memory.batch,), arguments, site=call.site, warps=1)
    if number is None:
        return replace(launch, arguments={**arguments, "row": 0})
    return with_row(call, scope, launch)


LOOP_LAUNCHES: Mapping[str, Callable[[Call, Scope], Launch]] = {
    f.__name__: f for f in (noise, step_time, step_input, record, sampler_step, gram, scalars)
}


def program_miss(call: Call) -> Miss | None:
    """What of a call's program has no Triton form."""
    found: object = None
    if call.op == "sampler_step":
        found = step_program(call.attrs, len(numbered(call.ins, "x")))
    elif call.op == "scalars":
        found = expressions(call.attrs.get("program", ()), 0, PER_SAMPLE)
    return found if isinstance(found, Miss) else None
