"""Other steps, noise levels and guidance scales need new tables only: nothing is captured or lowered again."""

import numpy as np
import pytest

import scoregraph as sg
from scoregraph import cache, gallery
from scoregraph.models.network import Network


@pytest.fixture
def plans(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREGRAPH_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("steps", "scale"), [(5, 1.5), (20, 3.0), (33, -0.5)])
def test_a_cached_plan_serves_another_schedule(plans, monkeypatch, steps, scale):
    sg.compile(gallery.toy(steps=20, guidance_scale=1.5), device="reference")
    fresh = sg.compile(gallery.toy(steps=steps, guidance_scale=scale), device="reference", use_cache=False)

    def never(self, *part):
        raise AssertionError("the network was captured again")

    monkeypatch.setattr(Network, "capture_part", never)
    served = sg.compile(gallery.toy(steps=steps, guidance_scale=scale), device="reference")
    assert len(cache.entries()) == 1
    assert f"steps={steps}" in served.plan.graph
    assert served.plan.tables[0].rows == steps
    expected, got = fresh.run(tilt=0.5, seed=3), served.run(tilt=0.5, seed=3)
    np.testing.assert_array_equal(got["sample"], expected["sample"])


def test_another_structure_is_another_plan(plans):
    guided = sg.compile(gallery.toy(steps=4, guidance_scale=1.5), device="reference")
    alone = sg.compile(gallery.toy(steps=4, guidance_scale=1.0), device="reference")
    assert len(cache.entries()) == 2
    assert "2B" in str(guided.plan.buffers)
    assert "2B" not in str(alone.plan.buffers)
