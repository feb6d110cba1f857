"""`carla-policy env manage`: several environment services on this machine, kept alive until Ctrl-C."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from carla_policy_tools.console import err, out, print_json
from carla_policy_tools.options import Json
from carla_policy_tools.processes import stop_signals

if TYPE_CHECKING:
    from carla_policy_environment.manager import EnvironmentManager

LOOK_S = 0.2
TELLING = ("state", "reason", "pid", "restarts")
"""What is news where it changes; memory always does."""


def manage(
    services: Annotated[int, typer.Option(help="How many.", min=1, max=1000)] = 1,
    gpus: Annotated[str, typer.Option(help="Given to them in turn, such as 0,0,1; CUDA_VISIBLE_DEVICES of each.")] = "",
    port: Annotated[
        int, typer.Option(help="Port of the first, the others follow; 0 takes free ones.", min=0, max=65535)
    ] = 8090,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    env: Annotated[
        str | None, typer.Option(help="package.module:callable, file.py:callable, or an id that Gymnasium knows.")
    ] = None,
    env_arguments: Annotated[str | None, typer.Option(help="Arguments of the environment, as a JSON object.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Steps after which an episode is truncated.", min=1)] = None,
    frame_skip: Annotated[int, typer.Option(help="Steps of the simulator for each of the service.", min=1)] = 1,
    carla_port: Annotated[
        int | None,
        typer.Option(help="Simulate in CARLA: port of the first simulator, 4 more for each other.", min=1, max=65535),
    ] = None,
    carla_traffic_port: Annotated[
        int, typer.Option(help="CARLA's Traffic Manager of the first service; the others follow.", min=1, max=65535)
    ] = 8000,
    carla_host: Annotated[str | None, typer.Option(help="Where CARLA runs, if not on this machine.")] = None,
    carla_command: Annotated[
        str | None, typer.Option(help="Starts CARLA for each service; {port}, {gpu} and {index} are filled in.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration of the CARLA simulators.")] = None,
    log_dir: Annotated[
        Path | None, typer.Option(help="Directory for what they print; by default a temporary one.")
    ] = None,
    max_memory_mb: Annotated[
        float | None, typer.Option(help="A service that takes more MiB is started again.", min=1)
    ] = None,
    as_json: Json = False,
) -> None:
    """Start several environment services, watch them, and start again those that fail; until Ctrl-C.

    With `--json`, one object a line: the first when all are ready, another whenever something changes.

    Examples: `carla-policy env manage --services 4 --gpus 0,1`,
    `carla-policy env manage --services 2 --carla-port 2000 --carla-command "./CarlaUE4.sh -RenderOffScreen
    -carla-rpc-port={port} -graphicsadapter={gpu}"`
    """
    try:
        from carla_policy_environment.allocation import parse_gpus
        from carla_policy_environment.manager import EnvironmentManager
        from carla_policy_environment.probing import WatchSettings
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; `pip install ./environment` installs what simulators need") from None

    options = ["--frame-skip", str(frame_skip)]
    options += [] if max_steps is None else ["--max-steps", str(max_steps)]
    options += [] if config is None else ["--config", str(config)]
    options += [] if carla_host is None else ["--carla-host", carla_host]
    if carla_port is None and (config, carla_host, carla_command) != (None, None, None):
        raise typer.BadParameter("needed for --config, --carla-host and --carla-command", param_hint="--carla-port")
    manager = EnvironmentManager(
        services,
        env=env,
        env_arguments=None if env_arguments is None else _json_object(env_arguments),
        host=host,
        port=port,
        gpus=parse_gpus(gpus),
        carla_port=carla_port,
        carla_traffic_port=carla_traffic_port,
        carla_command=carla_command,
        service_options=options,
        log_dir=log_dir,
        settings=WatchSettings(max_memory_mb=max_memory_mb),
    )
    stopping = threading.Event()
    with stop_signals(lambda *_: stopping.set()):
        try:
            manager.start()
            _watch(manager, stopping, as_json=as_json)
        finally:
            reports = manager.report()
            manager.stop()
    if not as_json:
        logs = f"; what they printed is in {manager.log_dir}" if manager.log_dir.exists() else ""
        err.print(f"stopped{logs}", markup=False)
    raise typer.Exit(1 if any(report["state"] == "failed" for report in reports) else 0)


def _watch(manager: EnvironmentManager, stopping: threading.Event, *, as_json: bool) -> None:
    """Show how the services are until `stopping`; `OSError` if one cannot be started at all."""
    from rich.live import Live

    told: list[Any] = []
    were_ready = False
    live = Live(console=out, auto_refresh=False) if out.is_terminal and not as_json else None
    if live:
        live.start()
    try:
        while not stopping.wait(LOOK_S):
            reports = manager.report()
            failed = [report for report in reports if report["state"] == "failed"]
            if failed and not were_ready:
                raise OSError(f"service {failed[0]['index']}: {failed[0]['reason']}; its log is {failed[0]['log']}")
            were_ready = were_ready or all(report["state"] == "ready" for report in reports)
            if live:
                live.update(table(reports), refresh=True)
            news = [[report[key] for key in TELLING] for report in reports]
            if were_ready and news != told:
                told = news
                if as_json:
                    print_json({"services": reports})
                elif not live:
                    out.print(table(reports))
    finally:
        if live:
            live.stop()


def table(reports: Sequence[dict[str, Any]]) -> Table:
    """The services, a line each."""
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("service", "address", "state", "GPU", "process", "restarts", "memory", "growth"):
        shown.add_column(heading, no_wrap=True)
    shown.add_column("why")
    for report in reports:
        memory, hourly = report["memory_mb"], report["memory_growth_mb_per_hour"]
        shown.add_row(
            str(report["index"]),
            report["url"],
            report["state"],
            report["gpu"] or "all",
            str(report["pid"] or ""),
            str(report["restarts"]),
            "" if memory is None else f"{memory:.0f} MiB",
            "" if hourly is None else f"{hourly:+.0f} MiB/h",
            report["reason"] or "",
        )
    return shown


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--env-arguments: expected a JSON object: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"--env-arguments: expected a JSON object, got {text}")
    return content
