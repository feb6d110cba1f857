"""A real `mlflow server` with a SQLite store for tests, and one that answers what no honest server would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests

from carla_policy_tools.addresses import LOOPBACK
from carla_policy_tools.ports import reserved_port
from tests.serving import serving

PATIENCE_S = 120.0
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore",
}


@contextmanager
def mlflow_server(directory: Path, database: Path, *options: str) -> Iterator[str]:
    """URL of an MLflow server of a copy of `database`, with its files in `directory`."""
    shutil.copyfile(database, directory / "mlflow.db")
    port = reserved_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{directory}/mlflow.db"]
    log = directory / "server.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [*command, *(options or ("--artifacts-destination", str(directory / "files")))],
            cwd=directory,
            env={**os.environ, **SETTINGS},
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            url = f"http://{LOOPBACK}:{port}"
            _wait_until_healthy(url, process, log)
            yield url
        finally:
            process.terminate()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.05)
    raise RuntimeError(f"mlflow server: {log.read_text()[-2000:]}")


class DishonestServer:
    """The REST calls that a pull makes, answered with the files and the location that a test chose."""

    def __init__(self, listing: Mapping[str, Any], content: bytes, location: str = "mlflow-artifacts:/x") -> None:
        version = {"name": "racer", "version": "1", "status": "READY", "source": location}
        answers: dict[str, Any] = {
            "/health": "OK",
            "/api/2.0/mlflow/registered-models/get": {"registered_model": {"name": "racer"}},
            "/api/2.0/mlflow/model-versions/search": {"model_versions": [version]},
            "/api/2.0/mlflow/model-versions/get-download-uri": {"artifact_uri": location},
        }

        class Handler(BaseHTTPRequestHandler):
            timeout = 2
            """Of a client that reads no further, and does not hang up either."""

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                directory = parse_qs(parts.query).get("path", ["x"])[0]
                if parts.path.endswith("/mlflow-artifacts/artifacts"):
                    body = json.dumps({"files": listing.get(directory.removeprefix("x").strip("/"), [])}).encode()
                else:
                    body = json.dumps(answers[parts.path]).encode() if parts.path in answers else content
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(OSError):  # whoever has had enough goes
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Requests are no news."""

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = False  # closing waits for their sockets

    @contextmanager
    def running(self) -> Iterator[str]:
        with serving(self._server) as url:
            yield url
