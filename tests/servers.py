"""Real servers for tests: `carla-policy serve` in a process of its own, on free ports, stopped by its pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import psutil
import requests

from carla_policy_tools.client import prediction_url

EXIT_TIMEOUT_S = 30
COMMAND = [str(Path(sys.executable).with_name("carla-policy"))]


class ServeProcess:
    """A context manager around `carla-policy serve --json`; `ready` is what it printed when it was."""

    def __init__(self, store: Path, *options: str, registry: Path | None = None) -> None:
        """Serves `store` with a registry of its own, unless one is given."""
        self._own = TemporaryDirectory(prefix="carla-policy-test-")
        self.registry = registry or Path(self._own.name, "registry.json")
        where = ["--store", str(store), "--registry", str(self.registry), "--port", "0"]
        self._arguments = [*COMMAND, "serve", *where, "--json", *options]
        self.process: subprocess.Popen[str]
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
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
        self._own.cleanup()

    def stop(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Signal the command; its exit status and what it wrote to standard error."""
        os.kill(self.process.pid, number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        _, error = self.process.communicate(timeout=EXIT_TIMEOUT_S)
        return self.process.returncode, error

    def descendants(self) -> list[psutil.Process]:
        """The server process and its workers."""
        return psutil.Process(self.process.pid).children(recursive=True)

    @property
    def base(self) -> str:
        return str(self.ready["inference"])

    def post(self, version: str | None, body: Any, **headers: str) -> requests.Response:
        """POST `body`, bytes as they are and anything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        all_headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return requests.post(prediction_url(self.base, version), data=data, headers=all_headers, timeout=30)

    def get(self, version: str, resource: str) -> requests.Response:
        return requests.get(f"{prediction_url(self.base, version)}/{resource}", timeout=30)
