"""`python -m benchmarks.drills NAME`: run a drill and say whether it passed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.archives import FIRST, SECOND, Archives, build_archives
from benchmarks.drills import (
    ailing,
    breaking,
    crashing,
    cycling,
    driving,
    flipping,
    hanging,
    killing,
    operating,
    overloading,
    soaking,
    stopping,
)
from benchmarks.drills.damage import KINDS
from benchmarks.drills.growth_plot import check_plot
from benchmarks.drills.report import Report
from benchmarks.load import PACE, Pace
from carla_policy_tools.console import err, print_json
from carla_policy_tools.driving.defaults import ENVIRONMENT
from carla_policy_tools.driving.session import Plan
from carla_policy_tools.options import Json

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)

Rate = Annotated[float, typer.Option(help="Requests a second.", min=1)]
Timeout = Annotated[float, typer.Option(help="Seconds after which a request counts as lost.", min=0.1)]
Quiet = Annotated[float, typer.Option(help="Seconds without faults, to compare with.", min=0)]
Seed = Annotated[int, typer.Option(help="Of the random choices.", min=0)]


def _drawable(path: Path | None) -> Path | None:
    try:
        if path:
            check_plot(path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return path


@app.callback()
def _root() -> None:
    """Fault drills: a real server under load, things go wrong, and what became of every request is counted.

    Each drill builds archives of the shipped artifacts and starts its own server on free ports with a store and a
    registry in a temporary directory. It exits with 0 only if it passed.

    Example: `carla-policy drill workers --kills 5`
    """


@app.command()
def cycles(
    cycles: Annotated[int, typer.Option(help="How often.", min=1)] = 100,
    rate: Rate = PACE.rate,
    timeout: Timeout = PACE.timeout_s,
    quiet: Quiet = 15.0,
    as_json: Json = False,
) -> None:
    """Register, promote, roll back and retire a second version, again and again, under load.

    Example: `python -m benchmarks.drills cycles --cycles 10`
    """
    pace = Pace(rate, timeout_s=timeout)
    _run(lambda archives: cycling.run(archives, cycles=cycles, pace=pace, quiet_s=quiet), as_json)


@app.command()
def flips(
    flips: Annotated[int, typer.Option(help="How many promotions.", min=1)] = 1000,
    commands: Annotated[int, typer.Option(help="How many of them as commands; the others in process.", min=0)] = 50,
    rate: Rate = PACE.rate,
    timeout: Timeout = PACE.timeout_s,
    quiet: Quiet = 5.0,
    as_json: Json = False,
) -> None:
    """Promote two versions turn by turn under load; each promotion must take effect at once.

    Example: `python -m benchmarks.drills flips --flips 100 --commands 10`
    """
    pace = Pace(rate, timeout_s=timeout)
    _run(lambda archives: flipping.run(archives, flips=flips, commands=commands, pace=pace, quiet_s=quiet), as_json)


@app.command()
def kills(
    kills: Annotated[int, typer.Option(help="How many points in time.", min=1)] = 36,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Kill -9 commands, the server and `serve` at random moments; the next start must find everything in order.

    Example: `python -m benchmarks.drills kills --kills 12 --seed 7`
    """
    _run(lambda archives: killing.run(archives, kills=kills, seed=seed), as_json)


@app.command()
def workers(
    kills: Annotated[int, typer.Option(help="How many.", min=1)] = 20,
    interval: Annotated[float, typer.Option(help="Seconds between them.", min=0)] = 10.0,
    seed: Seed = 0,
    rate: Rate = PACE.rate,
    timeout: Timeout = PACE.timeout_s,
    quiet: Quiet = 5.0,
    as_json: Json = False,
) -> None:
    """Kill -9 workers of the promoted version, which has two, under load; each may take its batch with it, no more.

    Example: `python -m benchmarks.drills workers --kills 3`
    """
    pace = Pace(rate, timeout_s=timeout)
    _run(
        lambda archives: crashing.run(archives, kills=kills, interval_s=interval, seed=seed, pace=pace, quiet_s=quiet),
        as_json,
        [FIRST],
    )


@app.command()
def hang(
    hangs: Annotated[int, typer.Option(help="How many.", min=1)] = 10,
    interval: Annotated[float, typer.Option(help="Seconds between them.", min=0)] = 12.0,
    rate: Rate = hanging.PACE.rate,
    timeout: Timeout = hanging.PACE.timeout_s,
    quiet: Quiet = 5.0,
    as_json: Json = False,
) -> None:
    """Let the network of a version with a deadline hang under load; everybody must be answered in time all the same.

    Example: `python -m benchmarks.drills hang --hangs 3`
    """
    pace = Pace(rate, timeout_s=timeout)
    _run(
        lambda archives: hanging.run(archives, hangs=hangs, interval_s=interval, pace=pace, quiet_s=quiet),
        as_json,
        [SECOND],
    )


@app.command()
def overload(
    factor: Annotated[float, typer.Option(help="Times what the version can carry.", min=1)] = 10.0,
    seconds: Annotated[float, typer.Option(help="How long.", min=0)] = 60.0,
    timeout: Timeout = 30.0,
    quiet: Quiet = 5.0,
    as_json: Json = False,
) -> None:
    """Send ten times what a slow version can carry; the surplus must be refused at once, and leave nothing behind.

    Example: `python -m benchmarks.drills overload --seconds 10`
    """
    _run(
        lambda archives: overloading.run(archives, factor=factor, seconds=seconds, quiet_s=quiet, timeout_s=timeout),
        as_json,
        [SECOND],
    )


