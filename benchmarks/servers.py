"""A real server: `carla-policy serve` in a process of its own, on free ports, stopped by its pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from typing_extensions import Self

from carla_policy_tools.configuration import Profile
from carla_policy_tools.lifecycle.registry import REGISTRY_FILE
from carla_policy_tools.ports import Ports
from carla_policy_tools.torchserve import TorchServe
from carla_policy_tools.workers.preloading import ForkServer

EXIT_TIMEOUT_S = 30
COMMAND = [str(Path(sys.executable).with_name("carla-policy"))]


@contextmanager
def loaded_torchserve(
    settings: Mapping[str, str],
    ports: Ports,
    run_dir: Path,
    *,
    version: str,
    profile: Profile,
    java_flags: Sequence[str] | None = None,
) -> Iterator[TorchServe]:
    """TorchServe with these properties, started by this process as `carla-policy serve` does, once `version` is loaded.

    Raises `ServerError`. `java_flags` stand in place of those that use the ahead-of-time cache.
    """
    with (
        ForkServer() as workers,
        TorchServe(
            settings, ports, run_dir, heap_mb=profile.jvm_heap_mb, workers=workers, java_flags=java_flags
        ) as server,
    ):
        server.configure()
        server.wait_ready({version: profile.workers}, profile.startup_timeout_s)
        yield server


class ServeProcess:
    """A context manager around `carla-policy serve --json`; `ready` is what it printed when it was.

    The registry is the store's own unless one is given. `environment` is set on top of this process's own. Raises
    `AssertionError` with the server's own words if it does not become ready.
    """

    def __init__(
        self,
        store: Path,
        *options: str,
        registry: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.registry = registry or store / REGISTRY_FILE
        where = ["--store", str(store), "--registry", str(self.registry), "--port", "0"]
        self._arguments = [*COMMAND, "serve", *where, "--json", *options]
        self._environment = {**os.environ, **(environment or {})}
        self.process: subprocess.Popen[str]
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=self._environment,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, error = self.process.communicate(timeout=EXIT_TIMEOUT_S)
            raise AssertionError(f"the server did not become ready: status {self.process.returncode}: {error}")
        self.ready = json.loads(line)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.stop()

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Signal the command; its exit status and what it wrote to standard error."""
        os.kill(self.process.pid, number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        _, error = self.process.communicate(timeout=EXIT_TIMEOUT_S)
        return self.process.returncode, error

    def descendants(self) -> list[psutil.Process]:
        """The server process and its workers."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    @property
    def base(self) -> str:
        return str(self.ready["inference"])
