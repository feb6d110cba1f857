"""A handler that does nothing, in our TorchServe: what TorchServe itself costs.

The same Java process with the same flags, properties, logging and profile as ours, started by the same code; its
handler answers bytes of the same length as our answer, whatever it is asked.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import psutil
from typing_extensions import Self

from benchmarks.contenders.base import POLL_S, START_TIMEOUT_S, ServiceProcess, StartError, python_module
from benchmarks.contenders.noop_server import READY_FILE
from benchmarks.contenders.ours import torchserve_roles
from benchmarks.contenders.packing import pack_handler
from benchmarks.contenders.workload import Workload
from carla_policy_tools.configuration import load_profile
from carla_policy_tools.paths import archive_name
from carla_policy_tools.urls import prediction_url

HANDLER = Path(__file__).with_name("noop_handler.py")
ANSWER_FILE = "answer.json"


class Noop(ServiceProcess):
    packages = ("ts",)
    acts = False
    profile: ClassVar[str]

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._scratch: tempfile.TemporaryDirectory[str]
        self._base = ""

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="bench-")
        directory, version = Path(self._scratch.name), self.workload.version
        (directory / "store").mkdir()
        answer, config = directory / ANSWER_FILE, directory / "model-config.yaml"
        answer.write_bytes(self.workload.answer)
        config.write_bytes(load_profile(self.profile).model_config_yaml())
        pack_handler(
            directory / "store" / archive_name(version),
            HANDLER,
            version=version,
            serialized=self.workload.artifact / self.workload.card.model_file,
            extra_files=[answer],
            config=config,
        )
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._scratch.cleanup()

    def command(self) -> Sequence[str]:
        return python_module(
            "benchmarks.contenders.noop_server", self._scratch.name, self.workload.version, self.profile
        )

    def wait_ready(self) -> None:
        """Return when its worker is READY."""
        deadline, ready = time.monotonic() + START_TIMEOUT_S, Path(self._scratch.name, READY_FILE)
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise StartError(f"{self.name} did not become ready: {self.last_words()}")
            time.sleep(POLL_S)
        self._base = ready.read_text()

    @property
    def url(self) -> str:
        return prediction_url(self._base, self.workload.version)

    def processes(self) -> Mapping[str, list[psutil.Process]]:
        return torchserve_roles(self._process.pid)


class NoopRealtime(Noop):
    name = "noop-realtime"
    title = "A handler that does nothing, in the same TorchServe as ours-realtime"
    profile = "realtime"


class NoopThroughput(Noop):
    name = "noop-throughput"
    title = "A handler that does nothing, in the same TorchServe as ours-throughput"
    profile = "throughput"
