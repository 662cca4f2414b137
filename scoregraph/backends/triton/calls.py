"""Each of the plan's calls (docs/plan-format.md) as one launch of a Triton kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from scoregraph.backends.protocol import Miss
from scoregraph.backends.triton.expression import expressions, pointwise_kernel
from scoregraph.backends.triton.launch import Kernel, Launch
from scoregraph.backends.triton.memory import Memory
from scoregraph.errors import UncoveredCall
from scoregraph.plan.schema import Call, Plan, Table

if TYPE_CHECKING:
    import torch

GROUPS = 256  # groups of four elements in one program of the noise and the sampler step
BLOCK = 1024  # elements in one program of an elementwise kernel
UNCOVERED_ROLES = {"bank": "a noise bank", "coef": "coefficients per sample", "time": "times per sample"}
# The tile of a linear layer never depends on the batch: a sample's bits do not depend on its company.
TILE = {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 32}


@dataclass(frozen=True)
class Scope:
    """What a launch depends on beside its call: the plan, its memory, the table of its segment, and the next row.

    ``following`` is the variant of the next row (0 in a segment without variants, and behind the last row).
    """

    plan: Plan
    memory: Memory
    table: int | None = None
    following: int = 0

    def table_at(self, number: int) -> Table:
        """The table whose id is ``number``."""
        return next(table for table in self.plan.tables if table.id == number)

    def lookup(self, number: int) -> dict[str, Any]:
        """The arguments by which a kernel reads table ``number``."""
        table = self.table_at(number)
        return {"table": self.memory[f"c{table.constant}"], "columns": len(table.columns)}


def supports(call: Call) -> Miss | None:
    """Whether ``call`` has a kernel, as far as the call itself tells."""
    if call.op not in LAUNCHES:
        return Miss(f"the thin Triton backend has no kernel for {call.op} yet")
    if call.op == "pointwise":
        found = expressions(call.attrs["program"], len(call.ins))
        return found if isinstance(found, Miss) else None
    for role, meaning in UNCOVERED_ROLES.items():
        if role in call.ins and call.op in ("noise", "step_time", "step_input", "sampler_step"):
            return Miss(f"the thin Triton backend does not take {meaning} in {call.op} yet")
    if call.op == "sampler_step" and call.attrs.get("results"):
        return Miss("the thin Triton backend has no elementwise program in sampler_step yet")
    return None


def launch_of(call: Call, scope: Scope) -> Launch:
    """The launch that computes ``call``.

    Raises:
        UncoveredCall: the op, or this form of its operands, has no kernel.
    """
    miss = supports(call)
    if miss is not None:
        _refuse(call, miss.reason)
    return LAUNCHES[call.op](call, scope)


def _refuse(call: Call, reason: str) -> NoReturn:
    raise UncoveredCall(device="triton", op=call.op, site=call.site or "(no site)", reason=reason)


def _noise(call: Call, scope: Scope) -> Launch:
    x = _dense(call, scope, call.outs["x"])
    n = x.numel() // scope.memory.batch
    groups = _block(-(-n // 4), GROUPS)
    return Launch(
        Kernel("noise"),
        (scope.memory.batch, _blocks(n, 4 * groups)),
        {
            "x": x,
            "seeds": scope.memory.seeds,
            "micro": call.attrs["micro"],
            "site": call.attrs["site"],
            "scale": float(call.attrs["scale"]),
            "n": n,
        },
        {"GROUPS": groups},
        site=call.site,
    )


def _fill(call: Call, scope: Scope) -> Launch:
    y = scope.memory[call.outs["x"]]
    sizes, (strides,) = collapse(y.shape, [y.stride()])
    block = _block(y.numel(), BLOCK)
    return Launch(
        Kernel("fill"),
        (_blocks(y.numel(), block),),
        {"y": y, "value": float(call.attrs["value"]), "total": y.numel(), "sizes": sizes, "y_strides": strides},
        {"BLOCK": block},
        site=call.site,
    )


def _copy(call: Call, scope: Scope) -> Launch:
    x, y = scope.memory[call.ins["x"]], scope.memory[call.outs["y"]]
    sizes, (x_strides, y_strides) = collapse(y.shape, [x.stride(), y.stride()])
    block = _block(y.numel(), BLOCK)
    return Launch(
        Kernel("copy"),
        (_blocks(y.numel(), block),),
        {"x": x, "y": y, "total": y.numel(), "sizes": sizes, "x_strides": x_strides, "y_strides": y_strides},
        {"BLOCK": block},
        site=call.site,
    )


def _pointwise(call: Call, scope: Scope) -> Launch:
    inputs = tuple(scope.memory[call.ins[f"x{i}"]] for i in range(len(call.ins)))
    y = scope.memory[call.outs["y"]]
    sizes, (y_strides, *strides) = collapse(y.shape, [y.stride(), *(x.stride() for x in inputs)])
    block = _block(y.numel(), BLOCK)
    return Launch(
        pointwise_kernel(call.attrs["program"], len(inputs)),
        (_blocks(y.numel(), block),),
        {
            "inputs": inputs,
            "y": y,
            "total": y.numel(),
            "sizes": sizes,
            "strides": tuple(strides),
            "y_strides": y_strides,
        },
        {"BLOCK": block},
        site=call.site,
    )


def _step_time(call: Call, scope: Scope) -> Launch:
    t = _dense(call, scope, call.outs["t"])
    block = _block(t.numel(), BLOCK)
    arguments = {"t": t, **scope.lookup(call.attrs["table"]), "column": call.attrs["column"], "n": t.numel()}
    return _with_row(
        call, scope, Launch(Kernel("step_time"), (_blocks(t.numel(), block),), arguments, {"BLOCK": block})
    )


def _step_input(call: Call, scope: Scope) -> Launch:
    x, x_in = _dense(call, scope, call.ins["x"]), _dense(call, scope, call.outs["xin"])
    samples, n = scope.memory.batch, x.numel() // scope.memory.batch
    block = _block(n, BLOCK)
    launch = Launch(
        Kernel("step_input"),
        (samples, _blocks(n, block)),
        {"x": x, "x_in": x_in, **scope.lookup(call.attrs["table"]), "column": call.attrs["column"], "n": n},
        {"BRANCHES": x_in.numel() // x.numel(), "BLOCK": block},
    )
    return _with_row(call, scope, launch)


def _sampler_step(call: Call, scope: Scope) -> Launch:
    if scope.table is None:
        _refuse(call, "a sampler step reads a row of its loop's table, and this segment has none")
    table = call.attrs["table"]
    registers = tuple(_dense(call, scope, ref) for ref in _numbered(call.ins, "r"))
    if _numbered(call.outs, "r") != _numbered(call.ins, "r"):
        _refuse(call, "registers are replaced in place")
    predictions = tuple(_dense(call, scope, ref) for ref in _numbered(call.ins, "p"))
    each = registers[0].numel()
    branches = [p.numel() // each for p in predictions]
    answers = list(call.attrs.get("answers") or range(sum(branches)))
    firsts = [sum(branches[:i]) for i in range(len(branches))]
    c_in, role = call.attrs.get("cin", -1), f"xin{scope.following}"
    x_in = _dense(call, scope, call.outs[role]) if role in call.outs and c_in >= 0 else None
    n = each // scope.memory.batch
    groups = _block(-(-n // 4), GROUPS)
    return Launch(
        Kernel("sampler_step"),
        (scope.memory.batch, _blocks(n, 4 * groups)),
        {
            "registers": registers,
            "predictions": predictions,
            "x_in": x_in,
            "seeds": scope.memory.seeds,
            **scope.lookup(table),
            "rows": scope.table_at(table).rows,
            "site": call.attrs["site"],
            "n": n,
        },
        {
            "A": call.attrs["a"],
            "B": call.attrs["b"],
            "C": call.attrs["c"],
            "C_IN": c_in,
            "ANSWERS": tuple(tuple(answers[a : a + k]) for a, k in zip(firsts, branches, strict=True)),
            "WIDTH": call.attrs.get("width") or len(answers),
            "IN_BRANCHES": 0 if x_in is None else x_in.numel() // each,
            "GROUPS": groups,
        },
        takes_row=True,
        takes_micro=True,
        site=call.site,
    )


def _linear(call: Call, scope: Scope) -> Launch:
    x, y = scope.memory[call.ins["x"]], _dense(call, scope, call.outs["y"])
    w = _dense(call, scope, call.ins["w"])
    if w.dim() != 2:
        _refuse(call, "its weight is packed for another device; Triton takes layout 'plain'")
    n, k = w.shape
    m = y.numel() // n
    rows, (strides,) = collapse(x.shape[:-1], [x.stride()[:-1]])
    inner = rows[-1]
    if len(rows) > 2 or (k > 1 and x.stride(-1) != 1):
        _refuse(call, f"rows of x at strides {tuple(x.stride())} do not lie on two regular strides")
    gate = scope.memory[call.ins["gate"]] if "gate" in call.ins else None
    if gate is not None and (gate.dim() != 2 or (n > 1 and gate.stride(1) != 1)):
        _refuse(call, "its gate is not [G, N] with contiguous rows")
    optional = {
        role: _dense(call, scope, call.ins[role]) if role in call.ins else None for role in ("bias", "residual")
    }
    return Launch(
        Kernel("linear"),
        (_blocks(n, TILE["BLOCK_N"]), _blocks(m, TILE["BLOCK_M"])),
        {
            "x": x,
            "w": w,
            **optional,
            "gate": gate,
            "y": y,
            "M": m,
            "N": n,
            "K": k,
            "x_inner": inner,
            "x_outer_stride": strides[0] if len(rows) == 2 else 0,
            "x_stride": strides[-1],
            "gate_rows": m if gate is None else m // gate.shape[0],
            "gate_stride": 0 if gate is None else gate.stride(0),
        },
        {"ACT": call.attrs.get("act", "none"), **TILE},
        fuse=True,
        site=call.site,
    )


LAUNCHES: Mapping[str, Callable[[Call, Scope], Launch]] = {
    "noise": _noise,
    "fill": _fill,
    "copy": _copy,
    "pointwise": _pointwise,
    "step_time": _step_time,
    "step_input": _step_input,
    "sampler_step": _sampler_step,
    "linear": _linear,
}


def collapse(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The fewest dimensions that walk the same elements in the same order for all of ``strides``; at least one."""
    kept = [d for d, size in enumerate(shape) if size != 1]
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for d in kept:
        if sizes and all(out[-1] == s[d] * shape[d] for out, s in zip(steps, strides, strict=True)):
            sizes[-1] *= shape[d]
            for out, s in zip(steps, strides, strict=True):
                out[-1] = s[d]
        else:
            sizes.append(shape[d])
            for out, s in zip(steps, strides, strict=True):
                out.append(s[d])
    if not sizes:
        return (1,), [(0,) for _ in strides]
    return tuple(sizes), [tuple(out) for out in steps]


def _with_row(call: Call, scope: Scope, launch: Launch) -> Launch:
    """``launch`` at the current row, or at the row the call fixes."""
    if "row" in call.attrs:
        return replace(launch, arguments={**launch.arguments, "row": call.attrs["row"]}, site=call.site)
    if scope.table is None:
        _refuse(call, "it reads the current row outside of a loop")
    return replace(launch, takes_row=True, site=call.site)


def _dense(call: Call, scope: Scope, ref: str) -> torch.Tensor:
    tensor = scope.memory[ref]
    if not tensor.is_contiguous():
        _refuse(call, f"{ref} has gaps: shape {tuple(tensor.shape)}, strides {tuple(tensor.stride())}")
    return tensor


def _numbered(roles: Mapping[str, str], letter: str) -> list[str]:
    """The refs of roles ``r0, r1, …`` in order."""
    found = {int(role[1:]): ref for role, ref in roles.items() if role[0] == letter and role[1:].isdigit()}
    return [found[i] for i in sorted(found)]


def _blocks(n: int, block: int) -> int:
    return max(1, -(-n // block))


def _block(n: int, most: int) -> int:
    """A power of two that covers ``n``, at most ``most``."""
    return min(most, 1 << max(0, n - 1).bit_length())
