"""Measure what lies between two network calls, against diffusers: ``python benchmarks/fused_step.py [--threads 2]``.

Guidance of two branches, the step of DPM-Solver++(2M) and the input of the next call, on one latent of 65,536 numbers
(4 x 128 x 128) in float32. On our side that is one call of the plan, timed by the executor in every row of the loop;
on the other side diffusers' ``DPMSolverMultistepScheduler.step`` with guidance in torch eager, as a pipeline writes it,
timed from the network's answer to the next input. Both evaluate the same tiny network in between, which is not timed,
and both must arrive at the same latent. The two take turns, with a pause before each so that the threads of the other
one sleep; what is compared are medians over all steps of all rounds.
"""

from __future__ import annotations

import json
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from rich.console import Console
from stamp import stamp
from torch import Tensor, nn

import scoregraph as sg
from scoregraph import _native
from scoregraph.backends.cpu import Cpu, CpuProgram
from scoregraph.graph import noise

SHAPE = (4, 128, 128)
STEPS, SCALE, SEED = 20, 5.0, 3
TILT = 0.8
PAUSE = 0.3
"""Seconds before a turn; the longest that a default OpenMP thread spins is 0.2."""

console = Console()
HERE = Path(__file__).parent


class Tilted(nn.Module):
    """A network that costs next to nothing: ``eps = 0.9 x + 0.05 tilt``, at any time."""

    def forward(self, x: Tensor, t: Tensor, tilt: Tensor) -> Tensor:
        """``x`` [n, 4, 128, 128], ``t`` [n], ``tilt`` [n] to the shape of x."""
        return 0.9 * x + (0.05 * tilt + 0.0 * t)[:, None, None, None]


def scheduler() -> DPMSolverMultistepScheduler:
    """Second order, midpoint, on the training schedule of Stable Diffusion."""
    return DPMSolverMultistepScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def ours(threads: int) -> CpuProgram:
    """The whole trajectory as one plan."""
    net = sg.models.from_module(
        Tilted().eval(),
        {"x": torch.randn(3, *SHAPE), "t": torch.tensor([900.0, 500.0, 10.0]), "tilt": torch.tensor([1.0, -1.0, 0.5])},
        prediction="eps",
        space="vp",
        time="t",
        conds={"tilt": {"low": -1, "high": 1, "null": 0}},
        name="tilted",
    )
    imported = sg.samplers.from_diffusers(scheduler(), STEPS)
    g = sg.GraphBuilder("fused-step")
    with_tilt, without = g.condition(net, g.input("tilt")), g.condition(net, None)
    with g.loop(imported.schedule, g.noise(net)) as step:
        guided = g.fuse(sg.guidance.cfg(SCALE), g.score(net, step, with_tilt), g.score(net, step, without))
        step.advance(imported.sampler, guided)
    g.output(x=step.result)
    compiled = sg.compile(g, device="cpu", use_cache=False)
    program = Cpu(threads).compile(compiled.plan, compiled._constants)
    program.native.set_timing(True)
    return program


def our_turn(program: CpuProgram) -> tuple[list[float], np.ndarray]:
    """Microseconds of every step that has a next one, and the latent."""
    x = program.run({"tilt": np.array([TILT], np.float32)}, np.array([SEED], np.uint64))["x"]
    found: list[float] = []
    for segment, call, row, nanoseconds in program.native.timings():
        if program.plan.segments[segment].calls[call].op == "sampler_step" and row < STEPS - 1:
            found.append(nanoseconds / 1000)
    return found, x


@torch.no_grad()
def their_turn(initial: Tensor) -> tuple[list[float], np.ndarray]:
    """As ``our_turn``, as the loop of a diffusers pipeline."""
    net, steps = Tilted(), scheduler()
    steps.set_timesteps(STEPS)
    tilt = torch.tensor([0.0, TILT])
    x = initial.clone()
    found: list[float] = []
    network_input = steps.scale_model_input(torch.cat([x] * 2), steps.timesteps[0])
    for i, t in enumerate(steps.timesteps):
        answer = net(network_input, t.expand(2), tilt)
        started = time.perf_counter()
        without, with_tilt = answer.chunk(2)
        guided = without + SCALE * (with_tilt - without)
        x = steps.step(guided, t, x, return_dict=False)[0]
        if i + 1 < STEPS:
            network_input = steps.scale_model_input(torch.cat([x] * 2), steps.timesteps[i + 1])
            found.append((time.perf_counter() - started) * 1e6)
    return found, x.numpy()


def main(
    rounds: Annotated[int, typer.Option(help="Turns of each side.")] = 15,
    threads: Annotated[int, typer.Option(help="Threads of both.")] = 2,
    save: Annotated[bool, typer.Option(help="Write results/fused-step-….json.")] = False,
) -> None:
    """Print microseconds of a step on both sides, and their ratio."""
    torch.set_num_threads(threads)
    program = ours(threads)
    seeds = noise.sample_seeds(SEED, 1)
    site = next(c.attrs["site"] for s in program.plan.segments for c in s.calls if c.op == "noise")
    drawn = noise.normals(seeds, site=site, micro=0, count=int(np.prod(SHAPE))).reshape(1, *SHAPE)
    initial = torch.from_numpy(drawn)
    ours_x, theirs_x = our_turn(program)[1], their_turn(initial)[1]
    error = float(np.abs(ours_x - theirs_x).max() / np.abs(theirs_x).max())
    assert error < 1e-5, f"the two do not compute the same: relative difference {error:.1e}"
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        time.sleep(PAUSE)
        our_turn(program)
        times["ours"] += our_turn(program)[0]
        time.sleep(PAUSE)
        their_turn(initial)
        times["theirs"] += their_turn(initial)[0]
    medians = {name: float(np.median(values)) for name, values in times.items()}
    for name, values in times.items():
        low, middle, high = np.percentile(values, [10, 50, 90])
        console.print(f"{name:7} {middle:8.1f} us   (10 % {low:.1f}, 90 % {high:.1f}; {len(values)} steps)")
    console.print(f"ratio   {medians['theirs'] / medians['ours']:8.1f}    difference of the latents {error:.1e}")
    if save:
        report = {
            "case": "CFG and DPM-Solver++(2M), 65,536 elements, batch 1, float32",
            **stamp(),
            "threads": threads,
            "microseconds": {
                name: dict(
                    zip(("p10", "p50", "p90"), np.percentile(values, [10, 50, 90]).round(1).tolist(), strict=True)
                )
                for name, values in times.items()
            },
            "ratio": round(medians["theirs"] / medians["ours"], 2),
            "versions": {package: metadata.version(package) for package in ("torch", "diffusers", "numpy")},
        }
        path = HERE / "results" / f"fused-step-{_native.isa()}-{threads}t.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"wrote {path.relative_to(Path(__file__).parent)}")


if __name__ == "__main__":
    typer.run(main)
