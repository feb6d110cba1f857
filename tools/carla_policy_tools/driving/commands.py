"""The verb that drives: `carla-policy drive`. What it needs is imported when it runs."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carla_policy.version import parse_version
from carla_policy_tools.asked_server import KeyFile, Url, asked_server
from carla_policy_tools.console import err, out, print_json
from carla_policy_tools.driving.defaults import DEADLINE_S, ENVIRONMENT, FIRST_SEED
from carla_policy_tools.options import Json, Registry, Store
from carla_policy_tools.paths import MODEL_STORE, PROJECT
from carla_policy_tools.processes import stop_signals

if TYPE_CHECKING:
    from carla_policy.card import ModelCard
    from carla_policy_tools.driving.records import Drive, Episode

OUTPUT = PROJECT / "runs" / "drive"
DRIVE_FILE, REPORT_FILE = "drive.json", "report.html"
_FOR_REPORT = {"jinja2": "jinja2", "matplotlib": "matplotlib", "PIL": "pillow"}


def drive(
    version: Annotated[str | None, typer.Argument(help="Version to drive; the promoted one by default.")] = None,
    url: Url = None,
    env: Annotated[
        str, typer.Option(help="Gymnasium environment: `id`, `module:id` or `module:callable`.")
    ] = ENVIRONMENT,
    env_arguments: Annotated[str, typer.Option(help="Arguments of the environment, as a JSON object.")] = "{}",
    episodes: Annotated[int, typer.Option(help="How many.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="Of the first episode; the next has the next.", min=0)] = FIRST_SEED,
    realtime: Annotated[
        bool, typer.Option("--realtime/--fast", help="A step takes as long as it simulates, or as short as it can.")
    ] = False,
    hz: Annotated[
        float | None, typer.Option(help="In real time: so many steps a second, whatever they simulate.")
    ] = None,
    deadline: Annotated[float, typer.Option(help="Milliseconds until the fallback acts.")] = 1e3 * DEADLINE_S,
    fallback: Annotated[
        str, typer.Option(help="brake, hold[:SECONDS] or decay[:SECONDS]: what the vehicle does without an answer.")
    ] = "brake",
    latency: Annotated[str, typer.Option(help="Milliseconds to add to answers, or from:to.", metavar="MS[:MS]")] = "0",
    loss: Annotated[float, typer.Option(help="Percent of answers to lose.")] = 0.0,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Sample actions, seeded, instead of taking the mode.")
    ] = False,
    max_steps: Annotated[int | None, typer.Option(help="Cut episodes after so many steps.", min=1)] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Report returns to the server.")] = True,
    filmstrip: Annotated[
        bool,
        typer.Option("--filmstrip", help="Pictures of the worst and the best episode, which are driven again."),
    ] = False,
    video: Annotated[bool, typer.Option("--video", help="As --filmstrip, as a short video.")] = False,
    output: Annotated[Path, typer.Option("--out", help=f"Directory for {DRIVE_FILE} and {REPORT_FILE}.")] = OUTPUT,
    key_file: KeyFile = None,
    store: Store = MODEL_STORE,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Drive episodes with a served version through the vehicle's client, and tell how it went.

    Examples: `carla-policy drive`, `carla-policy drive v0.3.0 --episodes 10 --realtime`,
    `carla-policy drive --hz 20 --deadline 30 --latency 5:40 --loss 5 --fallback hold:0.5`,
    `carla-policy drive --env my_package.envs:make_env --env-arguments '{"town": "Town03"}'`
    """
    asked = str(parse_version(version)) if version else None
    period_s = _period_s(realtime, hz)
    deadline_s = _deadline_s(deadline)
    latency_s, lost = _latency_s(latency), _loss(loss)
    _check_fallback(fallback)
    missing = [name for module, name in _FOR_REPORT.items() if importlib.util.find_spec(module) is None]
    if missing and (filmstrip or video):
        raise ValueError(f"--filmstrip and --video need {', '.join(missing)}: run `make simulator`")
    from carla_policy_tools.driving.link import Conditions
    from carla_policy_tools.driving.session import Plan, Session

    server = asked_server(url, key_file, store, registry)
    conditions = Conditions(latency_s, lost) if latency_s[1] or lost else None
    plan = Plan(
        url=server.url,
        version=asked,
        auth=server.auth,
        environment=env,
        environment_arguments=env_arguments,
        episodes=episodes,
        seed=seed,
        max_steps=max_steps,
        period_s=period_s,
        deadline_s=deadline_s,
        fallback=fallback,
        conditions=conditions,
        deterministic=not stochastic,
        reports_returns=report,
    )
    with Session(plan) as session:
        period_s = session.drive.settings.period_s
        if period_s is not None and deadline_s > period_s:
            err.print(
                f"warning: --deadline {deadline:g} ms is longer than the period of {period_s * 1e3:g} ms: a step that "
                "waits for it is late",
                markup=False,
            )
        try:
            with _stopping() as is_stopping, _progress(episodes, max_steps) as on_step:
                session.run(on_step, is_stopping)
        finally:
            _write(session.drive, output)
        driven, card = session.drive, session.card
    unfilmed = ""
    if driven.episodes and (filmstrip or video):
        try:
            _film(driven, card, output, filmstrip=filmstrip, video=video)
        except ValueError as error:  # an environment that does not render: the drive counts all the same
            unfilmed = f"no pictures: {error}"
    if not missing:
        from carla_policy_tools.driving.report import write_report

        write_report(driven, output)
    _tell(driven, output, [DRIVE_FILE] if missing else [DRIVE_FILE, REPORT_FILE], as_json)
    unreported = f"no {REPORT_FILE}: it needs {', '.join(missing)}; run `make simulator`" if missing else ""
    stopped = f"stopped in episode {len(driven.episodes)} of {episodes}" if driven.stopped else ""
    for problem in filter(None, (unreported, unfilmed, stopped)):
        err.print(problem, markup=False)
    raise typer.Exit(1 if unfilmed or stopped else 0)


