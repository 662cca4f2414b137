"""A census: every class of error is raised by what a user would do, alone, with its code and its cure."""

from __future__ import annotations

import importlib.util
import inspect
import string
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scoregraph import errors
from scoregraph.errors import ScoregraphError, all_errors

pytest.importorskip("torch")

import quantized_networks
import torch
import toys
from torch import nn

import scoregraph as sg
from scoregraph import cli, models
from scoregraph.graph import caches, guidance, prediction, samplers, schedules, select
from scoregraph.graph import nodes as n
from scoregraph.graph.builder import GraphBuilder
from scoregraph.graph.graph import Graph
from scoregraph.graph.json_form import from_json
from scoregraph.graph.spec import Spec
from scoregraph.graph.table import StepTable
from scoregraph.graph.values import CondInput, Latent, NetRef, Tokens
from scoregraph.graph.verify import verify
from scoregraph.models.capture import capture
from scoregraph.plan import files
from scoregraph.plan.dims import Batch
from scoregraph.plan.draft import Drafter
from scoregraph.plan.schema import OutputSpec, Repeat
from scoregraph.runtime import CompiledPlan

NATIVE = importlib.util.find_spec("scoregraph._native") is not None
EPS = NetRef("eps", "0", Latent("vp", (3,)), prediction.eps())
KARRAS, LINEAR = schedules.karras(steps=3), schedules.linear(steps=3)
WRITER = NetRef("writer", "1", Tokens(4, 9), time="none")
PICKY = NetRef("picky", "2", Latent("vp", (3,)), prediction.eps(), conds=(CondInput("text"),))


def in_loop(body: Callable, net: NetRef = EPS, schedule: Spec = LINEAR) -> Callable[[], object]:
    """``body(g, step, pred)`` inside a loop over ``net``."""

    def mistake() -> None:
        g = GraphBuilder()
        with g.loop(schedule, g.noise(net)) as step:
            body(g, step, g.score(net, step, g.condition(net, None)))

    return mistake


def imported_elsewhere() -> None:
    row = (0.0, 1.0, 0.5, 0.5, 0.0, 0.0, 0.6, 0.8, 1.0, 0.0, 1.0)  # t, c_in, A, B, C, and where the step stands
    samplers.tabulated(names=("x",), rows=(row,)).table(KARRAS, prediction.eps(), "timestep", "vp")


def advanced() -> tuple[GraphBuilder, object]:
    g = GraphBuilder()
    with g.loop(LINEAR, g.noise(EPS)) as step:
        step.advance(samplers.ddim(), g.score(EPS, step))
    return g, step


def captured(function: Callable, *examples: object) -> Callable[[], object]:
    class Module(nn.Module):
        def forward(self, *inputs):
            return function(*inputs)

    return lambda: capture(Module(), examples or (torch.randn(2, 4),))


class Drifting(nn.Module):
    """Another function after its second call."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x if self.calls <= 2 else 2.0 * x


class Counting(nn.Module):
    """Writes a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return 2.0 * x


class Denoiser(nn.Module):
    """Answers ``out`` channels to a state x [n, 4]."""

    def __init__(self, out: int = 4):
        super().__init__()
        self.layer = nn.Linear(4, out)

    def forward(self, x, t):
        return self.layer(x)


class Running(nn.Module):
    """Uses an operator that no kernel computes."""

    def forward(self, x, t):
        return torch.cumsum(x, dim=1)


class Custom(guidance.Guidance):
    """A rule of the user's own, with an array as its option."""

    name = "custom-in-the-census"

    def options(self):
        return {"weights": np.ones(2)}


EXAMPLES = {"x": torch.randn(2, 4), "t": torch.rand(2)}


def other_prediction() -> None:
    g = GraphBuilder()
    x0 = NetRef("x0", "3", EPS.latent, prediction.x0())
    with g.loop(LINEAR, g.noise(EPS)) as step:
        g.fuse(guidance.cfg(2.0), g.score(EPS, step), g.score(x0, step))


def another_builder() -> None:
    g = GraphBuilder()
    with g.loop(LINEAR, g.noise(EPS)) as step:
        GraphBuilder().score(EPS, step)


def unused() -> None:
    g, step = advanced()
    g.output(x=step.result)
    g.input("forgotten", EPS.latent)
    g.build()


def open_loop() -> None:
    g = GraphBuilder()
    with g.loop(LINEAR, g.noise(EPS)) as step:
        _ = step.result


def no_step() -> None:
    g = GraphBuilder()
    with g.loop(LINEAR, g.noise(EPS)):
        pass


def of_another_shape() -> None:
    g = GraphBuilder()
    with g.loop(LINEAR, g.noise(Latent("vp", (5,)))) as step:
        g.score(EPS, step)


