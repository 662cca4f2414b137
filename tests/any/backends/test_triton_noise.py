import re

import numpy as np
import pytest
from triton_plans import Sketch

from scoregraph.graph import noise
from scoregraph.plan.dims import Batch

pytest.importorskip("triton")


def noise_plan(n: int, site: int = 3, micro: int = 5, scale: float = 1.0) -> Sketch:
    sketch = Sketch()
    sketch.begin("once")
    x = sketch.new((Batch(1), n))
    sketch.call("noise", {}, {"x": x}, {"site": site, "micro": micro, "scale": scale}, site="noise")
    sketch.output("x", x)
    return sketch


@pytest.mark.parametrize("n", [1, 3, 4, 1023, 4096, 5000])
def test_bits_are_those_of_the_definition(n: int) -> None:
    seeds = [0, 1, 2**31, 2**32 + 7, 2**63, 2**64 - 1]
    got = noise_plan(n).run(seeds)["x"]
    want = noise.normals(np.array(seeds, np.uint64), site=3, micro=5, count=n)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize(("site", "micro"), [(0, 0), (2**31 - 1, 1), (1, 2**31 - 1), (2**32 - 1, 2**32 - 1)])
def test_counters_use_all_32_bits(site: int, micro: int) -> None:
    got = noise_plan(64, site, micro).run([9])["x"]
    np.testing.assert_array_equal(got, noise.normals([9], site=site, micro=micro, count=64))


def test_scale_is_one_multiplication() -> None:
    got = noise_plan(256, scale=80.0).run([4])["x"]
    np.testing.assert_array_equal(got, np.float32(80.0) * noise.normals([4], site=3, micro=5, count=256))


def test_compiled_code_never_fuses_nor_approximates() -> None:
    """The PTX has only the rounded operations that the definition names, so a card reaches the same bits."""
    (part,) = noise_plan(4096).program().launches(batch=1).parts
    ((launch,),) = part.rows
    ptx = launch.compile(90)["ptx"]
    operations = set(re.findall(r"^\s+((?:\w+\.)*f32)\s", ptx, re.MULTILINE))
    floats = {
        op for op in operations if op.split(".")[0] in {"add", "sub", "mul", "fma", "mad", "div", "sqrt", "lg2", "rcp"}
    }
    assert floats == {"add.rn.f32", "sub.rn.f32", "mul.rn.f32", "sqrt.rn.f32"}
    assert not re.search(r"approx|ftz|\bfma\b|__nv_", ptx)