def _period_s(realtime: bool, hz: float | None) -> float | None:
    """0 for that of the environment."""
    if hz is None:
        return 0.0 if realtime else None
    if not 0.1 <= hz <= 1000:
        raise typer.BadParameter(f"expected 0.1 to 1000, got {hz:g}", param_hint="--hz")
    return 1 / hz


def _deadline_s(milliseconds: float) -> float:
    if not 0 < milliseconds <= 60_000:
        raise typer.BadParameter(
            f"expected milliseconds above 0, up to 60000, got {milliseconds:g}", param_hint="--deadline"
        )
    return milliseconds / 1e3


def _latency_s(text: str) -> tuple[float, float]:
    low, colon, high = text.partition(":")
    try:
        values = (float(low) / 1e3, float(high if colon else low) / 1e3)
    except ValueError:
        values = (math.nan, math.nan)
    if not 0 <= values[0] <= values[1] <= 60:
        raise typer.BadParameter(
            f"expected milliseconds, such as 20 or 10:40, got {text!r:.40}", param_hint="--latency"
        )
    return values


def _loss(percent: float) -> float:
    if not 0 <= percent <= 100:
        raise typer.BadParameter(f"expected percent from 0 to 100, got {percent:g}", param_hint="--loss")
    return percent / 100


def _check_fallback(name: str) -> None:
    from carla_policy_tools.driving.strategies import client_fallback

    try:
        client_fallback(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--fallback") from None


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end the drive after the step that is under way; a second one ends it at once."""
    asked: list[int] = []

    def stop(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    with stop_signals(stop):
        yield lambda: bool(asked)


@contextmanager
def _progress(episodes: int, max_steps: int | None) -> Iterator[Callable[[Episode], None]]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    misses = total = 0.0
    with Progress(*columns, console=err, transient=True, refresh_per_second=4) as progress:
        task = progress.add_task("starting", total=episodes)

        def on_step(episode: Episode) -> None:
            nonlocal misses, total
            step = episode.steps[-1]
            total = step.reward + (total if len(episode.steps) > 1 else 0.0)
            misses += step.answer.source == "fallback"
            of = f" of {max_steps}" if max_steps else ""
            text = f"step {len(episode.steps)}{of}, return {total:.1f}, {misses:.0f} steps without an answer"
            progress.update(task, description=text, completed=episode.number + bool(episode.ending))

        yield on_step


def _write(driven: Drive, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / DRIVE_FILE).write_text(json.dumps(driven.to_json(), allow_nan=False))


def _film(driven: Drive, card: ModelCard, output: Path, *, filmstrip: bool, video: bool) -> None:
    from carla_policy_tools.driving.film import film_drive, write_films

    with err.status("filming"):
        films = film_drive(card, driven)
    for one in films:
        if not one.complete:
            err.print(f"episode {one.episode}: filmed as far as the environment does again what it did", markup=False)
    write_films(films, output, filmstrip=filmstrip, video=video)


def _tell(driven: Drive, output: Path, written: Sequence[str], as_json: bool) -> None:
    if as_json:
        content = {name: value for name, value in driven.to_json().items() if name not in ("episodes", "notes")}
        content["episodes"] = [_figures(episode) for episode in driven.episodes]
        print_json({**content, "output": str(output)})
        return
    from carla_policy_tools.driving.printing import print_drive

    print_drive(driven)
    out.print(f"{' and '.join(written)} in {output}", markup=False)


def _figures(episode: Episode) -> dict[str, Any]:
    """An episode without its steps."""
    told = {"number": episode.number, "seed": episode.seed, "ending": episode.ending}
    return {**told, "return": episode.total_return, "length": len(episode.steps)}


VERBS = (drive,)
