"""What tests on any machine share: a plan cache of their own, and one compiled plan of the toy network."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCOREGRAPH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def toy_plan(_own_cache):
    """A guided sampling of the toy network for the reference backend; input ``tilt`` [B, 4] in -1..1."""
    pytest.importorskip("torch")
    import toys

    import scoregraph as sg

    return sg.compile(toys.guided(), device="reference", use_cache=False)


@pytest.fixture
def saved(toy_plan, tmp_path):
    """That plan, saved."""
    return toy_plan.save(tmp_path / "plan")
