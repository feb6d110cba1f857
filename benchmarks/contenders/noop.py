"""A handler that does nothing, in our TorchServe: what TorchServe itself costs.

The same Java process with the same flags, properties, logging and profile as ours, started by the same code; its
handler answers bytes of the same length as our answer, whatever it is asked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import psutil

from benchmarks.contenders.base import Contender, StartError
from benchmarks.contenders.ours import torchserve_roles
from benchmarks.contenders.packing import pack_handler
from benchmarks.contenders.workload import Workload
from carla_policy_tools.configuration import choose_ports, load_profile, properties
from carla_policy_tools.paths import archive_name
from carla_policy_tools.torchserve import ServerError, TorchServe
from carla_policy_tools.urls import prediction_url

HANDLER = Path(__file__).with_name("noop_handler.py")
ANSWER_FILE = "answer.json"


class Noop(Contender):
    packages = ("ts",)
    acts = False
    profile: ClassVar[str]

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._scratch: tempfile.TemporaryDirectory[str]
        self._server: TorchServe

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="bench-")
        directory, version = Path(self._scratch.name), self.workload.version
        store = directory / "store"
        store.mkdir()
        answer, config = directory / ANSWER_FILE, directory / "model-config.yaml"
        profile = load_profile(self.profile)
        answer.write_bytes(self.workload.answer)
        config.write_bytes(profile.model_config_yaml())
        pack_handler(
            store / archive_name(version),
            HANDLER,
            version=version,
            serialized=self.workload.artifact / self.workload.card.model_file,
            extra_files=[answer],
            config=config,
        )
        ports = choose_ports(0, None, None, None)
        settings = properties(versions={version: profile}, promoted=version, ports=ports, store=store)
        self._server = TorchServe(settings, ports, directory / "run")
        try:
            self._server.__enter__()
            self._server.wait_ready({version: profile.workers}, profile.startup_timeout_s)
        except ServerError as error:
            self.__exit__()
            raise StartError(f"{self.name}: {error}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        self._scratch.cleanup()

    @property
    def url(self) -> str:
        return prediction_url(self._server.ports.url("inference"), self.workload.version)

    def processes(self) -> Mapping[str, list[psutil.Process]]:
        return torchserve_roles(self._server.pid) if self._server.pid else {}


class NoopRealtime(Noop):
    name = "noop-realtime"
    title = "A handler that does nothing, in the same TorchServe as ours-realtime"
    profile = "realtime"


class NoopThroughput(Noop):
    name = "noop-throughput"
    title = "A handler that does nothing, in the same TorchServe as ours-throughput"
    profile = "throughput"
