"""Each of the plan's calls (docs/plan-format.md) as one launch of a Triton kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from scoregraph.backends.protocol import Miss
from scoregraph.backends.triton.binding import BLOCK, Scope, block, blocks, collapse, dense, refuse
from scoregraph.backends.triton.expression import expressions, pointwise_kernel
from scoregraph.backends.triton.launch import Kernel, Launch
from scoregraph.backends.triton.loops import LOOP_LAUNCHES, program_miss
from scoregraph.plan.schema import Call

# The tile of a linear layer never depends on the batch: a sample's bits do not depend on its company.
TILE = {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 32}


def supports(call: Call) -> Miss | None:
    """Whether ``call`` has a kernel, as far as the call itself tells."""
    if call.op not in LAUNCHES:
        return Miss(f"the thin Triton backend has no kernel for {call.op} yet")
    if call.op == "pointwise":
        found = expressions(call.attrs["program"], len(call.ins))
        return found if isinstance(found, Miss) else None
    return program_miss(call)


def launch_of(call: Call, scope: Scope) -> Launch:
    """The launch that computes ``call``.

    Raises:
        UncoveredCall: the op, or this form of its operands, has no kernel.
    """
    miss = supports(call)
    if miss is not None:
        refuse(call, miss.reason)
    return LAUNCHES[call.op](call, scope)


def _fill(call: Call, scope: Scope) -> Launch:
    y = scope.memory[call.outs["x"]]
    sizes, (strides,) = collapse(y.shape, [y.stride()])
    size = block(y.numel(), BLOCK)
    return Launch(
        Kernel("fill"),
        (blocks(y.numel(), size),),
        {"y": y, "value": float(call.attrs["value"]), "total": y.numel(), "sizes": sizes, "y_strides": strides},
        {"BLOCK": size},
        site=call.site,
    )


def _copy(call: Call, scope: Scope) -> Launch:
    x, y = scope.memory[call.ins["x"]], scope.memory[call.outs["y"]]
    sizes, (x_strides, y_strides) = collapse(y.shape, [x.stride(), y.stride()])
    size = block(y.numel(), BLOCK)
    return Launch(
        Kernel("copy"),
        (blocks(y.numel(), size),),
        {"x": x, "y": y, "total": y.numel(), "sizes": sizes, "x_strides": x_strides, "y_strides": y_strides},
        {"BLOCK": size},
        site=call.site,
    )


def _pointwise(call: Call, scope: Scope) -> Launch:
    inputs = tuple(scope.memory[call.ins[f"x{i}"]] for i in range(len(call.ins)))
    y = scope.memory[call.outs["y"]]
    sizes, (y_strides, *strides) = collapse(y.shape, [y.stride(), *(x.stride() for x in inputs)])
    size = block(y.numel(), BLOCK)
    return Launch(
        pointwise_kernel(call.attrs["program"], len(inputs)),
        (blocks(y.numel(), size),),
        {
            "inputs": inputs,
            "y": y,
            "total": y.numel(),
            "sizes": sizes,
            "strides": tuple(strides),
            "y_strides": y_strides,
        },
        {"BLOCK": size},
        site=call.site,
    )


def _linear(call: Call, scope: Scope) -> Launch:
    x, y = scope.memory[call.ins["x"]], dense(call, scope, call.outs["y"])
    w = dense(call, scope, call.ins["w"])
    if w.dim() != 2:
        refuse(call, "its weight is packed for another device; Triton takes layout 'plain'")
    n, k = w.shape
    m = y.numel() // n
    rows, (strides,) = collapse(x.shape[:-1], [x.stride()[:-1]])
    inner = rows[-1]
    if len(rows) > 2 or (k > 1 and x.stride(-1) != 1):
        refuse(call, f"rows of x at strides {tuple(x.stride())} do not lie on two regular strides")
    gate = scope.memory[call.ins["gate"]] if "gate" in call.ins else None
    if gate is not None and (gate.dim() != 2 or (n > 1 and gate.stride(1) != 1)):
        refuse(call, "its gate is not [G, N] with contiguous rows")
    optional = {role: dense(call, scope, call.ins[role]) if role in call.ins else None for role in ("bias", "residual")}
    return Launch(
        Kernel("linear"),
        (blocks(n, TILE["BLOCK_N"]), blocks(m, TILE["BLOCK_M"])),
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
    **LOOP_LAUNCHES,
    "fill": _fill,
    "copy": _copy,
    "pointwise": _pointwise,
    "linear": _linear,
}
