"""A plan as a person reads it: memory, tables, and one line per kernel call."""

from __future__ import annotations

from scoregraph.plan.schema import Buffer, Call, Plan, Segment


def plan_text(plan: Plan) -> str:
    """The listing of a plan, before or after memory is planned."""
    weights = sum(c.nbytes for c in plan.constants)
    lines = [f"plan {plan.name} for {plan.device}"]
    for spec in plan.inputs:
        low, high = ("" if bound is None else f"{bound:g}" for bound in (spec.low, spec.high))
        bounds = f" in {low}..{high}" if low or high else ""
        role = ", in place of generated noise" if spec.buffer == plan.bank else ""
        lines.append(f"input  {spec.name} = b{spec.buffer} {_shape(plan.buffers[spec.buffer])}{bounds}{role}")
    lines += [f"output {spec.name} = b{spec.buffer} {_shape(plan.buffers[spec.buffer])}" for spec in plan.outputs]
    stored = sum(b.view is None for b in plan.buffers)
    size = f", {weights / 1e6:.1f} MB" if weights else ""
    lines.append(f"{stored} buffers, {len(plan.buffers) - stored} views, {len(plan.constants)} constants{size}")
    for segment in plan.segments:
        if not segment.calls:
            continue
        lines.append(f"\n{segment.name}, {_turns(plan, segment)}: {len(segment.calls)} calls")
        for use in segment.networks:
            branches = "" if use.branches == 1 else f", {use.branches} branches"
            lines.append(f"  evaluates {use.name}{branches}{_rows(use.variants)}")
        lines += [f"  {_call(plan, call)}{_rows(call.variants)}" for call in segment.calls]
    return "\n".join(lines) + "\n"


def _turns(plan: Plan, segment: Segment) -> str:
    """``20 times, rows of variants by column 7``; ``up to 500 rounds of 2 while b3``."""
    rows = None if segment.table is None else plan.tables[segment.table]
    kinds = "" if rows is None or segment.variant is None else f", variants by {_column(rows.columns, segment.variant)}"
    if segment.repeat is None:
        return ("once" if rows is None else f"{rows.rows} times") + kinds
    steps = "" if rows is None else f" of {rows.rows}"
    ends = "" if segment.repeat.strict else ", then as it is"
    return f"up to {segment.repeat.limit} rounds{steps} while b{segment.repeat.active}{ends}{kinds}"


def _column(columns: tuple[str, ...], number: int) -> str:
    return columns[number] if number < len(columns) else f"column {number}"


def _rows(variants: tuple[int, ...]) -> str:
    """``  in variants 0, 2``, or nothing for all rows."""
    plural = "" if len(variants) == 1 else "s"
    return f"  in variant{plural} {', '.join(map(str, variants))}" if variants else ""


def _shape(buffer: Buffer) -> str:
    return f"{buffer.dtype}[{', '.join(map(str, buffer.shape))}]"


def _operand(plan: Plan, ref: str) -> str:
    number = int(ref[1:])
    if ref[0] == "c":
        return plan.constants[number].name or ref
    buffer = plan.buffers[number]
    return f"b{buffer.view.base}[{buffer.view.offset}:{_strides(buffer.view.strides)}]" if buffer.view else ref


def _strides(strides: tuple[int, ...]) -> str:
    return "x".join(map(str, strides))


def _call(plan: Plan, call: Call) -> str:
    outs = ", ".join(_operand(plan, ref) for ref in call.outs.values())
    first = next(iter(call.outs.values()))
    ins = ", ".join(f"{role}={_operand(plan, ref)}" for role, ref in call.ins.items())
    attrs = ", ".join(f"{k}={_attr(v)}" for k, v in call.attrs.items())
    shape = _shape(plan.buffers[int(first[1:])])
    return f"{outs} : {shape} = {call.op}({', '.join(part for part in (ins, attrs) if part)})  # {call.site}"


def _attr(value: object) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "; ".join(" ".join(map(str, step)) for step in value)
    return str(value)
