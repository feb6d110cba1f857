"""Contenders that are a Python service of their own, one command each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

from benchmarks.contenders.base import LOOPBACK, ServiceProcess, ask_health, python_module

_SERVICES = "benchmarks.contenders"
ALL_WORKERS_S = 5.0
"""After that long without an answer of another worker, one is taken to be as good as all."""


class FastAPI(ServiceProcess):
    """FastAPI and pydantic under uvicorn, with its faster event loop and parser and without a log of requests."""

    packages = ("fastapi", "uvicorn", "uvloop", "httptools")
    workers: ClassVar[int]

    def command(self) -> Sequence[str]:
        where = ["--host", LOOPBACK, "--port", str(self.port), "--workers", str(self.workers)]
        quick = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        return python_module("uvicorn", f"{_SERVICES}.fastapi_service:app", *where, *quick)

    def wait_ready(self) -> None:
        """Return when all workers have answered: they share a socket, which accepts before any of them does."""
        super().wait_ready()
        deadline = time.monotonic() + ALL_WORKERS_S
        seen: set[bytes | None] = set()
        while len(seen) < self.workers and time.monotonic() < deadline:
            seen.add(ask_health(self.port, self.health_path))


class FastAPI1(FastAPI):
    name = "fastapi-1"
    title = "FastAPI + pydantic + TorchScript + scikit-learn, uvicorn with 1 worker"
    workers = 1


class FastAPI2(FastAPI):
    name = "fastapi-2"
    title = "FastAPI + pydantic + TorchScript + scikit-learn, uvicorn with 2 workers"
    workers = 2


class LitServe(ServiceProcess):
    name = "litserve"
    health_path = "/health"
    title = "LitServe, one worker, no batching"
    packages = ("litserve",)

    def command(self) -> Sequence[str]:
        return python_module(f"{_SERVICES}.litserve_service", str(self.port))


class BentoML(ServiceProcess):
    name = "bentoml"
    title = "BentoML, one worker, no batching"
    packages = ("bentoml",)

    def command(self) -> Sequence[str]:
        where = ["--host", LOOPBACK, "--port", str(self.port)]
        return python_module("bentoml", "serve", f"{_SERVICES}.bentoml_service:PolicyService", *where)

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), "BENTOML_DO_NOT_TRACK": "True"}


class HandWritten(ServiceProcess):
    name = "handwritten"
    title = "granian (RSGI) + msgspec + frozen TorchScript + numpy scaling in one process, no checks"
    packages = ("granian", "msgspec")

    def command(self) -> Sequence[str]:
        where = ["--interface", "rsgi", "--host", LOOPBACK, "--port", str(self.port), "--workers", "1"]
        quick = ["--no-ws", "--no-access-log", "--log-level", "warning"]
        return python_module("granian", *where, *quick, f"{_SERVICES}.handwritten_service:app")
