"""`EnvironmentManager`: several services on this machine, kept alive, with ports and GPUs of their own."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from carla_policy_environment.allocation import LOOPBACK, Allocation, Slot
from carla_policy_environment.managed_service import ManagedService, Programs
from carla_policy_environment.probing import State, WatchSettings

POLL_S = 0.05
MODULE = "carla_policy_environment.service"


class ServiceFailed(RuntimeError):
    """A service of a manager is not running and will not be started again, or not in time."""


class EnvironmentManager:
    """`services` processes of `python -m carla_policy_environment.service`, started by `start` or `with`.

    `env` and `env_arguments`: what a Gymnasium simulator simulates; by default what the service does by default.
    `port`: the first of their ports, the others follow; 0 takes free ones. `gpus`: those of CUDA_VISIBLE_DEVICES, given
    to the services in turn. `service_options`: further options of every service. `log_dir`: where what they print
    is kept; by default a temporary directory, which stays if a service has failed.

    With a `carla_port` the services simulate in CARLA: service i connects to port `carla_port` + 4 i and has Traffic
    Manager port `carla_traffic_port` + i. `carla_command` starts CARLA itself for each, and ends it; in it `{port}`
    is CARLA's port, `{gpu}` the GPU, `{index}` i. CUDA_VISIBLE_DEVICES does not choose the GPU that CARLA draws with:
    `-graphicsadapter={gpu}` does.

    Services are watched by threads until `stop`. If this process dies, they get SIGTERM from the system (on Linux).
    """

    def __init__(
        self,
        services: int = 1,
        *,
        env: str | None = None,
        env_arguments: Mapping[str, Any] | None = None,
        host: str = LOOPBACK,
        port: int = 0,
        gpus: Sequence[str | int] = (),
        carla_port: int | None = None,
        carla_traffic_port: int = 8000,
        carla_command: str | None = None,
        service_options: Sequence[str] = (),
        log_dir: Path | None = None,
        settings: WatchSettings | None = None,
    ) -> None:
        if carla_command is not None and carla_port is None:
            raise ValueError("carla_command: it needs a carla_port, from which CARLA's ports are counted")
        if carla_port is not None and env is not None:
            raise ValueError("env: CARLA is the environment where there is a carla_port")
        self._count = _checked(services)
        self._allocation = Allocation(port, tuple(map(str, gpus)), carla_port, carla_traffic_port, host)
        self._carla_command = carla_command
        self._options = _simulator_options(env, env_arguments, carla_port) + list(service_options)
        self._settings = settings or WatchSettings()
        if carla_port is not None:
            # CARLA may take longer to come up than a service waits for it.
            self._settings = replace(self._settings, retry_first_start=True)
        self.log_dir = Path(tempfile.mkdtemp(prefix="environment-services-")) if log_dir is None else log_dir
        self._logs_are_temporary = log_dir is None
        self._slots: list[Slot] = []
        self._services: list[ManagedService] = []
        self._lock = threading.RLock()

    def __enter__(self) -> EnvironmentManager:
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def urls(self) -> list[str]:
        """The addresses of the services, as `VectorizedCarlaEnv` takes them; the same as long as this lives."""
        return [service.url for service in self._services]

    def start(self) -> None:
        """Start the services; returns at once. `OSError` names a port that is taken."""
        self.scale(self._count)

    def scale(self, services: int) -> None:
        """Have so many services: the last ones are ended, which returns when they are, or new ones are started."""
        wanted = _checked(services)
        with self._lock:
            self._count = wanted
            self.log_dir.mkdir(parents=True, exist_ok=True)
            while len(self._slots) < wanted:
                self._slots.append(self._allocation.slot(len(self._slots)))
            leaving = self._services[wanted:]
            del self._services[wanted:]
            for slot in self._slots[len(self._services) : wanted]:
                self._services.append(self._make(slot))
                self._services[-1].start()
        _end(leaving)

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Return when all are ready; `ServiceFailed` says why one cannot be, or is not in `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while waiting := [service for service in list(self._services) if service.state is not State.READY]:
            for service in waiting:
                if service.state in (State.FAILED, State.STOPPED):
                    raise ServiceFailed(f"service {service.slot.index}: {service.reason}; its log is {service.log}")
            if deadline is not None and time.monotonic() > deadline:
                told = ", ".join(f"service {service.slot.index} is {service.state.value}" for service in waiting)
                raise ServiceFailed(f"after {timeout:g} s {told}; their logs are in {self.log_dir}")
            time.sleep(POLL_S)

    def report(self) -> list[dict[str, Any]]:
        """State, address, process, GPU, ports, restarts and memory of each service, as JSON."""
        return [service.report() for service in list(self._services)]

    def stop(self) -> None:
        """End all services; returns when none of their processes is left."""
        with self._lock:
            leaving, self._services = self._services, []
        well = not any(service.restarts or service.state is State.FAILED for service in leaving)
        _end(leaving)
        if well and self._logs_are_temporary:
            shutil.rmtree(self.log_dir, ignore_errors=True)

    def _make(self, slot: Slot) -> ManagedService:
        host = self._allocation.host
        program = [sys.executable, "-m", MODULE, "--host", host, "--port", str(slot.port), *self._options]
        companion = None
        if slot.carla_port is not None:
            program += ["--carla-port", str(slot.carla_port), "--carla-traffic-port", str(slot.carla_traffic_port)]
            if self._carla_command is not None:
                companion = [slot.fill(part) for part in shlex.split(self._carla_command)]
        programs = Programs(program, companion, slot.carla_port)
        return ManagedService(slot, programs, host=host, log_dir=self.log_dir, settings=self._settings)


def _checked(services: int) -> int:
    if services < 1:
        raise ValueError(f"services: expected at least 1, got {services}")
    return services


def _simulator_options(env: str | None, arguments: Mapping[str, Any] | None, carla_port: int | None) -> list[str]:
    if carla_port is not None:
        return ["--simulator", "carla"]
    chosen = [] if env is None else ["--env", env]
    return chosen if arguments is None else [*chosen, "--env-arguments", json.dumps(arguments)]


def _end(services: Sequence[ManagedService]) -> None:
    for service in services:
        service.stop()
    for service in services:
        service.join()