@app.command()
def soak(
    requests: Annotated[int, typer.Option(help="How many.", min=soaking.ROUNDS)] = 1_000_000,
    bad_share: Annotated[float, typer.Option(help="Share of malformed requests.", min=0, max=1)] = 0.0,
    leak: Annotated[
        bool, typer.Option("--leak", help="Serve a version that leaks memory: the drill must fail.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw what grew to this file: .svg, .png or .pdf.", callback=_drawable)
    ] = None,
    as_json: Json = False,
) -> None:
    """Send very many requests; memory, open files, logs and disk of the server may not grow with them.

    Example: `python -m benchmarks.drills soak --requests 100000 --bad-share 0.05 --plot runs/soak.svg`
    """

    def drill(archives: Archives) -> Report:
        return soaking.run(archives, requests=requests, bad_share=bad_share, leak=leak, plot=plot)

    _run(drill, as_json, [SECOND])


@app.command()
def broken(
    kind: Annotated[list[str] | None, typer.Option(help="Only this kind of damage; all by default.")] = None,
    rate: Rate = PACE.rate,
    timeout: Timeout = PACE.timeout_s,
    quiet: Quiet = 5.0,
    as_json: Json = False,
) -> None:
    """Register versions that cannot be served; each must be refused with its reason, in time, and unnoticed.

    Example: `python -m benchmarks.drills broken --kind "hangs in handle"`
    """
    kinds = tuple(kind or KINDS)
    if unknown := set(kinds) - set(KINDS):
        raise typer.BadParameter(f"{', '.join(unknown)}: expected one of {', '.join(KINDS)}")
    pace = Pace(rate, timeout_s=timeout)
    _run(lambda archives: breaking.run(archives, kinds=kinds, pace=pace, quiet_s=quiet), as_json, [FIRST])


@app.command()
def operators(
    operators: Annotated[int, typer.Option(help="How many at once.", min=1)] = 16,
    seconds: Annotated[float, typer.Option(help="How long they begin new commands.", min=0)] = 60.0,
    seed: Seed = 0,
    rate: Rate = operating.PACE.rate,
    timeout: Timeout = operating.PACE.timeout_s,
    quiet: Quiet = 5.0,
    as_json: Json = False,
) -> None:
    """Let many operators change four versions at once; what is left must be what the history says.

    Example: `python -m benchmarks.drills operators --operators 4 --seconds 20`
    """
    pace = Pace(rate, timeout_s=timeout)
    _run(
        lambda archives: operating.run(
            archives, operators=operators, seconds=seconds, seed=seed, pace=pace, quiet_s=quiet
        ),
        as_json,
        operating.VERSIONS,
    )


@app.command()
def stop(rate: Rate = PACE.rate, timeout: Timeout = PACE.timeout_s, quiet: Quiet = 5.0, as_json: Json = False) -> None:
    """Stop servers under load by SIGTERM and SIGINT; what was sent before must be answered, what comes later refused.

    Example: `python -m benchmarks.drills stop --rate 100`
    """
    _run(lambda archives: stopping.run(archives, pace=Pace(rate, timeout_s=timeout), quiet_s=quiet), as_json)


@app.command()
def health(
    rounds: Annotated[int, typer.Option(help="How often each fault.", min=1)] = 3, as_json: Json = False
) -> None:
    """Kill and stop workers, start anew; `/readyz` and `carla-policy health` must notice, and never be green too early.

    Example: `python -m benchmarks.drills health`
    """
    _run(lambda archives: ailing.run(archives, rounds=rounds), as_json)


@app.command()
def drive(
    env: Annotated[str, typer.Option(help="Gymnasium environment to drive in.")] = ENVIRONMENT,
    env_arguments: Annotated[str, typer.Option(help="Its arguments, as a JSON object.")] = "{}",
    hz: Annotated[float | None, typer.Option(help="Steps a second; the environment's own by default.", min=1)] = None,
    deadline: Annotated[float, typer.Option(help="Milliseconds until the fallback acts.", min=1)] = 50.0,
    fallback: Annotated[str, typer.Option(help="brake, hold[:SECONDS] or decay[:SECONDS].")] = "brake",
    seconds: Annotated[float, typer.Option(help="How long each fault lasts.", min=0)] = 2.0,
    as_json: Json = False,
) -> None:
    """Drive in real time while the server is killed, frozen, cut off, garbled and late; the vehicle must not notice.

    Example: `python -m benchmarks.drills drive --seconds 1`
    """
    plan = Plan(
        "",
        environment=env,
        environment_arguments=env_arguments,
        period_s=1 / hz if hz else 0.0,
        deadline_s=deadline / 1e3,
        fallback=fallback,
    )
    _run(lambda archives: driving.run(archives, plan, seconds=seconds), as_json, [FIRST])


def _run(drill: Callable[[Archives], Report], as_json: bool, versions: Sequence[str] = (FIRST, SECOND)) -> None:
    with tempfile.TemporaryDirectory(prefix="drill-archives-") as directory:
        with err.status("building archives"):
            archives = build_archives(Path(directory), versions)
        with err.status("drilling"):
            report = drill(archives)
    if as_json:
        print_json(report.to_json())
    else:
        report.print()
    raise typer.Exit(0 if report.passed else 1)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.drills")
