"""The verbs of simulators as services: `carla-policy env`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from carla_policy_tools.console import err, out, print_json
from carla_policy_tools.driving.defaults import ENVIRONMENT
from carla_policy_tools.environment_managing import manage
from carla_policy_tools.options import Json

if TYPE_CHECKING:
    from carla_policy_environment.service.episodes import EnvironmentService

app = typer.Typer(
    no_args_is_help=True, help="Simulators as services, with snapshots: Gymnasium environments and CARLA."
)


@app.command()
def serve(
    simulator: Annotated[str, typer.Option(help="gymnasium or carla.")] = "gymnasium",
    env: Annotated[
        str, typer.Option(help="package.module:callable, file.py:callable, or an id that Gymnasium knows.")
    ] = ENVIRONMENT,
    env_arguments: Annotated[str, typer.Option(help="Arguments of the environment, as a JSON object.")] = "{}",
    config: Annotated[Path | None, typer.Option(help="YAML or JSON file for CARLA: environment/carla.md.")] = None,
    carla_host: Annotated[str | None, typer.Option(help="Where CARLA runs, over the file's.")] = None,
    carla_port: Annotated[int | None, typer.Option(help="Its port, over the file's.", min=1, max=65533)] = None,
    carla_traffic_port: Annotated[
        int | None, typer.Option(help="The Traffic Manager's port, another for each service.", min=1, max=65535)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8090,
    max_steps: Annotated[
        int | None, typer.Option(help="Steps after which an episode is truncated; else the environment decides.", min=1)
    ] = None,
    frame_skip: Annotated[
        int, typer.Option(help="Steps of the simulator for each of the service; rewards are added.", min=1)
    ] = 1,
    time_limit_s: Annotated[
        float, typer.Option(help="Seconds that the simulator may take for one request, 504 beyond them.", min=0.001)
    ] = 60.0,
    snapshot_limit: Annotated[int, typer.Option(help="Snapshots that are kept in memory.", min=1)] = 64,
    as_json: Json = False,
) -> None:
    """Serve one simulator over HTTP and WebSocket: episodes, sessions, snapshots, telemetry; until Ctrl-C.

    Examples: `carla-policy env serve`, `carla-policy env serve --env CartPole-v1 --port 0 --json`,
    `carla-policy env serve --simulator carla --carla-port 2000 --config environment/configs/carla-racetrack.yaml`
    """
    try:
        from carla_policy_environment.service import command
        from carla_policy_environment.service.server import serve as serve_until_ended
        from carla_policy_environment.service.settings import ServiceSettings
        from carla_policy_environment.simulators.base import SimulatorError
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; `pip install ./environment` installs what simulators need") from None

    def ready(url: str, service: EnvironmentService) -> None:
        said = command.announcement(url, service)
        if as_json:
            print_json(said)
        else:
            out.print(command.ready_line(said), markup=False)

    settings = ServiceSettings(
        max_steps=max_steps, frame_skip=frame_skip, time_limit_s=time_limit_s, snapshot_limit=snapshot_limit
    )
    try:
        carla = command.CarlaOptions(config, carla_host, carla_port, carla_traffic_port)
        maker = command.simulator_maker(simulator, env, env_arguments, carla)
        serve_until_ended(maker, settings, host=host, port=port, ready=ready)
    except SimulatorError as error:
        raise OSError(str(error)) from error
    if not as_json:
        err.print("stopped")


app.command()(manage)
