"""TorchServe as its tutorials use it: a `BaseHandler` subclass, the `torchserve` command, all settings at default.

Only the addresses, the model and the authorization are configured. So there are as many workers as cores, requests
are not batched, the handler gets decoded JSON, and each request leaves its lines in the logs.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import requests
from typing_extensions import Self

from benchmarks.contenders.base import LOOPBACK, POLL_S, START_TIMEOUT_S, ServiceProcess, StartError
from benchmarks.contenders.ours import torchserve_roles
from benchmarks.contenders.packing import pack_handler
from benchmarks.contenders.workload import Workload
from carla_policy_tools.java import find_java
from carla_policy_tools.paths import MODEL_NAME
from carla_policy_tools.ports import Ports, choose_ports
from carla_policy_tools.urls import local_session

HANDLER = Path(__file__).with_name("textbook_handler.py")
ARCHIVE = f"{MODEL_NAME}.mar"


class Textbook(ServiceProcess):
    name = "textbook"
    title = "A TorchServe handler as tutorials write it, TorchServe's default settings and as many workers as cores"
    packages = ("ts",)
    path = f"/predictions/{MODEL_NAME}"
    health_path = "/ping"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._scratch: tempfile.TemporaryDirectory[str]
        self._ports: Ports

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="bench-")
        artifact = self.workload.artifact
        pack_handler(
            Path(self._scratch.name, ARCHIVE),
            HANDLER,
            version=self.workload.version,
            serialized=artifact / self.workload.card.model_file,
            extra_files=[artifact / "preprocessor.pkl"],
            config=None,
        )
        self._ports = choose_ports(0, None, None, None)
        self.port = self._ports.inference
        Path(self._scratch.name, "config.properties").write_text(self._properties())
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._scratch.cleanup()

    def _properties(self) -> str:
        ports = self._ports
        return (
            f"inference_address=http://{LOOPBACK}:{ports.inference}\n"
            f"management_address=http://{LOOPBACK}:{ports.management}\n"
            f"metrics_address=http://{LOOPBACK}:{ports.metrics}\n"
            f"grpc_inference_port={ports.grpc_inference}\n"
            f"grpc_management_port={ports.grpc_management}\n"
            "disable_token_authorization=true\n"
        )

    def command(self) -> Sequence[str]:
        directory = self._scratch.name
        torchserve = shutil.which("torchserve", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
        if torchserve is None:
            raise StartError(f"{self.name}: the command torchserve is not on the PATH")
        models = ["--model-store", directory, "--models", f"{MODEL_NAME}={ARCHIVE}"]
        config = f"{directory}/config.properties"
        return [torchserve, "--start", "--foreground", "--ncs", *models, "--ts-config", config]

    def environment(self) -> Mapping[str, str]:
        directory = self._scratch.name
        java = find_java().executable.parents[1]
        return {
            **dict.fromkeys(("TMPDIR", "TEMP"), directory),
            **dict.fromkeys(("LOG_LOCATION", "METRICS_LOCATION"), f"{directory}/logs"),
            "JAVA_HOME": str(java),
            "PATH": f"{Path(sys.executable).parent}:{java / 'bin'}:{os.environ.get('PATH', '')}",
        }

    def wait_ready(self) -> None:
        """Return when all workers are READY."""
        super().wait_ready()
        deadline, url = time.monotonic() + START_TIMEOUT_S, f"{self._ports.url('management')}/models/{MODEL_NAME}"
        with local_session() as session:
            while not _ready(session, url):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise StartError(f"{self.name} did not become ready: {self.last_words()}")
                time.sleep(POLL_S)

    def processes(self) -> Mapping[str, list[psutil.Process]]:
        return torchserve_roles(self._process.pid)


def _ready(session: requests.Session, url: str) -> bool:
    try:
        workers = session.get(url, timeout=5).json()[0]["workers"]
    except (requests.RequestException, LookupError, ValueError):
        return False
    return bool(workers) and all(worker["status"] == "READY" for worker in workers)
