"""Our samplers are the library's: measured on a subset of docs/sampler-accuracy.md, and as tables, by probing.

A hand-written table and a probed one are compared as what they do: the states that the network is shown, and the last
one, as combinations of the start, the answers and the normals. Registers and spaces do not matter then.
"""

import numpy as np
import pytest
from against_diffusers import compare
from catalogue import PAIRS, SD, Cell, cells, precise
from library_limits import LIMITS, Limit
from scheduler_zoo import Case

from scoregraph.graph import prediction, samplers, schedules
from scoregraph.graph.table import StepTable
from scoregraph.interop.importer import from_diffusers

pytestmark = [
    # diffusers converts tensors to arrays in ways that numpy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

CELLS = [
    max(cells((4 if 4 in pair.counts else 14,), [pair]), key=lambda cell: (cell.kind, cell.spacing)) for pair in PAIRS
]
"""One of every pair, with few steps; v networks and trailing spacing where there is a choice."""


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_open_and_closed_loop(cell: Cell):
    scheduler = precise(cell.make())
    schedule, _ = cell.schedule(cell.make())
    errors = compare(
        scheduler,
        cell.pair.sampler,
        schedule,
        cell.prediction,
        space=cell.space,
        carried=cell.pair.carried,
        arguments=cell.pair.arguments,
    )
    assert errors.open_loop <= 1e-6
    assert errors.closed_loop <= 1e-5


def responses(table: StepTable) -> np.ndarray:
    """What the network is shown in every call, and the result: float64 [calls + 1, 1 + calls + normals].

    The columns are the shares of the first thing shown, of the answers, and of the normals.
    """
    calls = [i for i, call in enumerate(table.values("calls")) if call]
    # Where there is no noise diffusers' DDPM has the variance 1e-20, and its CM the rounding of k_min^2 - k_min^2.
    drawing = [i for i in range(len(table.rows)) if np.abs(table.matrices(i)[2]).max() > 1e-6]
    held = np.zeros((len(table.registers), 1 + len(calls) + len(drawing)))
    held[0, 0] = 1.0 / table.values("c_in")[calls[0]]
    shown = []
    for i in range(len(table.rows)):
        a, b, c = table.matrices(i)
        if i in calls:
            shown.append(table.values("c_in")[i] * held[0])
        held = a @ held
        if i in calls:
            held[:, 1 + calls.index(i)] += b[:, 0]
        if i in drawing:
            held[:, 1 + len(calls) + drawing.index(i)] += c
    return np.array([*shown, held[0]])


PROBED = [cell for cell in CELLS if not cell.pair.sampler.learns_variance]


@pytest.mark.parametrize("cell", PROBED, ids=str)
def test_the_table_written_by_hand_is_the_probed_one(cell: Cell):
    schedule, _ = cell.schedule(cell.make())
    hand = cell.pair.sampler.table(schedule, cell.prediction, "none", cell.space)
    imported = from_diffusers(precise(cell.make()), **cell.pair.arguments)
    probed = imported.sampler.table(imported.schedule, cell.prediction, "timestep", imported.sampler.carried)
    assert differ(hand, probed) <= 1e-6


def differ(hand: StepTable, probed: StepTable) -> float:
    """The largest difference of what two tables do, relative to the largest share."""
    ours, theirs = responses(hand), responses(probed)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


OTHERS = {
    "two halves on one Brownian path": (
        Case("DPMSolverSDEScheduler", SD, steps=6),
        samplers.dpmpp_sde(),
        schedules.scaled_linear(steps=6, spacing="linspace", rounding="none", precision="float32"),
        prediction.eps(),
    ),
    "consistency model": (
        Case("CMStochasticIterativeScheduler", {"num_train_timesteps": 6, "clip_denoised": False}, steps=6),
        samplers.consistency(),
        schedules.karras(steps=6),
        prediction.consistency(),
    ),
    "consistency on the circle": (
        Case("SCMScheduler", {"sigma_data": 1.0}, {"max_timesteps": 1.5, "intermediate_timesteps": 1.1}, 2),
        samplers.scm(),
        schedules.trigflow(steps=2, start=1.5, middle=1.1),
        prediction.trigflow(),
    ),
    "reverse diffusion of the VE equation": (
        Case("ScoreSdeVeScheduler", {"correct_steps": 0, "sigma_min": 0.01, "sigma_max": 50.0}, steps=6),
        samplers.reverse_sde("ve"),
        schedules.exponential(steps=6, sigma_min=0.01, sigma_max=50.0),
        prediction.score(),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_tables_written_by_hand(name: str):
    case, sampler, schedule, network = OTHERS[name]
    imported = from_diffusers(case.make(), case.steps, **case.arguments)
    space = "vp" if network.name == "eps" else imported.sampler.carried
    hand = sampler.table(schedule, network, "none", space)
    probed = imported.sampler.table(imported.schedule, network, "timestep", space)
    assert differ(hand, probed) <= 2e-6


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.case)
def test_where_the_library_fails_ours_is_sound(limit: Limit):
    outcome = limit.outcome()
    assert outcome.theirs.startswith(limit.expected)
    assert outcome.ours_is_sound
