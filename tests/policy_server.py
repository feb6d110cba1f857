"""Policies over HTTP without TorchServe: the serving code answers in a thread of the test's process."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from typing_extensions import Self

from carla_policy.batch import Request
from carla_policy.loading import LoadedPolicy
from carla_policy.service import PolicyService
from carla_policy.trace_context import echoed
from tests.serving import serving

PREFIX = "/predictions/carla_policy"


class PolicyServer:
    """A context manager; the first of `versions` is the promoted one. `reports` are the bodies of episodes told."""

    def __init__(self, *versions: LoadedPolicy) -> None:
        self._services = {loaded.policy.card.version: PolicyService(loaded) for loaded in versions}
        self.reports: list[bytes] = []
        self.predictions = 0
        self.last_prediction = 2**62
        """After so many, connections are closed without an answer."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._serving = serving(self._server)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._serving.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._serving.__exit__(kind, error, trace)

    def answer(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]] | None:
        """Status, body and headers; `None` to hang up."""
        version, _, resource = path.removeprefix(PREFIX).strip("/").partition("/")
        service = self._services.get(version) if version else next(iter(self._services.values()))
        if service is None:
            return 404, b'{"code": 404, "type": "ModelVersionNotFoundException", "message": "no such version"}', {}
        if resource == "episodes":
            self.reports.append(body)
        elif body:
            self.predictions += 1
            if self.predictions > self.last_prediction:
                return None
        request = Request(body, headers, resource=resource)
        (answer,) = service.encode(service.infer(service.parse([request])))
        return answer.status, answer.body, {**answer.headers, **echoed(headers), "content-type": answer.content_type}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                answer = outer.answer(self.path, body, {name.lower(): value for name, value in self.headers.items()})
                if answer is None:
                    self.close_connection = True
                    return
                status, content, headers = answer
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