def of_another_space() -> None:
    g = GraphBuilder()
    with g.loop(LINEAR, g.noise(Latent("kappa", (3,)))) as step:
        g.score(EPS, step)


def tokens_to_a_sampler() -> None:
    g = GraphBuilder()
    with g.while_(5, g.input("tokens", WRITER.latent)) as step:
        step.advance(samplers.ddim(), g.score(WRITER, step))


def infinite() -> None:
    net = NetRef("v", "4", Latent("vp", (3,)), prediction.v(), "sigma")
    g = GraphBuilder()
    with g.loop(schedules.linear(steps=3, zero_snr=True, spacing="trailing"), g.noise(net)) as step:
        step.advance(samplers.ddim(), g.score(net, step))


class Learned(samplers.Sampler):
    """A sampler that reads a learned variance."""

    name = "learned_in_the_census"
    learns_variance = True


def zero_alpha() -> None:
    in_loop(lambda g, step, p: step.advance(samplers.ddim(), p), EPS, schedules.linear(3, "trailing", zero_snr=True))()


def unknown_weights() -> None:
    g = GraphBuilder()
    with g.loop(LINEAR, g.noise(EPS)) as step:
        step.advance(samplers.ddim(), g.score(EPS, step))
    g.output(x=step.result)
    sg.compile(g.build(), device="reference", use_cache=False)


def unknown_denoiser() -> None:
    models.from_diffusers(torch.nn.Linear(2, 2))


def no_pipeline_folder() -> None:
    models.from_pretrained(Path(__file__).parent / "no such folder")


def no_package() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        models.load("terrain")


def other_weights() -> None:
    from scoregraph.models import terrain
    from scoregraph.models.adm import ADMConfig, ADMUNet

    pytest.importorskip("onnx")
    try:
        file = terrain.weights_file()
    except errors.MissingPackage:
        pytest.skip("the terrain weights are not installed")
    terrain.load_weights(ADMUNet(ADMConfig(1, 1, 32, (1, 1), 1, (1,), 32, 1)), file)


def one_node(operator: str):
    parser = pytest.importorskip("onnx.parser")
    head = 'ir_version: 10, opset_import: ["" : 18]'
    return parser.parse_model(f"<{head}> one (float[B, 4, 4] x) => (float[B, 4, 4] y) {{ y = {operator}(x) }}")


def other_numbers() -> None:
    """An importer whose sine is a cosine."""
    from scoregraph.models.onnx import elementwise
    from scoregraph.models.onnx.graph import OPERATORS

    pytest.importorskip("onnxruntime")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPERATORS, "Sin", elementwise.Cos)
        models.onnx_module(one_node("Sin"))


def uncovered_operator() -> None:
    network = models.from_module(Running(), EXAMPLES, prediction="eps")
    sg.compile(network, device="reference", use_cache=False)


def uncovered_node() -> None:
    g = GraphBuilder()
    net = toys.network()
    with g.loop(LINEAR, g.noise(net)) as step:
        pred = g.score(net, step, g.condition(net, None))
        step.advance(samplers.ddim(), g.cache(caches.every(2), pred))
    g.output(x=step.result)
    sg.compile(g, device="reference", use_cache=False)


def uncovered_call() -> None:
    from scoregraph.backends import reference

    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(reference.program.OPS, "sampler_step")
        sg.compile(toys.guided(), device="reference", use_cache=False)


def fuel() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCOREGRAPH_FUEL", "-1")
        sg.compile(toys.guided(), device="reference")


def run_plan(**given) -> Callable[[], object]:
    return lambda: sg.compile(toys.guided(), device="reference").run(**given)


class Set:
    """A cancel flag that is set."""

    def is_set(self) -> bool:
        return True


def saved(change: Callable[[Path], object]) -> Callable[[Path], object]:
    def mistake(folder: Path) -> None:
        sg.compile(toys.guided(), device="reference").save(folder / "plan")
        change(folder / "plan")
        sg.load(folder / "plan")

    return mistake


def rewritten(name: str, old: bytes, new: bytes) -> Callable[[Path], object]:
    return saved(lambda plan: (plan / name).write_bytes((plan / name).read_bytes().replace(old, new)))


def cannot_write(folder: Path) -> None:
    (folder / "file").write_text("")
    sg.compile(toys.guided(), device="reference").save(folder / "file" / "plan")


