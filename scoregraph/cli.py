"""The command line: generate, compile, run, show, plot, explain, doctor, cache.

Exit status 0: done; 1: a mistake in what was asked, told in three lines; 2: the command itself was misspelt.
"""

from __future__ import annotations

import inspect
import json
import runpy
import shlex
import sys
import time
import traceback
import zipfile
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from scoregraph import cache, errors, runtime
from scoregraph.errors import BadSetting, CannotWrite, NoGraphThere, ScoregraphError, UnknownName, WrongFormat
from scoregraph.passes.quantize.recipe import NAMES
from scoregraph.plan.files import file_name

app = typer.Typer(
    name="scoregraph",
    help="A compiler for sampling graphs: diffusion and flow programs become one plan per device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
cache_app = typer.Typer(help="Plans that were compiled before and are kept on disk.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

out = Console()
err = Console(stderr=True)

RECIPES_HELP = (
    "The formats of products, a name and options as in w8a8:groups=4,attention=i8. "
    + "; ".join(f"**{name}**: {meaning}" for name, meaning in NAMES.items())
    + ". Options: block=64 (inputs of a weight that share a scale), groups=4 (static grids by timestep, found by "
    "calibration; dynamic without), attention=bf16 or i8, conv=no, modulation=no, smooth=no (or yes: "
    "linear layers too), clip=yes, spare=10% (of the work stays in float32, in the layers that lose most; measuring "
    "takes minutes: for networks whose samples suffer), "
    "keep=\\*.mid.\\*|\\*.out (docs/quantization.md)."
)

Set = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        default_factory=list,
        show_default=False,
        help="An input of the graph; repeatable.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, reference or triton.")]
Quant = Annotated[str, typer.Option(metavar="RECIPE", help=RECIPES_HELP)]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of a CPU plan; all cores unless given.")]
Seed = Annotated[int, typer.Option(help="Sample i draws its noise from seed + i.")]
Batch = Annotated[int, typer.Option(min=1, help="How many samples.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
PLOTS = (".png", ".svg", ".pdf")
NoCache = Annotated[bool, typer.Option("--no-cache", help="Compile anew, and keep nothing.")]


def main() -> None:
    """Entry point: user errors end in exit status 1 without a traceback."""
    try:
        app()
    except ScoregraphError as error:
        _fail(error)


def _fail(error: ScoregraphError) -> NoReturn:
    error = error.at(shlex.join(["scoregraph", *sys.argv[1:]]))
    if "--json" in sys.argv:
        body = {"error": {"code": error.code, "title": error.title, "text": str(error)}}
        print(json.dumps(body))
    else:
        err.print(f"[bold red]error[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    sys.exit(1)


# --- generate, compile, run --------------------------------------------------------------------


@app.command()
def generate(
    name: Annotated[str, typer.Argument(help="A graph of the gallery (terrain, toy) or a file with one.")],
    set_: Set,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the sampling loop.")] = None,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 is off.")] = 1.0,
    seed: Seed = 0,
    batch: Batch = 4,
    device: Device = "cpu",
    quant: Quant = "none",
    threads: Threads = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Picture (.png) or arrays (.npy, .npz).")] = None,
    no_cache: NoCache = False,
    as_json: AsJson = False,
) -> None:
    """Build, compile and run a graph, and write its samples: a picture where there is one to see, and the raw array."""
    from scoregraph import gallery

    _check_ending(out_file)
    started = time.perf_counter()
    exhibit = gallery.GALLERY.get(name)
    if exhibit is not None:
        target: Any = exhibit.build(steps or exhibit.steps, guidance)
        defaults: dict[str, Any] = dict(exhibit.defaults)
    else:
        target, defaults = _graph(name), {}
        if steps is not None or guidance != 1.0:
            raise typer.BadParameter("a graph from a file states its own", param_hint="--steps / --guidance")
    plan = _compile(target, device=device, quant=quant, threads=threads, use_cache=not no_cache, quiet=as_json)
    compiled = time.perf_counter()
    results = _run(plan, {**defaults, **_settings(set_)}, seed=seed, batch=batch, quiet=as_json)
    finished = time.perf_counter()
    written = _write(results, out_file, Path("out") / f"{file_name(plan.plan.name)}-seed{seed}")
    _report(
        as_json,
        files=[str(path) for path in written],
        compile_s=round(compiled - started, 3),
        run_s=round(finished - compiled, 3),
        samples=batch,
        **_counted(plan),
    )


@app.command("compile")
def compile_(
    graph: Annotated[str, typer.Argument(help="A graph of the gallery, or a .py, .json or .txt file with one.")],
    folder: Annotated[Path, typer.Option("-o", "--output", help="Where the plan goes (a folder).")],
    device: Device = "cpu",
    quant: Quant = "none",
    no_cache: NoCache = False,
    as_json: AsJson = False,
) -> None:
    """Compile a graph into a plan folder that runs anywhere without torch."""
    started = time.perf_counter()
    target = _graph(graph)
    plan = _compile(target, device=device, quant=quant, threads=None, use_cache=not no_cache, quiet=as_json)
    plan.save(folder)
    _report(as_json, files=[str(folder)], compile_s=round(time.perf_counter() - started, 3), plan=repr(plan))


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(help="A plan folder, as 'compile' writes it.")],
    set_: Set,
    seed: Seed = 0,
    batch: Batch = 1,
    threads: Threads = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Arrays (.npy, .npz) or a picture (.png).")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Say what memory the run took.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a saved plan. Torch is not needed, nothing in the folder is trusted or executed."""
    _check_ending(out_file)
    started = time.perf_counter()
    plan = runtime.load(folder, threads)
    loaded = time.perf_counter()
    results = _run(plan, _settings(set_), seed=seed, batch=batch, quiet=as_json)
    finished = time.perf_counter()
    written = _write(results, out_file, Path("out") / f"{file_name(plan.plan.name)}-seed{seed}")
    _report(
        as_json,
        files=[str(path) for path in written],
        load_ms=round((loaded - started) * 1e3, 1),
        run_s=round(finished - loaded, 3),
        samples=batch,
        **_counted(plan),
        **(_memory(plan, batch) if stats else {}),
    )


