"""A stand-in for TorchServe in tests of routing: answers which path was asked, and fails or dawdles when told to."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from types import TracebackType
from typing import Any

from typing_extensions import Self

OLD = "v0.2.0"
"""What is promoted before anything is split."""
PREDICTIONS = "/predictions/carla_policy"


class QuietServer(ThreadingHTTPServer):
    """Takes many connections at once, and says nothing of those that end early."""

    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is no news."""


class FakeUpstream:
    """A context manager.

    By version: `statuses`, `headers` and `contents` of answers, and `cut`, whose answers end early. `asked` keeps
    version and body of each request, `asked_headers` its headers. Requests with a header `x-hold` are answered once
    `held` is set; `arrived` is set when one has come. The next `hang_ups` requests get no answer, just an end.
    """

    def __init__(self) -> None:
        self.held = Event()
        self.arrived = Event()
        self.statuses: dict[str, int] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.cut: set[str] = set()
        self.hang_ups = 0
        self.contents: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str | None, bytes]] = []
        self.asked_headers: list[dict[str, str]] = []
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65536

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                version = self.path.removeprefix(PREDICTIONS).partition("?")[0].strip("/") or None
                upstream.asked.append((version, body))
                upstream.asked_headers.append({name.lower(): value for name, value in self.headers.items()})
                upstream.arrived.set()
                if upstream.hang_ups:
                    upstream.hang_ups -= 1
                    self.close_connection = True
                    return
                if self.headers.get("x-hold"):
                    upstream.held.wait(20)
                echo = {"path": self.path, "version": version, "bytes": len(body)}
                answer = json.dumps(upstream.contents.get(version or "", echo)).encode()
                self.send_response(upstream.statuses.get(version or "", 200))
                self.send_header("content-length", str(len(answer)))
                for name, value in upstream.headers.get(version or "", {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.close_connection = version in upstream.cut
                self.wfile.write(answer[:10] if self.close_connection else answer)

            do_GET = do_POST  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Quiet."""

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self.held.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@dataclass
class Vehicle:
    """A client that keeps its connection, as vehicles do."""

    port: int

    def __post_init__(self) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def ask(
        self, path: str = PREDICTIONS, body: bytes = b"{}", method: str = "POST", **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """Status and content of the answer; `x_episode_id="7"` names the episode."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, {"content-type": "application/json", **named})
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read())

    def version_of(self, episode: str) -> str | None:
        """Which version answers this episode."""
        status, answer = self.ask(x_episode_id=episode)
        assert status == 200, answer
        version: str | None = answer["version"]
        return version
