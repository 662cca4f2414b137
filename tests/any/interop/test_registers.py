"""Registers by liveness: a machine of few registers does what the probed steps say."""

import numpy as np
import pytest

from scoregraph.interop.driving import Call
from scoregraph.interop.probing import ProbedStep, identifier
from scoregraph.interop.randomness import BrownianPath, InjectedNormals, OtherRandomnessError
from scoregraph.interop.registers import allocate


def step(i: int, x: dict, **kept: dict) -> ProbedStep:
    return ProbedStep(Call(i, i, float(i)), 1.0, x, kept, None)


def run(steps: list[ProbedStep], start: float, m: list[float], z: list[dict[str, float]]) -> list[float]:
    """The steps by name, as a scheduler would keep its tensors."""
    held, states = {"x": start}, []
    for s, answer, normals in zip(steps, m, z, strict=True):
        inputs = {**held, "m": answer, **normals}
        held = {
            name: sum(share * inputs[k] for k, share in vector.items()) for name, vector in {**s.kept, "x": s.x}.items()
        }
        states.append(held["x"])
    return states


def run_machine(steps: list[ProbedStep], start: float, m: list[float], z: list[dict[str, float]]) -> list[float]:
    machine = allocate(steps)
    held, states = np.zeros(len(machine.registers)), {}
    held[0] = start
    for row in machine.rows:
        noise = z[row.step][f"z{row.draw}"] if row.c.any() else 0.0
        held = row.a @ held + row.b[:, 0] * (m[row.step] if row.network else 0.0) + row.c * noise
        states[row.step] = held[0]
    return [states[i] for i in range(len(steps))]


@pytest.mark.parametrize("seed", range(20))
def test_random_schedulers(seed: int):
    """Tensors are made, moved, copied, forgotten and read, at random."""
    rng = np.random.default_rng(seed)
    steps, known = [], []
    for i in range(8):
        names = ["x", "m", "z0", "z1", *known]

        def vector(names: list[str] = names) -> dict[str, float]:
            chosen = rng.choice(names, size=rng.integers(1, len(names) + 1), replace=False)
            return {str(name): float(rng.normal()) for name in chosen}

        kept: dict[str, dict[str, float]] = {}
        for name in ("a", "b", "c", "d"):
            kind = rng.integers(4)
            if kind == 0:
                kept[name] = vector()
            elif kind == 1:
                kept[name] = {"x": 1.0}
            elif kind == 2 and known:
                kept[name] = {str(rng.choice(known)): 1.0}
        steps.append(step(i, vector(), **kept))
        known = sorted(kept)
    m = rng.normal(size=8).tolist()
    z = [{"z0": float(rng.normal()), "z1": float(rng.normal())} for _ in steps]
    assert run_machine(steps, 0.7, m, z) == pytest.approx(run(steps, 0.7, m, z), rel=1e-9)


def test_a_moved_tensor_stays_where_it_is():
    """Two model outputs, shifted every step: one register besides the state, never copied."""
    steps = [
        step(0, {"x": 0.5, "m": 0.5}, outputs_1={"m": 1.0}),
        *(
            step(i, {"x": 0.5, "m": 0.5, "outputs_1": 0.1}, outputs_0={"outputs_1": 1.0}, outputs_1={"m": 1.0})
            for i in range(1, 6)
        ),
    ]
    machine = allocate(steps)
    assert machine.registers == ("x", "outputs_1")
    assert all(row.a[1, 0] == 0.0 for row in machine.rows)


def test_what_nothing_reads_is_dropped():
    steps = [step(i, {"x": 0.9, "m": 0.1}, **{f"ets_{k}": {"m": 1.0} for k in range(i + 1)}) for i in range(5)]
    assert allocate(steps).registers == ("x",)


def test_a_second_normal_is_a_row_of_its_own():
    machine = allocate([step(0, {"x": 1.0, "m": 0.5, "z0": 0.1, "z1": 0.2})])
    assert [(row.network, row.draw) for row in machine.rows] == [(True, 0), (False, 1)]


def test_only_the_normals_that_are_used_count():
    (row,) = allocate([step(0, {"x": 1.0, "m": 0.5, "z1": 0.2})]).rows
    assert (row.network, row.draw, row.c[0]) == (True, 1, 0.2)


def test_paths_are_names():
    assert identifier("model_outputs[1]") == "model_outputs_1"
    assert identifier("noise_sampler.increment") == "noise_sampler_increment"


def test_a_brownian_path_adds_up():
    """(W_u - W_s) and (W_t - W_s) share the path up to u; variances are the lengths."""
    torch = pytest.importorskip("torch")
    path, generator, randn = BrownianPath(), torch.Generator().manual_seed(0), torch.randn
    path.shape = torch.Size([200_000])
    with InjectedNormals(lambda size: randn(size, generator=generator, dtype=torch.float64)):
        half, whole = path(4.0, 3.0), path(4.0, 1.0) * 3.0**0.5
        after = path(1.0, 0.5)
    assert float(half.std()) == pytest.approx(1.0, abs=0.01)
    assert float(whole.var()) == pytest.approx(3.0, rel=0.02)
    assert float((half * whole).mean()) == pytest.approx(1.0, abs=0.02)
    assert float((after * whole).mean()) == pytest.approx(0.0, abs=0.02)


def test_a_bridge_and_other_randomness_are_refused():
    torch = pytest.importorskip("torch")
    path = BrownianPath()
    path.shape = torch.Size([3])
    with InjectedNormals(torch.zeros):
        path(4.0, 1.0)
        with pytest.raises(OtherRandomnessError):
            path(4.0, 3.0)
        with pytest.raises(OtherRandomnessError):
            torch.rand(3)