def row_too_far() -> None:
    class Labels(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(7, 4)

        def forward(self, x, t, label):
            return x + self.table(label)

    net = models.from_module(Labels(), {**EXAMPLES, "label": torch.tensor([1, 2])}, prediction="eps")
    plan = sg.compile(net, device="reference", use_cache=False)
    plan.run(x=np.zeros((1, 4)), t=np.zeros(1), label=[9])


def native(mistake: Callable[[], object]) -> Callable[[], object]:
    return mistake if NATIVE else lambda: pytest.skip("the compiled extension is not built")


def on_the_processor(**options):
    return sg.compile(toys.guided(), device="cpu", use_cache=False, **options)


def no_extension() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("scoregraph._native", raising=False)
        patch.setitem(sys.modules, "scoregraph._native", None)
        on_the_processor()


def fault() -> None:
    """The extension reports what it did not expect under a code of its own."""
    from scoregraph import _native
    from scoregraph.backends.cpu.backend import CpuProgram

    plan = on_the_processor()

    class Broken:
        def run(self, *_):
            raise _native.NativeError("fault", "steps", "a worker stopped", "", ())

    program = CpuProgram(plan.plan, Broken())
    program.run({"tilt": np.zeros((1, 4), np.float32)}, np.zeros(1, np.uint64))


def never_done() -> None:
    """A loop whose condition nothing in it changes."""
    draft = Drafter("endless", "reference")
    draft.begin("once")
    active, x = draft.new((Batch(), 1)), draft.new((Batch(), 4))
    draft.call("fill", {}, {"x": active}, {"value": 1.0})
    draft.call("fill", {}, {"x": x}, {"value": 0.0})
    draft.begin("adaptive", repeat=Repeat(active=int(active.storage[1:]), limit=5))
    draft.call("fill", {}, {"x": x}, {"value": 2.0})
    draft.outputs.append(OutputSpec(name="x", buffer=int(x.storage[1:])))
    made = draft.build()
    plan, constants = files.lay_out(made.plan, made.arrays)
    CompiledPlan(plan, constants, {}).run(batch=2)


def no_matplotlib(folder: Path) -> None:
    from scoregraph.render import hillshade

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        hillshade(np.zeros((1, 4, 4)), folder / "x.png", "flat")


MISTAKES: dict[str, Callable] = {
    "SG101": lambda: models.load("terain"),
    "SG102": other_prediction,
    "SG103": in_loop(lambda g, step, pred: g.fuse(guidance.cfg(2.0), pred)),
    "SG104": in_loop(lambda g, step, pred: g.fuse(7.5, pred, pred)),
    "SG105": lambda: GraphBuilder().output(x=3.0),
    "SG106": tokens_to_a_sampler,
    "SG107": in_loop(lambda g, step, pred: step.advance(select.everything(mask=0), pred)),
    "SG108": of_another_space,
    "SG109": of_another_shape,
    "SG110": lambda: GraphBuilder().condition(PICKY),
    "SG111": lambda: GraphBuilder().condition(PICKY, None),
    "SG112": lambda: (g := GraphBuilder()).loop(LINEAR, g.input("x")),
    "SG113": unused,
    "SG114": no_step,
    "SG115": in_loop(lambda g, step, p: (step.advance(samplers.ddim(), p), step.advance(samplers.ddim(), p))),
    "SG116": lambda: (made := advanced())[0].score(EPS, made[1]),
    "SG117": open_loop,
    "SG118": lambda: (g := GraphBuilder(), g.input("x"), g.input("x")),
    "SG119": lambda: GraphBuilder().build(),
    "SG120": in_loop(lambda g, step, pred: step.advance(KARRAS, pred)),
    "SG121": lambda: (g := GraphBuilder(), g.noise(EPS), g.noise(NetRef("eps", "9", EPS.latent, prediction.eps()))),
    "SG122": lambda: (g := GraphBuilder()).decode(EPS, g.input("x", EPS.latent)),
    "SG123": lambda: GraphBuilder().noise(nn.Linear(3, 3)),
    "SG124": lambda: verify(Graph("empty", ())),
    "SG125": lambda: sg.parse("graph broken\n\n%0 = nonsense(\n"),
    "SG126": lambda: from_json('{"format": "something"}'),
    "SG127": lambda: n.FusedScore(Custom(), ()),
    "SG128": lambda: NetRef("blank", "0", Latent("vp", (3,))),
    "SG129": another_builder,
    "SG130": lambda: sg.GraphBuilder("g").input("seed"),
    "SG131": in_loop(lambda g, step, pred: step.advance(Learned(), pred)),
    "SG132": in_loop(lambda g, step, pred: step.log_prob),
    "SG133": in_loop(lambda g, step, pred: g.log_prob(step.advance(samplers.ddim(), pred))),
    "SG201": lambda: schedules.karras(steps=0),
    "SG202": lambda: schedules.karras(3, 80.0, 0.002),
    "SG203": lambda: schedules.linear(steps=2000).grid(),
    "SG204": zero_alpha,
    "SG205": infinite,
    "SG206": in_loop(lambda g, step, pred: None, EPS, KARRAS),
    "SG207": lambda: samplers.ddim().table(LINEAR, prediction.eps(), "timestep", "vp").fold_guidance([(2.0,)] * 3),
    "SG208": lambda: StepTable(("t",), ((1.0,),), ("x",)),
    "SG209": lambda: sg.samplers.from_diffusers(object()),
    "SG210": imported_elsewhere,
    "SG211": lambda: samplers.tcd().check(schedules.ascend(LINEAR), prediction.eps()),
    "SG301": no_package,
    "SG302": other_weights,
    "SG303": captured(lambda x: x + torch.from_numpy(x.detach().numpy() * 0)),
    "SG304": captured(lambda x: x if (x > 0).all() else 2.0 * x, torch.tensor([[1.0, -1.0], [-1.0, 1.0]])),
    "SG305": captured(lambda x: x if x.shape[0] < 64 else 2.0 * x),
    "SG306": lambda: capture(Drifting(), (torch.randn(2, 4),)),
    "SG307": captured(lambda x: x - x.mean(dim=0)),
    "SG308": lambda: capture(Counting(), (torch.randn(2, 4),)),
    "SG309": captured(lambda x: x, 3),
    "SG310": lambda: models.from_module(Denoiser(), EXAMPLES, x="image", prediction="eps"),
    "SG311": lambda: models.from_module(Denoiser(out=3), EXAMPLES, prediction="eps"),
    "SG312": lambda: models.energy(Running(), (torch.randn(2, 4), torch.rand(2)), time="flow"),
    "SG320": unknown_weights,
    "SG321": lambda folder: models.onnx_module(folder / "none.onnx"),
    "SG322": lambda: models.onnx_module(one_node("Det")),
    "SG324": unknown_denoiser,
    "SG325": no_pipeline_folder,
    "SG323": other_numbers,
    "SG401": uncovered_operator,
    "SG402": uncovered_node,
    "SG403": uncovered_call,
    "SG410": fuel,
    "SG411": lambda: sg.compile(toys.guided(), device="reference", quant="w4a8:block=33"),
    "SG412": lambda: sg.compile(toys.guided(), device="reference", quant="w8a8", use_cache=False),
    "SG413": lambda: sg.compile(
        quantized_networks.network("tokens"), device="reference", quant="w8a8:groups=1", use_cache=False
    ),
    "SG501": lambda folder: sg.load(folder),
    "SG502": rewritten("plan.json", b"sampler_step", b"sampler_stop"),
    "SG503": rewritten("plan.json", b'"version": 3', b'"version": 4'),
    "SG504": cannot_write,
    "SG601": run_plan(),
    "SG602": run_plan(tilt=float("nan")),
    "SG603": run_plan(tilt=0, batch=0),
    "SG604": run_plan(tilt=0, cancel=Set()),
    "SG605": row_too_far,
    "SG606": native(lambda: on_the_processor().program.memory(2**40)),
    "SG607": native(lambda: on_the_processor(threads=10**6).run(tilt=0)),
    "SG608": no_extension,
    "SG609": native(fault),
    "SG610": never_done,
    "SG701": lambda folder: cli._graph(str(folder / "none.py")),
    "SG702": lambda: cli._settings(["tilt"]),
    "SG703": lambda: cli._check_ending(Path("x.jpg")),
    "SG704": no_matplotlib,
}


def test_every_error_has_a_mistake_and_every_mistake_an_error():
    assert MISTAKES.keys() == all_errors().keys()


@pytest.mark.parametrize("code", MISTAKES)
def test_a_mistake_raises_its_error(code, tmp_path):
    mistake = MISTAKES[code]
    with pytest.raises(ScoregraphError) as caught:
        mistake(*[tmp_path] * len(inspect.signature(mistake).parameters))
    error = caught.value
    assert type(error) is all_errors()[code]
    text = str(error)
    assert text.startswith(f"{code} {error.title}: ")
    assert "\n  help " in text
    assert not any(f"{{{name}" in text for name in error.values), "a template was not filled in"
    assert error.where is not None
    assert f"\n  at   {error.where}\n" in text


@pytest.mark.parametrize("code", all_errors())
def test_the_class_of_an_error_is_complete(code):
    error = all_errors()[code]
    for text in (error.title, error.message, error.cure, error.__doc__):
        assert text
        assert text.strip() == text or text is error.__doc__
    fields = {name for text in (error.message, error.cure) for _, name, _, _ in string.Formatter().parse(text) if name}
    assert all(name.isidentifier() for name in fields)
    assert not error.title.endswith(".")
    assert code.startswith("SG")
    assert len(code) == 5


def test_codes_are_given_once():
    """Two classes with one code would hide each other in ``all_errors``."""

    def below(cls):
        return [each for sub in cls.__subclasses__() for each in (sub, *below(sub))]

    classes = below(ScoregraphError)
    assert len(classes) == len(all_errors()), sorted(c.code for c in classes)
