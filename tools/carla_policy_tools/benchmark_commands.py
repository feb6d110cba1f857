"""The verbs that measure and drill: `carla-policy bench` and `drill`. What they need is imported when they run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carla_policy_tools.console import err, out, print_json
from carla_policy_tools.options import Json
from carla_policy_tools.paths import ARTIFACTS, PROJECT
from carla_policy_tools.processes import stop_signals

if TYPE_CHECKING:
    from benchmarks.bench.comparison import Change
    from benchmarks.bench.results import Results
    from benchmarks.bench.slo import Verdict

OUTPUT = PROJECT / "runs" / "bench"
BASELINE = OUTPUT / "baseline.json"
_NEEDED = ("jinja2", "matplotlib", "psutil")
DRILL_SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True}
"""Options and `--help` are the drills' own."""


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="About a minute: the main ratios only.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="This section, and others named so: starts, rounds, arrivals, bulk, sweeps, runtimes."),
    ] = None,
    contender: Annotated[list[str] | None, typer.Option(help="This contender, and others named so; else all.")] = None,
    artifact: Annotated[Path, typer.Option(help="The artifact that all serve.")] = ARTIFACTS / "v0.2.0",
    output: Annotated[Path, typer.Option(help="Directory for results.json and report.html.")] = OUTPUT,
    show: Annotated[Path | None, typer.Option(help="Measure nothing: judge, compare and report these results.")] = None,
    slo: Annotated[Path | None, typer.Option(help="Goals; benchmarks/slo.yaml by default.")] = None,
    save_baseline: Annotated[bool, typer.Option("--save-baseline", help="Keep the results as the baseline.")] = False,
    compare_baseline: Annotated[
        bool, typer.Option("--compare-baseline", help="Fail where a figure is worse than the baseline's.")
    ] = False,
    baseline: Annotated[Path, typer.Option(help="The baseline's file.")] = BASELINE,
    threshold: Annotated[float, typer.Option(help="Percent by which a figure may be worse.", min=0)] = 10.0,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Compare the figures themselves, not ratios to the other contenders.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure our server side by side with others of the same policy, in ten minutes; exit 1 where a goal is missed.

    Examples: `carla-policy bench --quick`, `carla-policy bench --only bulk`,
    `carla-policy bench --compare-baseline --threshold 10`
    """
    require_extra()
    from benchmarks.bench.comparison import compare
    from benchmarks.bench.report import render
    from benchmarks.bench.results import load_results
    from benchmarks.bench.slo import SLO_FILE, judge, load_objectives

    objectives = load_objectives(slo or SLO_FILE)
    before = load_results(baseline) if compare_baseline else None
    results = load_results(show) if show else _measure(quick, only or [], contender or [], artifact)
    verdicts = judge(results, objectives)
    changes = compare(before, results, absolute=absolute) if before else []
    output.mkdir(parents=True, exist_ok=True)
    if show is None:
        (output / "results.json").write_text(results.model_dump_json())
    (output / "report.html").write_text(render(results, verdicts, changes, threshold))
    problems = _problems(results, verdicts, changes, threshold)
    if save_baseline:
        baseline.parent.mkdir(parents=True, exist_ok=True)
        baseline.write_text(results.model_dump_json())
    if as_json:
        judged = [verdict.model_dump(mode="json") for verdict in verdicts]
        compared = [change.model_dump(mode="json") for change in changes]
        print_json({"output": str(output), "verdicts": judged, "changes": compared, "problems": problems})
    else:
        _print(verdicts, problems, output)
    raise typer.Exit(1 if problems else 0)


def drill(context: typer.Context) -> None:
    """Fault drills: a real server under load, things go wrong, and every request is counted; `--help` lists them.

    Example: `carla-policy drill stop --json`
    """
    from benchmarks.drills.__main__ import app

    app(args=context.args, prog_name="carla-policy drill")


def require_extra() -> None:
    """`ValueError` says how to install what the benchmark needs."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(f"bench needs {', '.join(missing)}: run `make bench`, or pip install -e '.[bench]'")


def _measure(quick: bool, sections: list[str], contenders: list[str], artifact: Path) -> Results:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from benchmarks.bench.plan import SECTIONS, Plan, quick_plan
    from benchmarks.bench.running import run

    if quick:
        plan = quick_plan(sections or ("rounds",), contenders)
    else:
        plan = Plan(sections=sections or SECTIONS, contenders=contenders)
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with stop_signals(_interrupt), Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("preparing", total=plan.steps())
        return run(plan, artifact, lambda step: progress.update(task, advance=1, description=step))


def _interrupt(*_: object) -> None:
    """Leave all contenders in order, whatever signal it was."""
    raise KeyboardInterrupt


def _problems(results: Results, verdicts: list[Verdict], changes: list[Change], threshold: float) -> list[str]:
    """Why the exit status is not 0: what went wrong, was refused, has missed a goal, or is worse than the baseline."""
    refused = [one for one in results.participants if one.refused and one.name.startswith("ours-")]
    missed = [verdict for verdict in verdicts if verdict.outcome == "missed"]
    worse = [change for change in changes if change.is_worse(threshold)]
    return [
        *(f"{section} ended early: {reason}" for section, reason in results.incomplete.items()),
        *(f"wrong or missing answers: {line}" for line in results.invalid),
        *(f"{one.name} was not measured: {one.refused}" for one in refused),
        *(
            f"{goal.of}, {goal.name}: {verdict.found.value:.3g}, expected {goal.limit}"
            for verdict in missed
            if (goal := verdict.objective) and verdict.found
        ),
        *(
            f"{change.of}, {change.figure}{f' against {change.against}' if change.against else ''}: "
            f"{change.percent:.1f} % worse than the baseline"
            for change in worse
        ),
    ]


def _print(verdicts: list[Verdict], problems: list[str], output: Path) -> None:
    from rich.table import Table

    table = Table("source", "goal", "of", "limit", "found", "interval", "", box=None)
    for verdict in verdicts:
        found, goal = verdict.found, verdict.objective
        figures = (f"{found.value:,.3g}", f"{found.low:,.3g} to {found.high:,.3g}") if found else ("", "")
        outcome = verdict.outcome + (", not certain" if found and not verdict.certain else "")
        table.add_row(goal.source, goal.name, goal.of, goal.limit, *figures, outcome)
    out.print(table)
    for problem in problems:
        out.print(f"  FAILED {problem}", markup=False)
    out.print(f"report: {output / 'report.html'}", markup=False)


VERBS = (bench, drill)
