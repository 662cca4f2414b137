"""What native tests share: a plan cache of their own, and the terrain network, captured once however often compiled."""

from __future__ import annotations

import importlib.util

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCOREGRAPH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def terrain():
    """The terrain network, whose capture takes most of a minute on a slow machine."""
    if importlib.util.find_spec("terrain_diffusion") is None:
        pytest.skip("adaptive-terrain-diffusion is not installed")
    pytest.importorskip("onnx")
    from subjects import captured_once

    from scoregraph import models

    return captured_once(models.load("terrain"))


@pytest.fixture(scope="session")
def terrain_plan(terrain):
    """One evaluation of the terrain network: inputs ``x``, ``t``, ``difficulty``; output ``m``."""
    import scoregraph as sg

    return sg.compile(terrain, device="cpu", use_cache=False)


@pytest.fixture(scope="session")
def terrain_sampling(terrain):
    """The graph and plan of two guided jumps of the terrain network, and its head; ``cond0`` is the difficulty."""
    from subjects import sampling

    import scoregraph as sg

    schedule = sg.schedules.karras(steps=2, sigma_min=30.0, sigma_max=80.0)
    g = sampling(terrain, schedule, sg.samplers.consistency(), sg.guidance.cfg(1.5))
    return g.build(), sg.compile(g, device="cpu", use_cache=False)
