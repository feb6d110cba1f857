"""The verb `carla-policy latency`: what late and lost actions cost a version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carla_policy.version import parse_version
from carla_policy_tools.console import err, out, print_json
from carla_policy_tools.driving.defaults import ENVIRONMENT, FIRST_SEED
from carla_policy_tools.driving.latency_table import Section, remarks_of, sections_of
from carla_policy_tools.options import Json, Registry, Store
from carla_policy_tools.paths import MODEL_STORE, archive_name

if TYPE_CHECKING:
    from carla_policy_tools.driving.latency import Evaluation, Plan


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
    seed: Annotated[int, typer.Option(help="Seed of the first episode.", min=0)] = FIRST_SEED,
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
    ] = ENVIRONMENT,
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
    for section in sections_of(found):
        out.print("\n".join([*lines_of(section), ""]), markup=False)
    for line in remarks_of(found):
        out.print(line, markup=False)
    for path in written:
        out.print(f"wrote {path}", markup=False)


def lines_of(section: Section) -> list[str]:
    """The table as text: as wide as it has to be, since a figure that is cut would be another one."""
    rows = [section.header, *section.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(section.header))]
    sides = ["<" if name == "fallback" else ">" for name in section.header]
    cells = [[f"{value:{side}{width}}" for value, side, width in zip(row, sides, widths, strict=True)] for row in rows]
    return [section.title, *("  ".join(["", *row]).rstrip() for row in cells)]


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
    from carla_policy_tools.driving.report import LATENCY_FILE, write_latency_section

    directory.mkdir(parents=True, exist_ok=True)
    content, plot = directory / LATENCY_FILE, directory / "latency.svg"
    content.write_text(json.dumps(found.to_json()), encoding="utf-8")
    plot.write_text(plot_latency(found), encoding="utf-8")
    return [content, plot, write_latency_section(found, directory)]


VERBS = (latency,)
