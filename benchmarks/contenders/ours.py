"""Our own server, as its users start it: `carla-policy serve`, with everything that it has switched on."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import psutil
from typing_extensions import Self

from benchmarks.contenders.base import LOOPBACK, Contender, StartError, family
from benchmarks.contenders.workload import Workload
from benchmarks.servers import ServeProcess
from carla_policy_tools.ports import choose_ports
from carla_policy_tools.urls import prediction_url


class Ours(Contender):
    """The workload's version, alone or beside others of the same store, in one of the shipped profiles."""

    packages = ("ts",)
    profile: ClassVar[str]

    def __init__(self, workload: Workload, *, beside: tuple[str, ...] = (), workers: int | None = None) -> None:
        super().__init__(workload)
        self._versions = (workload.version, *beside)
        self._workers = workers
        self._port = choose_ports(0).inference
        self._scratch: tempfile.TemporaryDirectory[str]
        self._server: ServeProcess

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="bench-")
        self._server = ServeProcess(
            self.workload.store,
            *self._versions,
            *("--deployment", "benchmark", "--promote", self.workload.version, "--profile", self.profile),
            *(("--workers", str(self._workers)) if self._workers else ()),
            *("--port", str(self._port), "--run-dir", str(Path(self._scratch.name, "run"))),
            registry=Path(self._scratch.name, "registry.json"),
        )
        try:
            self._server.__enter__()
        except AssertionError as error:
            self._scratch.cleanup()
            raise StartError(f"{self.name}: {error}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__(None, None, None)
        self._scratch.cleanup()

    @property
    def url(self) -> str:
        return prediction_url(f"http://{LOOPBACK}:{self._port}", self.workload.version)

    def processes(self) -> Mapping[str, list[psutil.Process]]:
        return torchserve_roles(self._server.process.pid)


class OursRealtime(Ours):
    name = "ours-realtime"
    title = "carla-policy serve, profile realtime (batch 2, delay 0), all checks, metrics and limits on"
    profile = "realtime"


class OursThroughput(Ours):
    name = "ours-throughput"
    title = "carla-policy serve, profile throughput (batch 64, delay 1 ms), all checks, metrics and limits on"
    profile = "throughput"


def torchserve_roles(pid: int) -> dict[str, list[psutil.Process]]:
    """The process that started TorchServe, TorchServe's Java process, and the Python processes of both."""
    started = family(pid)
    frontend = [process for process in started if _name(process).startswith("java")]
    workers = [process for process in started[1:] if process not in frontend]
    return {"supervisor": started[:1], "frontend": frontend, "worker": workers}


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""
