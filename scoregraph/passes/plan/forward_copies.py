"""Let a kernel write straight to where a copy would have put its result: permuted heads, parts of a concatenation.

    y = attention(…);  z[…] = copy(permuted y)   ──▶   z[permuted …] = attention(…)

Applies where the copy is the only reader of ``y`` and the kernel can write through strides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scoregraph.passes.base import Fuel, Miss, PassResult
from scoregraph.passes.plan.liveness import owner, owner_of
from scoregraph.plan.dims import Batch, dense_strides, parse_dim, view_strides
from scoregraph.plan.draft import Draft
from scoregraph.plan.schema import Buffer, Call, Plan, Segment, View

STRIDED_OUT = {"attention": "y", "pointwise": "y", "copy": "y", "fill": "x", "conv2d": "y", "group_norm": "y"}
"""Kernels that write through strides, and the role they do it in (docs/plan-format.md)."""

IMAGES = ("conv2d", "group_norm")
"""Those whose results are images [n, C, …] with dense pixels: only samples and channels are strided."""

Dims = tuple[tuple[int | Batch, int], ...]


@dataclass(frozen=True)
class ForwardCopies:
    """Copies of a value that nobody else reads disappear into the call that makes the value."""

    name: ClassVar[str] = "forward-copies"

    def run(self, module: Draft, fuel: Fuel | None = None) -> PassResult[Draft]:
        """Misses: a copy whose source has other readers is no near miss and is not reported; one whose maker cannot
        write through strides is."""
        fuel = fuel or Fuel()
        plan, misses = module.plan, list[Miss]()
        buffers = list(plan.buffers)
        outside = _seen_outside(plan)
        readers, writers = _users(plan)
        segments: list[Segment] = []
        removed = 0
        for turn, segment in enumerate(plan.segments):
            calls: list[Call | None] = list(segment.calls)
            for at, call in enumerate(segment.calls):
                if call.op != "copy" or call.ins["x"][0] == "c":
                    continue
                source = owner(plan, call.ins["x"])
                assert source is not None, "a buffer has an owner"
                if source in outside or readers[source] != 1 or len(writers.get(source, [])) != 1:
                    continue
                made_in, maker_at = writers[source][0]
                if made_in != turn or maker_at >= at:
                    continue
                maker = calls[maker_at]
                assert maker is not None, "a call with a reader is kept"
                if maker.variants != call.variants:
                    misses.append(Miss("the copy is made in rows of other variants than its source", call.site))
                    continue
                role = STRIDED_OUT.get(maker.op)
                if role is None:
                    misses.append(Miss(f"{maker.op} writes dense results only", call.site))
                    continue
                window = _forward(plan, buffers, maker.outs[role], call)
                if window is not None and maker.op in IMAGES and not _dense_pixels(window):
                    window = None
                target = owner(plan, call.outs["y"])
                if window is None or target is None or _reads_between(plan, calls, target, maker_at, at):
                    misses.append(Miss("the copy regroups elements in a way strides cannot express", call.site))
                    continue
                if not fuel.spend():
                    break
                number = len(buffers)
                buffers.append(window.model_copy(update={"id": number}))
                calls[maker_at] = maker.model_copy(update={"outs": {**maker.outs, role: f"b{number}"}})
                calls[at] = None
                # The maker now writes to the target, so a later copy of the same target may look for it there.
                writers[target] = [(s, maker_at if (s, i) == (turn, at) else i) for s, i in writers[target]]
                plan = plan.model_copy(update={"buffers": tuple(buffers)})
                removed += 1
            segments.append(segment.model_copy(update={"calls": tuple(c for c in calls if c is not None)}))
        plan = plan.model_copy(update={"segments": tuple(segments), "buffers": tuple(buffers)})
        return PassResult(Draft(plan, module.arrays), rewrites=removed, misses=tuple(misses))


def _seen_outside(plan: Plan) -> set[int]:
    """The buffers that are read by others than calls: the caller, and loops that look whether to go on."""
    conditions = [segment.repeat.active for segment in plan.segments if segment.repeat is not None]
    numbers = [spec.buffer for spec in (*plan.inputs, *plan.outputs)]
    return {owner_of(plan, number) for number in (*numbers, *conditions)}


def _users(plan: Plan) -> tuple[dict[int, int], dict[int, list[tuple[int, int]]]]:
    """How often each buffer is read, and which calls (segment, index in it) write it."""
    readers: dict[int, int] = {b.id: 0 for b in plan.buffers}
    writers: dict[int, list[tuple[int, int]]] = {}
    for turn, segment in enumerate(plan.segments):
        for at, call in enumerate(segment.calls):
            for ref in call.ins.values():
                if (number := owner(plan, ref)) is not None:
                    readers[number] += 1
            for ref in call.outs.values():
                if (number := owner(plan, ref)) is not None:
                    writers.setdefault(number, []).append((turn, at))
    return readers, writers


def _window(buffer: Buffer) -> tuple[Dims, int]:
    """Sizes and strides of a buffer or view, and its offset."""
    shape = tuple(parse_dim(d) for d in buffer.shape)
    if buffer.view:
        return tuple(zip(shape, buffer.view.strides, strict=True)), buffer.view.offset
    strides = dense_strides(shape)
    assert strides is not None, "a buffer with memory of its own is dense"
    return tuple(zip(shape, strides, strict=True)), 0


def _covering(dims: Dims) -> list[int] | None:
    """The order of dimensions by falling stride, if in that order they cover memory once without gaps."""
    order = sorted((i for i in range(len(dims)) if dims[i][0] != 1), key=lambda i: -dims[i][1])
    dense = dense_strides(tuple(dims[i][0] for i in order))
    return order if dense is not None and list(dense) == [dims[i][1] for i in order] else None


def _forward(plan: Plan, buffers: list[Buffer], made: str, copy: Call) -> Buffer | None:
    """The window onto the copy's target that the maker writes instead of ``made``."""
    result, result_offset = _window(buffers[int(made[1:])])
    source, source_offset = _window(buffers[int(copy.ins["x"][1:])])
    target_buffer = buffers[int(copy.outs["y"][1:])]
    target, target_offset = _window(target_buffer)
    source_order, result_order = _covering(source), _covering(result)
    if source_offset or result_offset or source_order is None or result_order is None:
        return None
    # In the order of memory both windows walk the same elements; regroup the target's strides to the result's sizes.
    strides = view_strides(
        tuple(source[i][0] for i in source_order),
        tuple(target[i][1] for i in source_order),
        tuple(result[i][0] for i in result_order),
    )
    if strides is None:
        return None
    by_dimension = dict(zip(result_order, strides, strict=True))
    base = target_buffer.view.base if target_buffer.view else target_buffer.id
    view = View(base=base, offset=target_offset, strides=tuple(by_dimension.get(i, 0) for i in range(len(result))))
    return buffers[int(made[1:])].model_copy(update={"view": view, "slot": None, "name": target_buffer.name})


def _dense_pixels(image: Buffer) -> bool:
    """Whether the dimensions of an image behind samples and channels are dense."""
    dims, _ = _window(image)
    moving = [(size, stride) for size, stride in dims[2:] if size != 1]
    return [stride for _, stride in moving] == list(dense_strides(tuple(size for size, _ in moving)) or ())


def _reads_between(plan: Plan, calls: list[Call | None], number: int, first: int, last: int) -> bool:
    """Whether some call from ``first`` on and before ``last`` reads a buffer."""
    between = [call for call in calls[first:last] if call is not None]
    return any(owner(plan, ref) == number for call in between for ref in call.ins.values())
