"""`/livez`, `/readyz`, `/startupz` and `/metrics` of a served registry, for load balancers, Kubernetes and people."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from typing import Any

from carla_policy_tools.addresses import LOOPBACK, listening_socket
from carla_policy_tools.lifecycle.health import Health, check_health
from carla_policy_tools.lifecycle.registry import RegistryFile

INTERVAL_S = 0.3
MAX_AGE_S = 1.8
"""A finding older than this is none: whoever asks learns that health is not known. Together with the time-out of the
golden request it keeps a failure from being hidden for more than two seconds."""


class Probes:
    """Checks health in the background and answers probes with what it found last. Use as a context manager."""

    def __init__(self, registry_file: RegistryFile, port: int, host: str = LOOPBACK) -> None:
        self._registry_file = registry_file
        self._stop = threading.Event()
        self._found = Health(False, ("not checked yet",))
        self._found_at = time.monotonic()
        self._started = False
        self._checker = threading.Thread(target=self._check, name="health", daemon=True)
        self._server = _Server(listening_socket(host, port), _handler(self))
        self._listener = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="probes", daemon=True)

    def __enter__(self) -> Probes:
        self._checker.start()
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        self._checker.join()

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and body for a probe."""
        found = self._known()
        green = {"/livez": found.alive, "/readyz": found.ready, "/startupz": self._started}.get(path)
        if green is None:
            return 404, {"message": "there are /livez, /readyz, /startupz and /metrics"}
        return (200 if green else 503), found.to_json()

    def metrics(self) -> tuple[str, bytes]:
        """Content type and body of `/metrics`."""
        from carla_policy_tools.lifecycle import exporter

        return exporter.CONTENT_TYPE, exporter.page(self._known(), self._registry_file)

    def _known(self) -> Health:
        age = time.monotonic() - self._found_at
        return self._found if age <= MAX_AGE_S else Health(False, (f"health is not known since {age:.1f} s",))

    def _check(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                self._found = check_health(self._registry_file)
            except Exception as error:  # whatever it is, it must not end the checks
                self._found = Health(False, (f"health cannot be found out: {error!r}",))
            self._found_at = started
            self._started = self._started or self._found.ready
            self._stop.wait(INTERVAL_S)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(listener.getsockname()[:2], handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_activate()


def _handler(probes: Probes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                status, (kind, body) = 200, probes.metrics()
            else:
                status, content = probes.answer(path)
                kind, body = "application/json", json.dumps(content).encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Probes come every second; they are not news."""

    return Handler
