"""Values that are read only quantized are written so: they never exist in float32.

h = layer_norm(x);  q, grid = quantize(h)        ──▶   q, grid = layer_norm(x)
h = linear(x, act);  q = quantize(h, grid)       ──▶   q = linear(x, act, ygrid=grid)
h = linear(x: u8);  q, grid = quantize(h)        ──▶   q, grid = linear(x: u8)            a grid row for each row
h = rms_norm(x);  y = linear(h, w: bf16)         ──▶   h: bf16
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scoregraph.passes.base import Fuel, Miss, PassResult
from scoregraph.passes.plan.liveness import owner, owner_of
from scoregraph.plan.dims import dense_strides, parse_dim, product
from scoregraph.plan.draft import Draft
from scoregraph.plan.schema import Buffer, Call, Plan

NORMS = ("layer_norm", "rms_norm", "group_norm")

Place = tuple[int, int]


@dataclass(frozen=True)
class FuseQuantization:
    """The call that makes a value writes it in the format in which all of its readers want it."""

    name: ClassVar[str] = "fuse-quantization"

    def run(self, module: Draft, fuel: Fuel | None = None) -> PassResult[Draft]:
        """Counters: by the operation that now writes. Misses: a value of a norm or product that stays in float32."""
        fusion = _Fusion(module.plan, fuel or Fuel())
        fusion.quantized()
        fusion.bf16()
        segments = tuple(
            segment.model_copy(update={"calls": tuple(c for c in fusion.calls[n] if c is not None)})
            for n, segment in enumerate(module.plan.segments)
        )
        plan = module.plan.model_copy(update={"segments": segments, "buffers": tuple(fusion.buffers)})
        return PassResult(
            Draft(plan, module.arrays, module.counters),
            rewrites=sum(fusion.counters.values()),
            counters=fusion.counters,
            misses=tuple(fusion.misses),
        )


class _Fusion:
    """One run of the pass: the calls as they change (None: gone), and who reads and writes each buffer."""

    def __init__(self, plan: Plan, fuel: Fuel) -> None:
        self.plan, self.fuel = plan, fuel
        self.calls: list[list[Call | None]] = [list(segment.calls) for segment in plan.segments]
        self.buffers: list[Buffer] = list(plan.buffers)
        self.counters: dict[str, int] = {}
        self.misses: list[Miss] = []
        self.readers: dict[int, list[tuple[Place, str]]] = {}
        self.writers: dict[int, list[Place]] = {}
        for n, segment in enumerate(plan.segments):
            for at, call in enumerate(segment.calls):
                for role, ref in call.ins.items():
                    if (number := owner(plan, ref)) is not None:
                        self.readers.setdefault(number, []).append(((n, at), role))
                for ref in call.outs.values():
                    if (number := owner(plan, ref)) is not None:
                        self.writers.setdefault(number, []).append((n, at))
        outside = [spec.buffer for spec in (*plan.inputs, *plan.outputs)]
        outside += [segment.repeat.active for segment in plan.segments if segment.repeat is not None]
        self.outside = {owner_of(plan, number) for number in outside}

    def _maker(self, value: int, reader: Place) -> Place | None:
        """The one call that writes a value, earlier in the reader's own segment and in the same rows; else None."""
        writers = self.writers.get(value, [])
        if len(writers) != 1 or writers[0][0] != reader[0] or writers[0][1] >= reader[1]:
            return None
        maker, read = self._call(writers[0]), self._call(reader)
        return writers[0] if maker.variants == read.variants else None

    def _call(self, place: Place) -> Call:
        call = self.calls[place[0]][place[1]]
        assert call is not None, "a call is taken away once, and only as the reader of its value"
        return call

    def _count(self, op: str) -> None:
        self.counters[op] = self.counters.get(op, 0) + 1

    # --- whole numbers ---------------------------------------------------------------------------------

    def quantized(self) -> None:
        """Each ``quantize`` goes into the call that makes its operand."""
        for n, calls in enumerate(self.calls):
            for at, call in enumerate(calls):
                if call is None or call.op != "quantize":
                    continue
                value = owner(self.plan, call.ins["x"])
                assert value is not None, "constants are quantized when the plan is made"
                maker = self._maker(value, (n, at))
                if maker is None:
                    continue
                made = self._call(maker)
                reason = self._unfusable(made, call, value)
                if reason is None:
                    continue
                if reason:
                    self.misses.append(Miss(reason, made.site))
                elif self.fuel.spend():
                    ins = {role: ref for role, ref in call.ins.items() if role != "x"}
                    update = {"ins": {**made.ins, **ins}, "outs": {**made.outs, **call.outs}}
                    self.calls[n][maker[1]] = made.model_copy(update=update)
                    self.calls[n][at] = None
                    self._count(made.op)

    def _unfusable(self, made: Call, quantize: Call, value: int) -> str | None:
        """Why a maker does not write quantized; empty: it may; None: it never does, which is no near miss."""
        if made.op not in (*NORMS, "linear") or made.outs["y"] != f"b{value}":
            return None
        if made.op == "linear" and "ygrid" in quantize.outs and not self._measures(made, quantize, value):
            return None
        if made.op == "linear" and "ygrid" in quantize.ins and "smooth" in quantize.ins:
            return "its result is smoothed, which a product on a static grid does not do"
        if value in self.outside or len(self.readers[value]) > 1:
            return "its result is also read in float32"
        whole, seen = self.buffers[value], self.buffers[int(quantize.ins["x"][1:])]
        if seen.shape != whole.shape or (seen.view is not None and not _is_whole(seen)):
            return "its result is quantized in parts or in another shape"
        return "" if made.op != "group_norm" or len(whole.shape) == 4 else "its result is no image"

    def _measures(self, made: Call, quantize: Call, value: int) -> bool:
        """Whether a product can measure its result: of whole numbers, ungated, with a grid row for each row."""
        rows = product(parse_dim(d) for d in self.buffers[value].shape[:-1])
        grid = self.buffers[int(quantize.outs["ygrid"][1:])].shape
        return "grid" in made.ins and not {"gate", "residual"} & made.ins.keys() and parse_dim(grid[0]) == rows

    # --- bf16 --------------------------------------------------------------------------------------------

    def bf16(self) -> None:
        """Norms and products write bf16 where only products of bf16 weights read it."""
        for value, readers in self.readers.items():
            if value in self.outside or self.buffers[value].dtype != "f32" or not self._read_as_bf16(readers):
                continue
            maker = self._maker(value, readers[0][0])
            if maker is None or any(self._maker(value, place) != maker for place, _ in readers):
                continue
            made = self._call(maker)
            if made.op not in ("layer_norm", "rms_norm", "linear") or made.outs["y"] != f"b{value}":
                continue
            if not self.fuel.spend():
                return
            for buffer in self.buffers:
                if owner_of(self.plan, buffer.id) == value:
                    self.buffers[buffer.id] = buffer.model_copy(update={"dtype": "bf16"})
            self._count(made.op)

    def _read_as_bf16(self, readers: list[tuple[Place, str]]) -> bool:
        def is_product(place: Place, role: str) -> bool:
            call = self.calls[place[0]][place[1]]
            if call is None or call.op != "linear" or role != "x" or call.ins["w"][0] != "c":
                return False
            return self.plan.constants[int(call.ins["w"][1:])].dtype == "bf16"

        return all(is_product(place, role) for place, role in readers)


def _is_whole(view: Buffer) -> bool:
    """Whether a view of a buffer's own shape shows it as it is."""
    assert view.view is not None
    return not view.view.offset and view.view.strides == dense_strides(tuple(parse_dim(d) for d in view.shape))
