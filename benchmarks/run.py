"""Measure networks and loops against the peers: ``python benchmarks/run.py [CASE …] [--threads 1 --threads 2]``.

Every case runs in a process of its own, pinned to as many cores as it has threads. In it the engines alternate: each
round gives every engine a turn, so that drift of the machine meets all of them; what is compared are medians over the
rounds, with the 10th and 90th percentiles. A turn is a pause, one run that is not measured, and some that are: the
pause lets the threads of the engine before go to sleep (they spin for a while, which would cost the next one a core),
and the first run brings caches and threads back.

Beside its time every engine states what its format loses: the SQNR of its answer to torch's in float64, in dB. An
engine that is missing, or cannot run a case, is in the results with the reason.

``--prepare`` builds everything once and measures nothing: what torch compiles, ONNX files and plans are kept, so that a
later run spends its time measuring. Results go to ``results/<case>-<instruction set>-<threads>t.json``.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PAUSE = 0.25
"""Seconds between two engines; the longest that a default OpenMP thread spins is 0.2."""
FEWEST, MOST = 5, 40
"""Rounds."""
PACKAGES = ("torch", "onnxruntime", "openvino", "diffusers", "transformers", "numpy")

console = Console(width=150)
app = typer.Typer(add_completion=False)


@app.command()
def main(
    cases: Annotated[list[str] | None, typer.Argument(help="Cases to run; all unless named.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Threads of every engine; 2 and 1 unless given.")] = None,
    engines: Annotated[
        list[str] | None, typer.Option("--engine", help="Engines; all but the rare unless named.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time for the rounds of one case.")] = 25.0,
    quick: Annotated[bool, typer.Option(help="Two rounds, to see that everything runs; writes nothing.")] = False,
    prepare: Annotated[bool, typer.Option(help="Build everything once, so that it is there later.")] = False,
    results: Annotated[Path, typer.Option(help="Where results are written.")] = HERE / "results",
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure every engine on every case and write the results."""
    if child:
        (case,), (count,) = cases or [], threads or []
        measure(case, count, engines, 0.0 if prepare else seconds, quick, None if quick or prepare else results)
        return
    sys.path.insert(0, str(HERE))
    for case in cases or json.loads(_run(["-c", "import json, networks; print(json.dumps(list(networks.CASES)))"])):
        for count in threads or [2, 1]:
            started = time.perf_counter()
            options = ["--threads", str(count), "--seconds", str(seconds), "--results", str(results), "--child"]
            options += ["--quick"] * quick + ["--prepare"] * prepare
            options += [word for engine in engines or [] for word in ("--engine", engine)]
            done = subprocess.run(
                [sys.executable, str(HERE / "run.py"), case, *options], env=_environment(count), check=False,
                preexec_fn=lambda count=count: os.sched_setaffinity(0, _cores(count)),
            )  # fmt: skip
            state = "" if done.returncode == 0 else f"  FAILED with {done.returncode}"
            console.print(f"{case}, {count} threads: {time.perf_counter() - started:.0f} s{state}")


def _run(arguments: list[str]) -> str:
    return subprocess.check_output([sys.executable, *arguments], cwd=HERE, text=True)


def _environment(threads: int) -> dict[str, str]:
    """Thread counts must be stated before torch is imported; what is compiled is kept between runs."""
    work = os.environ.get("SCOREGRAPH_BENCH", str(HERE.parent / "out" / "bench"))
    kept = {"TORCHINDUCTOR_CACHE_DIR": f"{work}/inductor", "SCOREGRAPH_BENCH": work, "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **kept, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def _cores(threads: int) -> set[int]:
    return set(sorted(os.sched_getaffinity(0))[:threads])


def measure(name: str, threads: int, named: list[str] | None, seconds: float, quick: bool, folder: Path | None) -> None:
    """One case in this process. Writes its result unless ``folder`` is None."""
    sys.path.insert(0, str(HERE))
    import logging
    import warnings

    import engines
    import networks
    import numpy as np
    import torch
    from stamp import stamp

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    try:
        case = networks.CASES[name]()
    except ImportError as error:
        console.print(f"{name} is skipped: {error}")
        return
    expected = reference(case)
    steps, found = {}, {}
    for engine in engines.engines_of(case, named):
        started = time.perf_counter()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                call = engine.build(case, threads)
                step = call if case.loop is None or engine.name.startswith("scoregraph") else trajectory(case, call)
                answer = step(*case.inputs)
        except Exception as error:  # a peer may fail in any way; the reason is its result
            found[engine.name] = {"missing": f"{type(error).__name__}: {error}".splitlines()[0][:160]}
            continue
        steps[engine.name] = step
        found[engine.name] = {
            "format": engine.format,
            **({"variant": call.chosen} if hasattr(call, "chosen") else {}),
            "setup_s": round(time.perf_counter() - started, 2),
            "sqnr_db": round(_sqnr(answer, expected), 1),
            **({"cosine": _cosine(answer, expected)} if case.cosine else {}),
            "times": [],
        }
    if seconds > 0:
        rounds = 2 if quick else MOST
        finish = time.perf_counter() + seconds
        for turn in range(rounds):
            if turn >= FEWEST and time.perf_counter() > finish:
                break
            for engine, step in steps.items():
                found[engine]["times"].append(_turn(step, case.inputs))

    for each in found.values():
        if times := each.pop("times", None):
            low, middle, high = np.percentile(times, [10, 50, 90])
            each |= {
                "median_ms": round(middle, 3),
                "p10_ms": round(low, 3),
                "p90_ms": round(high, 3),
                "rounds": len(times),
            }
    gflop = case.gflop() * (2 * case.loop.steps if case.loop else 1)
    result = {
        "case": case.name,
        "note": case.note,
        "threads": threads,
        "gflop": round(gflop, 2),
        **stamp(),
        "versions": {package: _version(package) for package in PACKAGES},
        "engines": found,
    }
    show(result)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{case.name}-{result['isa']}-{threads}t.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _turn(step: Callable[..., object], inputs: tuple) -> float:
    """Milliseconds of one run: the median of those that fit into 50 ms, after one that does not count."""
    time.sleep(PAUSE)
    step(*inputs)
    times: list[float] = []
    while not times or (sum(times) < 0.05 and len(times) < 15):
        started = time.perf_counter()
        step(*inputs)
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2] * 1e3


