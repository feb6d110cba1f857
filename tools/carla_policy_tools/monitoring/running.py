"""Prometheus and Alertmanager as processes on this machine, with the project's configuration and their own addresses.

The configuration is copied, and only the files of targets in it are written anew.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import requests
from typing_extensions import Self

from carla_policy_tools.addresses import LOOPBACK
from carla_policy_tools.monitoring.programs import MonitoringError, find_installed
from carla_policy_tools.paths import CONFIG
from carla_policy_tools.processes import END_WITH_PARENT

PROMETHEUS_PORT, ALERTMANAGER_PORT = 9090, 9093
START_TIMEOUT_S, STOP_TIMEOUT_S = 60, 20
_POLL_S = 0.1
_LAST_LINES = 5


def copy_configuration(directory: Path, targets: Mapping[str, str]) -> Path:
    """Put what Prometheus reads into `directory`, with these addresses as `targets/<name>.yml`; where its file is.

    A name without an address has no target.
    """
    directory.mkdir(parents=True, exist_ok=True)
    source = CONFIG / "prometheus"
    shutil.copy(source / "prometheus.yml", directory)
    shutil.copytree(source / "rules", directory / "rules", dirs_exist_ok=True)
    (directory / "targets").mkdir(exist_ok=True)
    for file in (source / "targets").glob("*.yml"):
        address = targets.get(file.stem)
        (directory / "targets" / file.name).write_text(f'- targets: ["{address}"]\n' if address else "[]\n")
    return directory / "prometheus.yml"


class Service:
    """A program that is ready when it says so over HTTP. Use as a context manager; leaving it ends the program.

    Raises `MonitoringError` with the program's last words if it does not become ready.
    """

    def __init__(self, name: str, arguments: Sequence[str], *, port: int, log: Path) -> None:
        self._name = name
        self._arguments = arguments
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"{LOOPBACK}:{port}"
        self.url = f"http://{self.address}"

    def __enter__(self) -> Self:
        command, environment = find_installed(self._name)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *self._arguments, f"--web.listen-address={self.address}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=END_WITH_PARENT,
            )
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the program, which then has written its data."""
        process, self._process = self._process, None
        if process is None:
            return
        # The whole group: PRoot, where there is one, ends with the program that it runs, and does not pass signals on.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def check(self) -> None:
        """`MonitoringError` if the program has ended."""
        if self._process is None or self._process.poll() is not None:
            words = "\n".join(self._log.read_text(errors="replace").splitlines()[-_LAST_LINES:])
            raise MonitoringError(f"{self._name} has ended:\n{words}")

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self.check()
            try:
                if requests.get(f"{self.url}/-/ready", timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            if time.monotonic() > deadline:
                raise MonitoringError(f"{self._name} is not ready after {START_TIMEOUT_S} s; see {self._log}")
            time.sleep(_POLL_S)


class Prometheus(Service):
    """With the configuration in the file `configuration`, and its data and log in `directory`."""

    def __init__(self, configuration: Path, directory: Path, *, port: int) -> None:
        arguments = [f"--config.file={configuration}", f"--storage.tsdb.path={directory / 'data'}"]
        super().__init__("prometheus", arguments, port=port, log=directory / "prometheus.log")


class Alertmanager(Service):
    """With the configuration in the file `configuration`, and its data and log in `directory`."""

    def __init__(self, configuration: Path, directory: Path, *, port: int) -> None:
        arguments = [f"--config.file={configuration}", f"--storage.path={directory / 'data'}"]
        # It is alone: no gossip with others, for which it would listen on all addresses.
        arguments += ["--cluster.listen-address="]
        super().__init__("prometheus-alertmanager", arguments, port=port, log=directory / "alertmanager.log")


def answers(address: str) -> bool:
    """Whether something listens at `address`, `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:
        return False
