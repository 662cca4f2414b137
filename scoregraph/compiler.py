"""``compile``: the one function that names every stage of the way from a graph to a plan, in order."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from scoregraph import backends, cache
from scoregraph.errors import (
    CannotCalibrate,
    NothingToQuantize,
    ScoregraphError,
    UncoveredCall,
    UnknownName,
    WrongOperand,
    here,
)
from scoregraph.graph.builder import GraphBuilder, HasRef
from scoregraph.graph.graph import Graph
from scoregraph.graph.values import NetRef
from scoregraph.graph.verify import verify
from scoregraph.passes.base import Fuel, StageReport, run_passes
from scoregraph.passes.quantize.calibrate import Calibration
from scoregraph.passes.quantize.recipe import Recipe, parse_recipe
from scoregraph.plan import files
from scoregraph.plan.text import plan_text
from scoregraph.runtime import CompiledPlan

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from scoregraph.backends.protocol import Backend
    from scoregraph.models.energies import EnergyNetwork
    from scoregraph.models.network import Network
    from scoregraph.passes.base import Pass
    from scoregraph.plan.draft import Draft
    from scoregraph.plan.schema import Plan

    Target = Graph | GraphBuilder | Network | EnergyNetwork

NOISES = ("philox", "bank")
"""What ``noise`` may be."""


def compile(
    target: Target,
    *,
    device: str = "cpu",
    quant: str | Recipe = "none",
    calibrate_on: Mapping[str, Any] | Calibration | None = None,
    noise: str = "philox",
    threads: int | None = None,
    networks: Mapping[str, Network | EnergyNetwork] | None = None,
    use_cache: bool = True,
    on_stage: Callable[[str], None] | None = None,
) -> CompiledPlan:
    """Compile a sampling graph, or a network by itself, into one plan for one device.

    Args:
        target: a graph (finished or still in its builder), or a network, whose plan evaluates it once.
        device: ``cpu``, ``reference`` (torch, the oracle) or ``triton``.
        quant: the formats in which products compute: ``none`` (float32), ``w8a8``, ``bf16``, ``w8a8:groups=4`` …
            (docs/quantization.md).
        calibrate_on: for recipes with static grids or smoothing, inputs by name for the samples that are looked at, as
            for ``run``; others take their defaults, or numbers from between their bounds. Or what was seen, from a
            plan of the same layers and steps: ``Calibration.from_json(plan.stages["quantization"])``.
        noise: ``philox`` draws noise from each sample's seed; ``bank`` takes all of it from the caller, in the order in
            which it is drawn (``plan.draws``), which replays a trajectory of another library.
        threads: threads of a CPU plan; None takes all cores. Results do not depend on it.
        networks: the graph's networks by fingerprint, for those that neither the builder nor ``sg.models`` knows.
        use_cache: take the plan from the cache when it is there, and keep it there when it was not.
        on_stage: told what is being done, as in ``"capturing terrain"``: a large network takes half a minute.

    Returns:
        The plan, ready to ``run``; ``plan.stages`` holds the text of every stage.

    Raises:
        ScoregraphError: of the codes SG1xx to SG4xx; each names the line of the graph or of the network.
    """
    where = here()
    recipe = quant if isinstance(quant, Recipe) else parse_recipe(quant, where)
    if noise not in NOISES:
        raise UnknownName(kind="source of noise", name=noise, known=NOISES, where=where)
    backend = backends.load(device, threads)
    source = _Source(target, networks or {})
    fuel = Fuel.from_environment()
    # A plan with fewer rewrites is not the plan of its graph; one with a noise bank serves one number of steps only.
    use_cache = use_cache and fuel.left is None and noise == "philox"
    stages = _Stages(on_stage)
    key = source.fold(stages, fuel).key(device, _quant_text(recipe, calibrate_on))
    timed = key.at(source.times())
    if use_cache and (kept := _kept(source, (key, timed), stages, threads)):
        return kept
    # A draft is in float32, whatever becomes of it.
    draft_key = replace(key, quant="none").at(cache.DRAFT)
    kept_draft = _kept_draft(source, draft_key, stages) if use_cache else None
    lowered = kept_draft or source.lower(device, stages, fuel, bank=noise == "bank")
    before_planning = tuple(stages.data)
    stages.begin("planning memory")
    draft = stages.run(_call_passes(backend), lowered, _listing, fuel)
    if recipe is not None:
        draft = _quantized(draft, recipe, device, calibrate_on, threads, stages, fuel)
    draft = stages.run(_last_passes(device), draft, _listing, fuel)
    for segment in draft.plan.segments:
        for call in segment.calls:
            if miss := backend.supports(call):
                raise UncoveredCall(device=device, op=call.op, site=call.site, reason=miss.reason, where=where)
    plan = draft.plan.model_copy(update={"graph": source.text, "stages": tuple(stages.data)})
    plan, constants = files.lay_out(plan, draft.arrays)
    if use_cache:
        # A cache that is read-only, full or in the way of something else must not keep anyone from running a plan.
        with contextlib.suppress(OSError, ScoregraphError):
            if _serves_other_tables(plan):
                cache.keep(key, plan, constants, stages.texts)
            else:
                cache.keep(timed, plan, constants, stages.texts)
            if kept_draft is None and (recipe is not None or not _serves_other_tables(plan)):
                unplanned = lowered.plan.model_copy(update={"stages": before_planning})
                cache.keep(draft_key, *files.lay_out(unplanned, lowered.arrays), stages.texts)
    return CompiledPlan(plan, constants, stages.texts, threads)


def _kept(source: _Source, keys: Sequence[cache.Key], stages: _Stages, threads: int | None) -> CompiledPlan | None:
    """The plan from the cache, with the tables of this graph; a damaged one is as good as none."""
    for folder in filter(None, map(cache.find, keys)):
        with contextlib.suppress(ScoregraphError):
            plan, constants = files.load(folder)
            texts = files.load_stages(folder)
            if plan.graph != source.text:
                plan, constants = source.retable(plan, constants)
            return CompiledPlan(plan, constants, {**texts, **stages.texts}, threads)
    return None


def _kept_draft(source: _Source, key: cache.Key, stages: _Stages) -> Draft | None:
    """The draft of this structure, with the tables of this graph: no network needs to be captured."""
    from scoregraph.passes.plan.replace_tables import replace_tables
    from scoregraph.plan.draft import Draft

    folder = cache.find(key)
    if folder is None or source.graph is None:
        return None
    with contextlib.suppress(ScoregraphError):
        plan, data = files.load(folder)
        texts = files.load_stages(folder)
        arrays = {each.id: files.read_constant(each, data).reshape(each.shape) for each in plan.constants}
        plan, arrays = replace_tables(plan, arrays, source.graph)
        stages.data += [stage for stage in plan.stages if stage.name not in stages.texts]
        stages.texts |= {stage.name: texts[stage.name] for stage in plan.stages if stage.name in texts}
        return Draft(plan, arrays)
    return None


def cache_key(target: Target, *, device: str = "cpu", quant: str | Recipe = "none") -> cache.Key:
    """The key under which ``compile`` keeps the plan of ``target``."""
    recipe = quant if isinstance(quant, Recipe) else parse_recipe(quant, here())
    return _Source(target, {}).fold(_Stages(), Fuel()).key(device, _quant_text(recipe, None))


def _quant_text(recipe: Recipe | None, calibrate_on: Mapping[str, Any] | Calibration | None) -> str:
    """What of the quantization a plan depends on: the recipe, and the samples its grids were found with."""
    if recipe is None:
        return "none"
    if not calibrate_on or not (recipe.is_static or recipe.spare or recipe.smooths("conv2d")):
        return str(recipe)
    if isinstance(calibrate_on, Calibration):
        return f"{recipe} of ranges {cache.digest(calibrate_on.to_json())}"
    arrays = {name: np.asarray(value, np.float64) for name, value in sorted(calibrate_on.items())}
    on = cache.digest("".join(f"{name} {a.shape} {a.tobytes().hex()}" for name, a in arrays.items()))
    return f"{recipe} calibrated on {on}"


def _quantized(
    draft: Draft,
    recipe: Recipe,
    device: str,
    calibrate_on: Mapping[str, Any] | Calibration | None,
    threads: int | None,
    stages: _Stages,
    fuel: Fuel,
) -> Draft:
    """The draft in the recipe's formats; static grids and smoothing are found by running the draft as it is.

    Smoothing that nobody asked for is left out where calibration cannot run, and the stage says so.
    """
    from scoregraph.calibration import calibrate, check_ranges, spared, spared_text, wanted
    from scoregraph.passes.quantize.fuse_quantization import FuseQuantization
    from scoregraph.passes.quantize.insert_quantization import InsertQuantization

    calibration = None
    if wanted(draft, recipe):
        stages.begin("calibrating")
        started = time.perf_counter()
        try:
            if isinstance(calibrate_on, Calibration):
                calibration = check_ranges(draft, recipe, calibrate_on)
            else:
                calibration = calibrate(draft, recipe, device, calibrate_on, threads)
            stages.note("quantization", calibration.to_json(), started, {"sites": len(calibration.sites)})
        except CannotCalibrate as error:
            if recipe.is_static or recipe.smooth != "conv" or calibrate_on:
                raise
            stages.note("smoothing", f"convolutions are not smoothed: {error}\n", started)
    kept = frozenset[str]()
    if recipe.spare:
        started = time.perf_counter()
        given = None if isinstance(calibrate_on, Calibration) else calibrate_on
        found = spared(draft, recipe, calibration, device, given, threads, stages.begin)
        kept = frozenset(each.layers[0].name for each in found)
        stages.note("spare", spared_text(found), started, {"layers": len(found)})
    stages.begin("quantizing")
    unlimited = fuel.left is None
    draft = stages.run([InsertQuantization(recipe, calibration, kept)], draft, _listing, fuel)
    report = stages.data[-1]
    if unlimited and not report.rewrites:
        counted = Counter(miss.rpartition(": ")[2] for miss in report.misses)
        reasons = "; ".join(f"{reason} ({count})" for reason, count in counted.most_common(4)) or "it has none"
        raise NothingToQuantize(recipe=recipe, name=draft.plan.name, products=len(report.misses), reasons=reasons)
    return stages.run([FuseQuantization()], draft, _listing, fuel)


class _Stages:
    """Collects the report and the text of every stage, and tells ``begin`` what is being done."""

    def __init__(self, begin: Callable[[str], None] | None = None) -> None:
        self.begin = begin or (lambda doing: None)
        self.data: list[Any] = []
        self.texts: dict[str, str] = {}

    def keep(self, reports: tuple[StageReport[Any], ...], prefix: str = "") -> None:
        for report in reports:
            name = self._free(f"{prefix}{report.name}")
            self.data.append(report.data().model_copy(update={"name": name}))
            self.texts[name] = report.text

    def _free(self, name: str) -> str:
        """A name no other stage has: a pass that runs twice is two stages."""
        again = (f"{name} ({turn})" for turn in itertools.count(2))
        return name if name not in self.texts else next(each for each in again if each not in self.texts)

    def note(self, name: str, text: str, started: float, counters: Mapping[str, int] | None = None) -> None:
        """A stage that is no pass: what it produced, and how long it took since ``started``."""
        from scoregraph.plan.schema import Stage

        ms = round((time.perf_counter() - started) * 1e3, 3)
        self.data.append(Stage(name=name, rewrites=0, ms=ms, counters=dict(counters or {})))
        self.texts[name] = text

    def run(self, passes: list[Pass[Any]], program: Any, show: Callable[[Any], str], fuel: Fuel) -> Any:
        program, reports = run_passes(passes, program, show=show, fuel=fuel)
        self.keep(reports)
        return program


class _Source:
    """What is compiled, in either of its forms."""

    def __init__(self, target: Target, networks: Mapping[str, Network | EnergyNetwork]) -> None:
        self.networks: dict[str, Network | EnergyNetwork] = dict(networks)
        self.graph: Graph | None = None
        self.network: Network | EnergyNetwork | None = None
        if isinstance(target, GraphBuilder):
            for net in target.networks:
                self.networks.setdefault(net.ref.fingerprint, cast("Network", net))
            target = target.build()
        if isinstance(target, Graph):
            self.graph = target
            self.name, self.text = target.name, str(target)
        elif isinstance(target, HasRef):
            self.network = cast("Network", target)
            self.networks[target.ref.fingerprint] = self.network
            self.name, self.text = target.ref.name, repr(target.ref)
        else:
            expected = "a Graph, a GraphBuilder or a network of sg.models"
            raise WrongOperand(operand="what is compiled", expected=expected, got=repr(target), where=here())

    def fold(self, stages: _Stages, fuel: Fuel) -> _Source:
        """Run the passes over the graph, after which its structure is known. Needs no network; returns itself."""
        if self.graph is not None:
            started = time.perf_counter()
            verify(self.graph, "built")
            stages.note("graph", self.text, started)
            self.graph = cast(Graph, stages.run(_sampling_passes(), self.graph, str, fuel))
            verify(self.graph, "tabled")
        return self

    def key(self, device: str, quant: str) -> cache.Key:
        """What the plan depends on, up to its tables. The source is folded."""
        from scoregraph.passes.sampling.structure import structure

        text = structure(self.graph) if self.graph is not None else self.text
        return cache.Key(self.name, cache.digest(text), device, quant, cache.compiler())

    def times(self) -> str:
        """A digest of when the networks of the graph are called: what tabulated values depend on."""
        from scoregraph.passes.plan.replace_tables import times

        return cache.digest(times(self.graph)) if self.graph is not None else "none"

    def retable(self, plan: Plan, constants: files.Bytes) -> tuple[Plan, files.Bytes]:
        """A plan of the same structure with this graph's tables."""
        from scoregraph.passes.plan.replace_tables import replace_tables

        assert self.graph is not None, "only a graph has tables"
        arrays = {constant.id: files.read_constant(constant, constants) for constant in plan.constants}
        plan, arrays = replace_tables(plan, arrays, self.graph)
        return files.lay_out(plan.model_copy(update={"graph": self.text}), arrays)

    def lower(self, device: str, stages: _Stages, fuel: Fuel, *, bank: bool = False) -> Draft:
        """Everything from the folded graph to a draft without memory."""
        from scoregraph.passes.lower.network import lower_network
        from scoregraph.passes.lower.sampling import lower_sampling

        if self.network is not None:
            programs = self._programs((self.network.ref,), stages, fuel)
            return lower_network(self.network.ref, programs, device)
        graph = self.graph
        assert graph is not None, "a source is a graph or a network"
        programs = self._programs(graph.nets, stages, fuel)
        stages.begin("lowering")
        started, before = time.perf_counter(), len(stages.data)
        draft = lower_sampling(graph, programs, device, bank=bank)
        captures = sum(stage.ms for stage in stages.data[before:])
        stages.note("lower", plan_text(draft.plan), started + captures / 1e3, draft.counters)
        return draft

    def _find(self, ref: NetRef) -> Network | EnergyNetwork:
        from scoregraph.models import find

        return self.networks.get(ref.fingerprint) or find(ref)

    def _programs(
        self, refs: Sequence[NetRef], stages: _Stages, fuel: Fuel
    ) -> Callable[[NetRef, str], GraphModule | None]:
        """Captures a part of a network and runs the tensor passes over it when lowering first asks for it."""
        from scoregraph.models.energies import EnergyNetwork
        from scoregraph.passes.tensor import pipeline
        from scoregraph.passes.tensor.listing import listing

        networks = {ref.fingerprint: self._find(ref) for ref in refs}
        energies = {net.ref.name: net for net in networks.values() if isinstance(net, EnergyNetwork)}
        parts: dict[tuple[str, str], GraphModule | None] = {}

        def fused(ref: NetRef, part: str) -> GraphModule | None:
            started = time.perf_counter()
            name = f"{ref.name}.{part}"
            stages.begin(f"capturing {name}")
            program = networks[ref.fingerprint].capture_part(part, energies)
            if program is None:
                return None
            stages.note(f"capture {name}", f"{program.report}\n\n{listing(program.module)}", started)
            stages.begin(f"fusing {name}")
            module, reports = pipeline.run(program.module, fuel=fuel)
            stages.keep(reports, prefix=f"{name}: ")
            return module

        def programs(ref: NetRef, part: str) -> GraphModule | None:
            key = (ref.fingerprint, part)
            if key not in parts:
                parts[key] = fused(ref, part)
            return parts[key]

        return programs