def reference(case):
    """The answer of torch in float64; a loop keeps its schedule in the library's float32."""
    import torch

    twin = copy.deepcopy(case.module).double()

    def call(*tensors):
        with torch.inference_mode():
            return twin(*(t.double() if t.is_floating_point() else t for t in tensors)).numpy()

    return trajectory(case, call)(*case.inputs) if case.loop else call(*case.inputs)


def trajectory(case, call):
    """A loop as one writes it around a peer: diffusers' DDIM, both branches of the guidance in one call."""
    import networks
    import torch

    scheduler = networks.scheduler()

    def run(x, t, label):
        scheduler.set_timesteps(case.loop.steps)
        labels = torch.cat([label, torch.full_like(label, case.loop.null)])
        for step in scheduler.timesteps:
            answer = torch.from_numpy(call(torch.cat([x, x]), step.expand(2 * len(x)), labels))
            cond, uncond = answer[:, : x.shape[1]].chunk(2)  # DiT's second half of the channels would be a variance
            x = scheduler.step(uncond + case.loop.scale * (cond - uncond), step, x).prev_sample
        return x.numpy()

    return run


def _sqnr(answer, expected) -> float:
    """Signal to quantization noise in dB: 10 log10(sum expected² / sum (answer - expected)²)."""
    signal, noise = float((expected**2).sum()), float(((answer.astype("f8") - expected) ** 2).sum())
    return 10 * math.log10(signal / max(noise, 1e-40 * signal)) if math.isfinite(noise) else -math.inf


def _cosine(answer, expected) -> float:
    """The least cosine similarity of a row of the answer to that in float64."""
    import numpy as np

    a, b = (each.astype("f8").reshape(-1, each.shape[-1]) for each in (answer, expected))
    return round(float(((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))).min()), 7)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def show(result: dict) -> None:
    """One table: every engine beside the best peer of its own format."""
    engines = result["engines"]
    title = f"{result['case']}, {result['threads']} threads, {result['isa']}, {result['gflop']} GFLOP"
    table = Table(title=title)
    for column in (
        "engine",
        "median ms",
        "p10",
        "p90",
        "GFLOP/s",
        "SQNR dB",
        "best peer / ours",
        "built in s",
        "variant",
    ):
        table.add_column(column, justify="left" if column in ("engine", "variant") else "right")
    for name, found in engines.items():
        if "missing" in found:
            continue
        middle = found.get("median_ms")
        times = [str(found.get(key, "")) for key in ("median_ms", "p10_ms", "p90_ms")]
        speed = f"{result['gflop'] / middle * 1e3:.0f}" if middle else ""
        table.add_row(
            name,
            *times,
            speed,
            str(found["sqnr_db"]),
            ratio(engines, name),
            str(found["setup_s"]),
            found.get("variant", ""),
        )
    console.print(table)
    for name, found in engines.items():
        if "missing" in found:
            console.print(f"  without {name}: {found['missing']}", style="dim", markup=False)


def ratio(engines: dict, name: str) -> str:
    """How much faster ours is than the best peer of the same format, for an engine that is ours."""
    mine = engines[name]
    if not name.startswith("scoregraph") or "median_ms" not in mine:
        return ""
    peers = [
        each["median_ms"]
        for peer, each in engines.items()
        if not peer.startswith("scoregraph") and each.get("format") == mine["format"] and "median_ms" in each
    ]
    return f"{min(peers) / mine['median_ms']:.2f}x" if peers else ""


if __name__ == "__main__":
    app()
