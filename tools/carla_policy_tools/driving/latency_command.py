"""The verb `carla-policy latency`: what late and lost actions cost a version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carla_policy.version import parse_version
from carla_policy_tools.console import err, out, print_json
from carla_policy_tools.options import Json, Registry, Store
from carla_policy_tools.paths import MODEL_STORE, archive_name

if TYPE_CHECKING:
    from rich.table import Table

    from carla_policy_tools.driving.latency import Cell, Evaluation, Mean, Plan

LATENCY_FILE = "latency.json"


def latency(
    version: Annotated[
        str | None,
        typer.Argument(help="A version of the store, an archive, or an artifact's directory; the promoted by default."),
    ] = None,
    latencies: Annotated[
        str, typer.Option(help="Milliseconds from an observation to its action.")
    ] = "0,50,100,150,200",
    losses: Annotated[str, typer.Option(help="Percent of the answers that never come.")] = "0,5,10,20",
    strategies: Annotated[
        str, typer.Option(help="The vehicle client's fallbacks: brake, hold[:SECONDS], decay[:SECONDS].")
    ] = "brake,hold,decay",
    episodes: Annotated[int, typer.Option(help="Episodes of each cell, on the same seeds.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the first episode.", min=0)] = 10_000,
    max_steps: Annotated[int | None, typer.Option(help="Steps after which an episode is cut.", min=1)] = None,
    deadline_ms: Annotated[
        float | None,
        typer.Option(
            "--deadline",
            help="Milliseconds after which an answer counts as lost; 50 by default, or the latency where it is longer.",
            min=0,
        ),
    ] = None,
    environment: Annotated[
        str, typer.Option("--env", help="Gymnasium environment: an id, `module:id` or `module:callable`.")
    ] = "examples.racetrack.driving_env:DrivingEnv",
    environment_arguments: Annotated[str, typer.Option("--env-arguments", help="Its arguments, as JSON.")] = "{}",
    step_ms: Annotated[
        float | None, typer.Option(help="How long a step is, for an environment that does not say so.")
    ] = None,
    processes: Annotated[int, typer.Option(help="Processes that drive; the result is the same.", min=1)] = 2,
    directory: Annotated[
        Path | None, typer.Option("--out", help="Directory for latency.json, latency.svg and report.html.")
    ] = None,
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """How a version drives when its actions come late or never, by fallback strategy: a table, a plot, JSON.

    The version drives in this process, from its archive: time is simulated, so the result is exact and repeatable and
    no server is asked. What a real server and network do in real time measures `carla-policy drive`.

    Examples: `carla-policy latency v0.3.0 --episodes 10 --max-steps 200 --out runs/latency`,
    `carla-policy latency artifacts/v0.2.0 --latencies 0,100 --losses 0,10 --strategies brake,hold:0.3`
    """
    from carla_policy_tools.driving.latency import Plan

    plan = Plan(
        _source(version, store, registry),
        environment,
        environment_arguments,
        tuple(value / 1e3 for value in _numbers("--latencies", latencies)),
        tuple(value / 1e2 for value in _numbers("--losses", losses)),
        tuple(part.strip() for part in strategies.split(",")),
        episodes,
        seed,
        max_steps,
        None if deadline_ms is None else deadline_ms / 1e3,
        None if step_ms is None else step_ms / 1e3,
    )
    found = _with_progress(plan, processes)
    written = _write(found, directory) if directory else []
    if as_json:
        print_json({**found.to_json(), "written": [str(path) for path in written]})
        return
    for table in tables(found):
        out.print(table)
        out.print()
    for line in remarks(found):
        out.print(line, markup=False)
    for path in written:
        out.print(f"wrote {path}", markup=False)


def tables(found: Evaluation) -> list[Table]:
    """Returns, differences to the plain loop, and how episodes ended: a row for each loss and strategy."""
    from rich.table import Table

    made = []
    kinds = {
        "mean return": lambda cell: _mean(cell.total_return),
        "difference to the plain loop; * is certainly worse": lambda cell: (
            f"{_mean(cell.difference, signed=True)}{'*' if cell.worse else ' '}"
        ),
        "driven to the end/collisions/off the road": _endings,
    }
    for title, text in kinds.items():
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1), title_style="bold")
        table.add_column("lost", justify="right", no_wrap=True)
        table.add_column("fallback", no_wrap=True)
        for latency_s in found.plan.latencies_s:
            table.add_column(f"{1e3 * latency_s:g} ms", justify="right", no_wrap=True)
        for loss, strategy, cells in rows_of(found):
            table.add_row(f"{100 * loss:g} %", strategy, *map(text, cells))
        made.append(table)
    return made


def rows_of(found: Evaluation) -> list[tuple[float, str, list[Cell]]]:
    """Loss, strategy, and the cells by latency; one row for all strategies where none of them ever acts."""
    rows = []
    for loss in found.plan.losses:
        for strategy in found.plan.strategies:
            cells = [found.cell(latency_s, loss, strategy) for latency_s in found.plan.latencies_s]
            if all(not cell.strategy for cell in cells):
                rows.append((loss, "any", cells))
                break
            rows.append((loss, strategy, cells))
    return rows


def remarks(found: Evaluation) -> list[str]:
    """What the figures are of, and where the environment is coarser than what was asked."""
    from carla_policy_tools.driving.latency import METHOD

    plan = found.plan
    cut = f" of at most {plan.max_steps} steps" if plan.max_steps else ""
    said = "50 ms, or the latency where that is longer" if plan.deadline_s is None else f"{1e3 * plan.deadline_s:g} ms"
    lines = [
        f"{found.version} in {plan.environment}, in this process and in simulated time; {plan.episodes} episodes{cut}, "
        f"seeds from {plan.seed}. Without an answer after {said} the fallback acts.",
        METHOD,
    ]
    for asked, real in found.rounded.items():
        lines.append(
            f"{1e3 * asked:g} ms were rounded up to {1e3 * real:g} ms: the environment resolves "
            f"{1e3 * found.resolution_s:g} ms."
        )
    return lines


def _endings(cell: Cell) -> str:
    """What else ended an episode stands beside, such as leaving the road where the environment does not say so."""
    count = cell.endings.get
    driven = count("completed", 0) + count("max_steps", 0)
    other = f"/{count('terminated')} other" if count("terminated") else ""
    return f"{driven}/{count('collision', 0)}/{count('off_road', 0)}{other}"


def _mean(mean: Mean, *, signed: bool = False) -> str:
    value = f"{mean.value:+.1f}" if signed else f"{mean.value:.1f}"
    return value if mean.half_width is None else f"{value} ±{mean.half_width:.1f}"


def _source(version: str | None, store: Path, registry: Path | None) -> Path:
    from carla_policy_tools.lifecycle.registry import RegistryFile

    if version is not None and (version.endswith(".mar") or Path(version).is_dir()):
        return Path(version)
    if version is None:
        file = RegistryFile.of(store, registry)
        promoted = file.read().promoted
        if promoted is None:
            raise ValueError(f"{file.path}: no version is promoted: name one")
        version = promoted
    return store / archive_name(parse_version(version))


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"expected numbers with commas between, got {text!r:.80}", param_hint=option) from None


def _with_progress(plan: Plan, processes: int) -> Evaluation:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from carla_policy_tools.driving.latency_grid import evaluate

    columns = (BarColumn(), TextColumn("{task.completed}/{task.total} episodes"), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("", total=len(plan.conditions) * plan.episodes)
        return evaluate(plan, processes, lambda done, total: progress.update(task, completed=done, total=total))


def _write(found: Evaluation, directory: Path) -> list[Path]:
    from carla_policy_tools.driving.latency_plot import plot_latency

    directory.mkdir(parents=True, exist_ok=True)
    content, plot = directory / LATENCY_FILE, directory / "latency.svg"
    content.write_text(json.dumps(found.to_json()))
    plot.write_text(plot_latency(found))
    return [content, plot]


VERBS = (latency,)
