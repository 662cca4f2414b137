"""Every sampler on every kind of schedule, few steps included: a table of finite numbers, or a mistake that is named.

Libraries answer nan to some of these: a last noise level that is repeated, no signal at the first point, an ancestral
step from much noise to little, a single step.
"""

import numpy as np
import pytest

from scoregraph.errors import ScoregraphError
from scoregraph.graph import prediction, samplers, schedules
from scoregraph.graph.samplers import Sampler
from scoregraph.graph.schedules import Schedule
from scoregraph.graph.spec import Spec

MADE = [getattr(samplers, name) for name in sorted(set(samplers.__all__) - {"Sampler", "tabulated"})]
FURTHER = [
    samplers.euler(s_churn=5.0),
    samplers.euler(s_churn=5.0, order="after"),
    samplers.heun(s_churn=1e9, s_tmin=0.1, s_tmax=50.0),
    samplers.euler_ancestral(1.7),
    samplers.reverse_sde("sub_vp", corrections=1),
    samplers.reverse_sde("ve", noise=0.3),
]


def every_schedule(n: int) -> list[Schedule]:
    return [
        schedules.linear(steps=n),
        schedules.linear(steps=n, final="sigma_min"),  # the last level twice: a step of no length
        schedules.linear(steps=n, spacing="trailing", zero_snr=True),
        schedules.scaled_linear(steps=n, sigmas="karras", final="sigma_min"),
        schedules.scaled_linear(steps=n, spacing="distilled", offset=0),
        schedules.cosine(steps=n, spacing="linspace"),
        schedules.laplace(steps=n),
        schedules.karras(steps=n),
        schedules.karras(steps=n, final="sigma_min"),
        schedules.vp_sde(steps=n),
        schedules.trigflow(steps=n),
        schedules.flow(steps=n, shift=3.0, terminal=0.1),
        schedules.custom(sigmas=tuple(np.linspace(0.99, 0.3, n + 1)), space="flow"),
    ]


@pytest.mark.parametrize("sampler", [*(make() for make in MADE if not make.adaptive), *FURTHER], ids=str)
def test_finite_or_refused(sampler: Sampler):
    assert Spec.parse("sampler", str(sampler)) == sampler
    reasons: list[str] = []
    made = 0
    for n in (1, 2, 3, 4, 14):
        for schedule in every_schedule(n):
            for pred in (prediction.eps(), prediction.v()):
                time = "timestep" if schedule.grid().timesteps is not None else "flow"
                try:
                    table = sampler.table(schedule, pred, time, "vp")  # whose numbers are finite, else it is refused
                except ScoregraphError as mistake:
                    reasons.append(mistake.code)
                    continue
                assert sum(table.values("calls")) >= n
                assert np.abs(np.array(table.rows)).max() < 1e7
                made += 1
    # eps at alpha = 0, steps in kappa from alpha = 0, and samplers by timesteps where there are none: nothing else.
    assert set(reasons) <= {"SG204", "SG205", "SG206"}
    assert made >= 5 * 12