def _sampling_passes() -> list[Pass[Graph]]:
    from scoregraph.passes.sampling.pipeline import SAMPLING_PASSES

    return list(SAMPLING_PASSES)


def _call_passes(backend: Backend) -> list[Pass[Draft]]:
    from scoregraph.passes.plan.pipeline import call_passes
    from scoregraph.plan.schema import Call

    reads_rows = backend.supports(Call(op="select_row")) is None
    return call_passes(_evaluate if reads_rows else None)


def _evaluate(draft: Draft, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The outputs of a draft in float64, one sample for each row of its inputs."""
    from scoregraph.backends.reference import Reference

    plan, constants = files.lay_out(draft.plan, draft.arrays)
    samples = np.zeros(max((len(value) for value in inputs.values()), default=1), np.uint64)
    return Reference("float64").compile(plan, constants).run(inputs, samples)


def _last_passes(device: str) -> list[Pass[Draft]]:
    from scoregraph.passes.plan.pipeline import memory_passes, product_passes

    return [*product_passes(device), *memory_passes(device)]


def _serves_other_tables(plan: Plan) -> bool:
    from scoregraph.passes.plan.replace_tables import serves_other_tables

    return serves_other_tables(plan)


def _listing(draft: Draft) -> str:
    return plan_text(draft.plan)
