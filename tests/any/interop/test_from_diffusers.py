"""Every scheduler class of diffusers becomes a table that replays it, or is refused with the setting at fault."""

import pytest
from scheduler_zoo import ACCEPTED, EXPORTED, REFUSED, Case

from scoregraph.errors import CannotImport
from scoregraph.interop.importer import TOLERANCE, from_diffusers


@pytest.mark.parametrize("case", ACCEPTED, ids=str)
def test_it_is_accepted_and_replays(case: Case):
    imported = from_diffusers(case.make(), case.steps, **case.arguments)
    assert imported.report.error <= TOLERANCE
    assert imported.report.calls >= case.steps - 1


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_it_is_refused_and_told_why(case: Case):
    with pytest.raises(CannotImport) as caught:
        from_diffusers(case.make(), case.steps, **case.arguments)
    assert case.refused in str(caught.value)


def test_every_exported_class_is_decided_here():
    decided = {case.scheduler for case in [*ACCEPTED, *REFUSED]}
    assert decided == set(EXPORTED)
    assert len({case.scheduler for case in ACCEPTED}) >= 26
    assert len({str(case) for case in ACCEPTED}) == len(ACCEPTED) >= 60
