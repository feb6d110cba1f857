"""Real servers for tests: what the drills use, with a registry of their own, and requests of any content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import requests
from typing_extensions import Self

from benchmarks import servers
from benchmarks.servers import COMMAND
from carla_policy_tools.urls import prediction_url

__all__ = ["COMMAND", "ServeProcess"]


class ServeProcess(servers.ServeProcess):
    """A context manager around `carla-policy serve --json`; `ready` is what it printed when it was."""

    def __init__(
        self,
        store: Path,
        *options: str,
        registry: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Serves `store` with a registry of its own, unless one is given."""
        self._own = TemporaryDirectory(prefix="carla-policy-test-")
        own = registry or Path(self._own.name, "registry.json")
        super().__init__(store, *options, registry=own, environment=environment)

    def __enter__(self) -> Self:
        try:
            return super().__enter__()
        except BaseException:
            self._own.cleanup()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._own.cleanup()

    def post(self, version: str | None, body: Any, **headers: str) -> requests.Response:
        """POST `body`, bytes as they are and anything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        all_headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return requests.post(prediction_url(self.base, version), data=data, headers=all_headers, timeout=30)

    def get(self, version: str, resource: str) -> requests.Response:
        return requests.get(f"{prediction_url(self.base, version)}/{resource}", timeout=30)
