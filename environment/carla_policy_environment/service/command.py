"""The options of a service on the command line, and what it prints when it is ready."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carla_policy_environment.service.episodes import EnvironmentService
from carla_policy_environment.service.server import serve
from carla_policy_environment.service.settings import ServiceSettings
from carla_policy_environment.simulators.base import Simulator, SimulatorError
from carla_policy_environment.simulators.carla import configured, make_simulator
from carla_policy_environment.simulators.gymnasium_simulator import GymnasiumSimulator
from carla_policy_environment.simulators.making import make_environment

SIMULATORS = ("gymnasium", "carla")
DEFAULT_ENVIRONMENT = "examples.racetrack.driving_env:DrivingEnv"


@dataclass(frozen=True)
class CarlaOptions:
    """The options that are for CARLA alone; `None` leaves each to the file, or else to its default."""

    config: Path | None = None
    host: str | None = None
    port: int | None = None
    traffic_port: int | None = None


def simulator_maker(
    simulator: str, environment: str, arguments_json: str, carla: CarlaOptions | None = None
) -> Callable[[], Simulator]:
    """What makes the simulator that the options name; `ValueError` names the option that is wrong."""
    carla = carla or CarlaOptions()
    if simulator == "carla":
        config = configured(carla.config, host=carla.host, port=carla.port, traffic_port=carla.traffic_port)
        return lambda: make_simulator(config)
    if carla != CarlaOptions():
        raise ValueError("--config, --carla-host, --carla-port and --carla-traffic-port are for --simulator carla")
    if simulator not in SIMULATORS:
        raise ValueError(f"--simulator: expected {' or '.join(SIMULATORS)}, got {simulator}")
    try:
        arguments = json.loads(arguments_json)
    except json.JSONDecodeError as error:
        raise ValueError(f"--env-arguments: expected a JSON object: {error}") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"--env-arguments: expected a JSON object, got {arguments_json}")
    return lambda: GymnasiumSimulator(lambda: make_environment(environment, arguments), environment)


def announcement(url: str, service: EnvironmentService) -> dict[str, Any]:
    """What a service says when it is ready."""
    simulator = service.simulator
    return {"url": url, "simulator": simulator.name, "environment": simulator.environment, "pid": os.getpid()}


def ready_line(said: dict[str, Any]) -> str:
    """The announcement for people."""
    return f"{said['environment']} is served at {said['url']}; its interface is at {said['url']}/docs, Ctrl-C ends it"


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM: 0; 1 with a one-line reason if that cannot be."""
    options = _parser().parse_args(arguments)

    def ready(url: str, service: EnvironmentService) -> None:
        said = announcement(url, service)
        print(json.dumps(said) if options.json else ready_line(said), flush=True)

    try:
        settings = ServiceSettings(
            max_steps=options.max_steps,
            frame_skip=options.frame_skip,
            time_limit_s=options.time_limit_s,
            snapshot_limit=options.snapshot_limit,
        )
        carla = CarlaOptions(options.config, options.carla_host, options.carla_port, options.carla_traffic_port)
        maker = simulator_maker(options.simulator, options.env, options.env_arguments, carla)
        serve(maker, settings, host=options.host, port=options.port, ready=ready)
    except (OSError, ValueError, SimulatorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m carla_policy_environment.service", description=__doc__)
    parser.add_argument("--simulator", choices=SIMULATORS, default="gymnasium")
    parser.add_argument(
        "--env", default=DEFAULT_ENVIRONMENT, help="module:callable, file.py:callable, or a Gymnasium id"
    )
    parser.add_argument("--env-arguments", default="{}", help="a JSON object for what makes the environment")
    parser.add_argument("--config", type=Path, help="YAML or JSON file for CARLA, see environment/carla.md")
    parser.add_argument("--carla-host", help="where CARLA runs, over the file's")
    parser.add_argument("--carla-port", type=int, help="its port, over the file's")
    parser.add_argument("--carla-traffic-port", type=int, help="the Traffic Manager's port, one for each service")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090, help="0 takes a free one")
    parser.add_argument("--max-steps", type=int, help="episodes are truncated after so many; else by the environment")
    parser.add_argument("--frame-skip", type=int, default=1, help="steps of the simulator for one of the service")
    parser.add_argument("--time-limit-s", type=float, default=60.0, help="seconds that a step or reset may take")
    parser.add_argument("--snapshot-limit", type=int, default=64, help="snapshots that are kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object when ready")
    return parser
