"""An imported sampler as a spec of the graph: text and JSON, spaces, times, and where it may not be used."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import toys
from scheduler_zoo import scheduler_class

import scoregraph as sg
from scoregraph.errors import BadTable, ImportedElsewhere
from scoregraph.graph import prediction, schedules
from scoregraph.graph.json_form import from_json, to_json
from scoregraph.graph.noise import normals, sample_seeds
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.values import Latent, NetRef
from scoregraph.interop.importer import Imported, from_diffusers
from scoregraph.interop.probing import network
from scoregraph.interop.randomness import InjectedNormals
from scoregraph.models import toy

# diffusers converts tensors to arrays in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 9


@cache
def imported(name: str, steps: int = STEPS, **settings: object) -> Imported:
    return from_diffusers(scheduler_class(name)(**settings), steps)


def run(table, noise: np.ndarray) -> np.ndarray:
    """The table on a given start and no other noise, with the network of the importer, in float64."""
    held = [table.init_scale * noise, *(np.zeros_like(noise) for _ in table.registers[1:])]
    for i, (t, c_in) in enumerate(zip(table.values("t"), table.values("c_in"), strict=True)):
        a, b, _ = table.matrices(i)
        m = network(torch.from_numpy(c_in * held[0]), t).numpy()
        held = [sum(a[j, k] * r for k, r in enumerate(held)) + b[j, 0] * m for j in range(len(held))]
    return held[0]


def test_the_spec_prints_parses_and_is_the_same():
    sampler = imported("DPMSolverMultistepScheduler").sampler
    assert Sampler.parse("sampler", str(sampler)) == sampler


def test_a_graph_with_it_survives_text_and_json():
    found = imported("UniPCMultistepScheduler")
    net = NetRef("net", "0", Latent("vp", (1, 4, 4)), prediction.eps(), time="timestep")
    g = sg.GraphBuilder("imported")
    with g.loop(found.schedule, g.noise(net)) as step:
        step.advance(found.sampler, g.score(net, step))
    g.output(x=step.result)
    graph = g.build()
    assert sg.parse(str(graph)) is graph
    assert from_json(to_json(graph)) is graph


def test_a_table_that_is_none_is_refused():
    sampler = imported("DDPMWuerstchenScheduler").sampler
    with pytest.raises(BadTable):
        replace(sampler, names=("x", "y"))


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"])
def test_kappa_states_may_be_carried_as_vp(name: str):
    found = imported(name)
    options = (found.schedule, prediction.eps(), "timestep")
    as_it_is, as_vp = (found.sampler.table(*options, space) for space in ("kappa", "vp"))
    assert set(as_vp.values("c_in")) == {1.0}
    assert np.allclose(np.hypot(as_vp.values("alpha"), as_vp.values("sigma")), 1.0)
    noise = np.random.default_rng(0).standard_normal((2, 3, 5))
    expected, got = run(as_it_is, noise), run(as_vp, noise)
    assert np.abs(got - expected).max() < 1e-12 * np.abs(expected).max()


def test_times_of_other_conventions_follow_from_the_levels():
    found = imported("EulerDiscreteScheduler")
    own = found.sampler.table(found.schedule, prediction.eps(), "timestep", "kappa")
    told = found.sampler.table(found.schedule, prediction.eps(), "c_noise", "kappa")
    assert np.allclose(told.values("t"), 0.25 * np.log(own.values("sigma")))
    assert told.values("a0_0") == own.values("a0_0")


def test_flows_are_told_their_own_times():
    found = imported("FlowMatchEulerDiscreteScheduler")
    per_mille, unit = (
        found.sampler.table(found.schedule, prediction.flow(), time, "flow") for time in ("flow1000", "flow")
    )
    assert np.allclose(np.array(per_mille.values("t")) / 1000.0, unit.values("t"), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schedule": schedules.scaled_linear(steps=STEPS)}, "its own schedule of 9 steps"),
        ({"schedule": schedules.scaled_linear(steps=STEPS - 1)}, "its own schedule of 9 steps"),
        ({"prediction": prediction.v()}, "a network that predicts eps"),
        ({"space": "flow"}, "a latent in vp space"),
        ({"corrected": True}, "the plain answer of a network"),
        ({"split": True}, "the plain answer of a network"),
    ],
)
def test_elsewhere_it_is_refused(change: dict, said: str):
    found = imported("DPMSolverMultistepScheduler")
    options = {"schedule": found.schedule, "prediction": prediction.eps(), "time": "timestep", "space": "vp"}
    found.sampler.table(**options)
    with pytest.raises(ImportedElsewhere, match=said):
        found.sampler.table(**{**options, **change})


def test_registers_are_those_that_are_needed():
    assert imported("DDIMParallelScheduler", clip_sample=False).report.registers == ("x",)
    assert len(imported("DPMSolverMultistepScheduler").report.registers) == 2
    # It keeps all it has ever seen, and reads four.
    assert len(imported("IPNDMScheduler", 30).report.registers) == 4


def test_the_scheduler_itself_is_left_alone():
    scheduler = scheduler_class("DPMSolverMultistepScheduler")()
    scheduler.set_timesteps(5)
    before = {key: repr(value) for key, value in vars(scheduler).items()}
    from_diffusers(scheduler)
    from_diffusers(scheduler, 7)
    assert {key: repr(value) for key, value in vars(scheduler).items()} == before


def test_a_whole_loop_with_the_library_drawing_its_own_noise():
    """Beside the importer's own replay: the library runs untouched on a generator, ours on the normals it drew."""
    scheduler = scheduler_class("DPMSolverMultistepScheduler")(algorithm_type="sde-dpmsolver++")
    found = from_diffusers(scheduler, STEPS)
    scheduler.set_timesteps(STEPS)
    start = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    generator, drawn = torch.Generator().manual_seed(4), []
    randn = torch.randn

    def draw(size: torch.Size) -> torch.Tensor:
        drawn.append(randn(size, generator=generator, dtype=torch.float64))
        return drawn[-1]

    x = start
    for t in scheduler.timesteps:
        m = network(scheduler.scale_model_input(x, t), float(t))
        with InjectedNormals(draw):
            x = scheduler.step(m, t, x).prev_sample
    table = found.sampler.table(found.schedule, prediction.eps(), "timestep", "vp")
    held = [table.init_scale * start.numpy(), *(np.zeros(start.shape) for _ in table.registers[1:])]
    for i, t in enumerate(table.values("t")):
        a, b, c = table.matrices(i)
        m = network(torch.from_numpy(table.values("c_in")[i] * held[0]), t).numpy()
        z = drawn[i].numpy()
        held = [sum(a[j, k] * r for k, r in enumerate(held)) + b[j, 0] * m + c[j] * z for j in range(len(held))]
    assert np.abs(held[0] - x.numpy()).max() < 1e-5 * x.abs().max()


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "HeunDiscreteScheduler"])
def test_a_compiled_plan_walks_as_the_library_does(name: str):
    """From the scheduler to a plan of the reference backend, guided, against a loop as pipelines write it."""
    found = imported(name, 6)
    graph = toys.guided(sampler=found.sampler, schedule=found.schedule, name=f"imported {name}")
    plan = sg.compile(graph, device="reference", use_cache=False)
    tilt = np.linspace(-1.0, 1.0, 8, dtype=np.float32).reshape(2, 4)
    got = plan.run(tilt=tilt, seed=5)["sample"]

    score = toy.load().score
    scheduler = scheduler_class(name)()
    scheduler.set_timesteps(6)
    noise = np.stack([normals(seed, site=0, micro=0, count=toy.WIDTH) for seed in sample_seeds(5, 2)])
    x = torch.from_numpy(noise).double() * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        x_in, time = scheduler.scale_model_input(x, t).float(), torch.full((2,), float(t))
        cond, blank = score(x_in, time, torch.from_numpy(tilt)), score(x_in, time, torch.zeros(2, 4))
        x = scheduler.step((blank + 1.5 * (cond - blank)).double(), t, x).prev_sample.double()
    assert np.abs(got - x.numpy()).max() < 2e-5 * x.abs().max()