def _memory(plan: runtime.CompiledPlan, batch: int) -> dict[str, float]:
    """What a run took, in MB: as planned, and the most that the process ever held of the machine's memory."""
    import resource  # not on every system

    planned = plan.memory(batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {
        "weights_mb": planned.weights,
        "largest_live_set_mb": planned.largest_live_set,
        "arena_mb": planned.arena,
        "peak_of_process_mb": peak,
    }
    return {name: round(nbytes / 1e6, 2) for name, nbytes in found.items()}


# --- show, explain, doctor, cache --------------------------------------------------------------


@app.command()
def show(
    graph: Annotated[str, typer.Argument(help="A graph of the gallery, a file with one, or a plan folder.")],
    stage: Annotated[str | None, typer.Option(help="A stage of compilation; 'list' names them all.")] = None,
    format_: Annotated[str, typer.Option("--format", help="text, mermaid, dot or json.")] = "text",
    device: Device = "cpu",
    quant: Quant = "none",
) -> None:
    """Print a graph, or what it has become after a stage of its compilation."""
    saved = (Path(graph) / "plan.json").is_file()
    if stage is None:
        print(_saved_form(runtime.load(graph), format_) if saved else _form(_graph(graph), format_))
        return
    plan = runtime.load(graph) if saved else _compile(_graph(graph), device=device, quant=quant, threads=None)
    if stage == "list":
        print(plan.stages)
        return
    # 'plan-memory' and 'terrain.score: fuse-gate' are names; 'fuse-gate' will do where only one network has parts.
    found = [name for name in plan.stages if name == stage] or [n for n in plan.stages if n.endswith(f": {stage}")]
    if len(found) != 1:
        raise UnknownName(kind="stage", name=stage, known=found or plan.stages)
    print(plan.stages[found[0]])


@app.command()
def compare(
    name: Annotated[str, typer.Argument(help="A graph of the gallery, or a file with one.")],
    quant: Annotated[
        list[str],
        typer.Option(
            metavar="RECIPE",
            default_factory=list,
            show_default=False,
            help="A recipe; repeatable. All kinds unless given.",
        ),
    ],
    set_: Set,
    seed: Seed = 0,
    batch: Batch = 4,
    device: Device = "cpu",
    threads: Threads = None,
    picture: Annotated[
        Path | None, typer.Option(help="A .png of each sample in full precision beside it in the first recipe.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sample in full precision and in recipes from the same seeds: what each loses, weighs and takes."""
    from scoregraph import comparison, gallery
    from scoregraph.render import PICTURES

    if picture is not None and picture.suffix != ".png":
        raise WrongFormat(path=picture, known=".png", where="--picture")
    defaults = gallery.GALLERY[name].defaults if name in gallery.GALLERY else {}
    with err.status("compiling") as status:
        found = comparison.compare(
            _graph(name), quant or comparison.RECIPES, inputs={**defaults, **_settings(set_)}, seed=seed, batch=batch,
            device=device, threads=threads, told=lambda recipe: status.update(f"comparing {recipe}"),
        )  # fmt: skip
    if picture is not None:
        if found.output not in PICTURES or not found.results:
            raise WrongFormat(path=picture, known="nothing: the output is no picture", where="--picture")
        first = next(iter(found.results))
        PICTURES[found.output](comparison.pairs(found, first), picture, f"full precision, and beside it {first}")
    _report_comparison(as_json, found, [] if picture is None else [str(picture)])


def _report_comparison(as_json: bool, found: Any, files: list[str]) -> None:
    if as_json:
        rows = [{**vars(row), "sqnr": _finite(row.sqnr), "worst": _finite(row.worst)} for row in found.rows]
        print(json.dumps({"files": files, "output": found.output, "rows": rows, "refused": dict(found.refused)}))
        return
    table = Table("recipe", title=f"{len(found.exact)} samples, output {found.output}")
    for title in ("SQNR dB", "worst", "MB", "ms/step", "layers", "kept", "compile s"):
        table.add_column(title, justify="right")
    for row in found.rows:
        decibels = ("" if value == float("inf") else f"{value:.1f}" for value in (row.sqnr, row.worst))
        numbers = (f"{row.weights / 1e6:.1f}", f"{row.ms_per_step:.1f}", str(row.layers), str(row.kept))
        table.add_row(row.recipe, *decibels, *numbers, f"{row.compile_s:.1f}")
    out.print(table)
    for recipe, reasons in found.refused.items():
        out.print(f"{recipe} changes nothing: {escape(reasons)}", soft_wrap=True)
    for path in files:
        out.print(f"wrote [bold]{escape(path)}[/]", highlight=False, soft_wrap=True)


def _finite(value: float) -> float | None:
    return None if value == float("inf") else round(value, 2)


@app.command("plot")
def plot_(
    schedules: Annotated[list[str], typer.Argument(help="Schedules as text, such as 'karras(steps=12)'.")],
    out_file: Annotated[Path, typer.Option("--out", help=f"The picture ({', '.join(PLOTS)}).")] = Path("schedules.png"),
) -> None:
    """Draw schedules into one figure: noise level, alpha and sigma, log signal-to-noise ratio, time."""
    from scoregraph import schedule_plot

    if out_file.suffix not in PLOTS:
        raise WrongFormat(path=out_file, known=", ".join(PLOTS), where="--out")
    read = [schedule_plot.read(text) for text in schedules]
    try:
        schedule_plot.draw(read, out_file)
    except OSError as error:
        raise CannotWrite(path=out_file, problem=error.strerror or error) from None
    out.print(f"wrote [bold]{escape(str(out_file))}[/]", highlight=False, soft_wrap=True)


@app.command()
def explain(
    code: Annotated[str, typer.Argument(help="An error's code, such as SG101; 'list' names them all.")],
) -> None:
    """Tell what an error means and how it is cured."""
    known = errors.all_errors()
    if code == "list":
        for each, cls in known.items():
            print(f"{each}  {cls.title}")
        return
    if code.upper() not in known:
        raise UnknownName(kind="error code", name=code, known=known)
    cls = known[code.upper()]
    out.print(f"[bold]{cls.code} {escape(cls.title)}[/]\n")
    print(inspect.cleandoc(cls.__doc__ or ""))
    out.print(f"\n[bold]says[/]  {escape(cls.message)}\n[bold]cure[/]  {escape(cls.cure)}", soft_wrap=True)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what this machine offers: processor, instruction set, threads, backends, optional packages."""
    from scoregraph.diagnosis import examine

    findings = examine()
    if as_json:
        print(json.dumps(findings))
        return
    table = Table(show_header=False, box=None)
    for name, found in findings.items():
        table.add_row(f"[bold]{name}[/]", escape(str(found)))
    out.print(table)


@cache_app.command("ls")
def cache_ls(as_json: AsJson = False) -> None:
    """List the plans that are kept, the newest first."""
    entries = cache.entries()
    if as_json:
        print(json.dumps([{"folder": str(e.folder), "bytes": e.nbytes, **e.parts} for e in entries]))
        return
    table = Table("plan", "MB", "written", title=f"{len(entries)} plans in {cache.root()}")
    for entry in entries:
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        table.add_row(entry.folder.name, f"{entry.nbytes / 1e6:.1f}", written)
    out.print(table)


@cache_app.command("why")
def cache_why(
    graph: Annotated[str, typer.Argument(help="A graph of the gallery, or a file with one.")],
    device: Device = "cpu",
    quant: Quant = "none",
) -> None:
    """Tell whether a graph's plan is kept, and if not, what differs from the closest one."""
    from scoregraph.compiler import cache_key

    key = cache_key(_graph(graph), device=device, quant=quant)
    folder = cache.find(key)
    print(f"kept: {folder}" if folder else cache.why(key))


@cache_app.command("clear")
def cache_clear() -> None:
    """Remove every plan that is kept."""
    print(f"removed {cache.clear()} plans from {cache.root()}")


# --- helpers of the commands -------------------------------------------------------------------


def _graph(name: str) -> Any:
    """A graph from the gallery, or from a file: Python that defines ``graph``, or the JSON or text form."""
    from scoregraph import gallery
    from scoregraph.graph.json_form import from_json
    from scoregraph.graph.text import parse

    path = Path(name)
    if not path.suffix:
        return gallery.find(name).build()
    if not path.is_file():
        raise NoGraphThere(path=path, problem="there is no such file", where=str(path))
    if path.suffix == ".py":
        return _run_file(path)
    read = {".json": from_json, ".txt": parse}.get(path.suffix)
    if read is None:
        raise NoGraphThere(path=path, problem=f"{path.suffix} is not a form of a graph", where=str(path))
    try:
        return read(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise NoGraphThere(path=path, problem=f"it cannot be read: {error}", where=str(path)) from None


def _run_file(path: Path) -> Any:
    """What a Python file assigns to ``graph``. An exception in it is the user's, and told with its line."""
    from scoregraph.graph.builder import GraphBuilder
    from scoregraph.graph.graph import Graph

    try:
        found = runpy.run_path(str(path)).get("graph")
    except ScoregraphError:
        raise
    except SyntaxError as error:
        raise NoGraphThere(path=path, problem=error.msg, where=f"{path}:{error.lineno}") from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        place = f"{path}:{lines[-1]}" if lines else str(path)
        raise NoGraphThere(path=path, problem=f"{type(error).__name__}: {error}", where=place) from None
    if found is None:
        raise NoGraphThere(path=path, problem="it does not define a variable 'graph'", where=str(path))
    if not isinstance(found, Graph | GraphBuilder):
        raise NoGraphThere(path=path, problem=f"its 'graph' is a {type(found).__name__}", where=str(path))
    return found


def _saved_form(plan: runtime.CompiledPlan, format_: str) -> str:
    """The graph that a saved plan was compiled from."""
    from scoregraph.graph.text import parse

    return plan.plan.graph if format_ == "text" else _form(parse(plan.plan.graph), format_)


def _form(target: Any, format_: str) -> str:
    graph = target.build() if hasattr(target, "build") else target
    forms = {"text": lambda: str(graph), "mermaid": graph.to_mermaid, "dot": graph.to_dot, "json": graph.to_json}
    if format_ not in forms:
        raise UnknownName(kind="format", name=format_, known=forms)
    return forms[format_]()


def _settings(texts: list[str]) -> dict[str, Any]:
    """``--set name=value``: a number, a list of numbers with one per sample, or ``@file.npy``."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            if not equals:
                raise ValueError
            found[name] = np.load(value[1:]) if value.startswith("@") else np.array(json.loads(value), dtype=float)
        except (ValueError, TypeError, OSError, EOFError, RecursionError):
            raise BadSetting(text=text, where="--set") from None
    return found


def _compile(target: Any, *, quiet: bool = False, **options: Any) -> runtime.CompiledPlan:
    from scoregraph.compiler import compile

    options.setdefault("use_cache", True)
    if quiet or not err.is_terminal:
        return compile(target, **options)
    with err.status("compiling") as status:
        return compile(target, on_stage=lambda doing: status.update(f"compiling: {doing}"), **options)


def _run(
    plan: runtime.CompiledPlan, inputs: dict[str, Any], *, seed: int, batch: int, quiet: bool
) -> dict[str, np.ndarray]:
    known = [spec.name for spec in plan.plan.inputs]
    for name in inputs:  # here, since --set seed=1 must not meet run's own arguments
        if name not in known:
            raise UnknownName(kind="input", name=name, known=known, where=f"--set {name}=…")
    try:
        return _run_checked(plan, inputs, seed=seed, batch=batch, quiet=quiet)
    except ScoregraphError as error:
        name = error.values.get("name")
        raise error.at(f"--set {name}=…" if name in inputs else None) from None


def _run_checked(
    plan: runtime.CompiledPlan, inputs: dict[str, Any], *, seed: int, batch: int, quiet: bool
) -> dict[str, np.ndarray]:
    if quiet or not err.is_terminal:
        return plan.run(seed=seed, batch=batch, **inputs)
    columns = (TextColumn("sampling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err) as bar:
        task = bar.add_task("sampling", total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return plan.run(seed=seed, batch=batch, progress=update, **inputs)


def _check_ending(path: Path | None) -> None:
    """Refuse a file whose ending says no format, before minutes are spent on what shall be in it."""
    if path is not None and path.suffix not in (".png", ".npy", ".npz"):
        raise WrongFormat(path=path, known=".png, .npy, .npz", where="--out")


def _write(results: dict[str, np.ndarray], wanted: Path | None, stem: Path) -> list[Path]:
    """Write arrays, and a picture where an output can be drawn. ``wanted`` names the file, else both get names."""
    from scoregraph.render import PICTURES

    drawn = next((name for name in results if name in PICTURES), None)
    if wanted is not None and wanted.suffix == ".png" and drawn is None:
        raise WrongFormat(path=wanted, known=".npy, .npz (none of the outputs is a picture)", where="--out")
    base = wanted.with_suffix("") if wanted else stem
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        return _write_files(results, wanted, base, drawn)
    except OSError as error:
        raise CannotWrite(path=wanted or base, problem=error.strerror or error) from None


def _write_files(results: dict[str, np.ndarray], wanted: Path | None, base: Path, drawn: str | None) -> list[Path]:
    from scoregraph.render import PICTURES

    written: list[Path] = []
    if drawn is not None and (wanted is None or wanted.suffix == ".png"):
        path = base.with_suffix(".png")
        PICTURES[drawn](results[drawn], path, base.name)
        written.append(path)
    if (wanted is not None and wanted.suffix == ".npz") or len(results) > 1:
        written.append(base.with_suffix(".npz"))
        with zipfile.ZipFile(written[-1], "w") as box:  # np.savez takes no output named "file"
            for name, value in results.items():
                with box.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, value)
    else:
        written.append(base.with_suffix(".npy"))
        np.save(written[-1], next(iter(results.values())))
    return written


def _counted(plan: runtime.CompiledPlan) -> dict[str, int]:
    """What the run cost: its steps, its calls of networks, and over how many branches these went."""
    counters = plan.counters()
    names = ["steps", "network_calls", "branch_evaluations"] + (["rounds"] if counters["rounds"] else [])
    return {name: counters[name] for name in names}


def _report(as_json: bool, files: list[str], **facts: Any) -> None:
    if as_json:
        print(json.dumps({"files": files, **facts}))
        return
    for path in files:
        out.print(f"wrote [bold]{escape(path)}[/]", highlight=False, soft_wrap=True)
    told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items())
    out.print(told, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
