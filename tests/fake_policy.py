"""A stand-in for a server of one policy: answers as told, right or wrong, and keeps what it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, NamedTuple

from typing_extensions import Self

from carla_policy.card import ModelCard
from tests.fake_upstream import QuietServer
from tests.serving import serving

MOST_BYTES = 1 << 30
"""Announced by a client who does not mean to send them."""
ACTION = {"throttle": 0.5, "brake": 0.0, "steer": 0.0}


class Asked(NamedTuple):
    """A request, its header names in lower case, and the connection that it came over."""

    headers: dict[str, str]
    document: Any
    """`None` where the body is no JSON."""
    connection: tuple[str, int]


class FakePolicy:
    """A context manager; `answer` gets number and content of a request, and makes status and content of the answer."""

    def __init__(self, card: ModelCard, answer: Callable[[int, Any], tuple[int, Any]] | None = None) -> None:
        self.card = card
        self.asked: list[Asked] = []
        fake, respond = self, answer or (lambda _, document: (200, self.right(document)))

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65_536
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                length, document = int(self.headers["content-length"]), None
                if length > MOST_BYTES:
                    self.close_connection = True
                else:
                    body = self.rfile.read(length)
                    with suppress(ValueError):
                        document = json.loads(body)
                headers = {name.lower(): value for name, value in self.headers.items()}
                fake.asked.append(Asked(headers, document, self.client_address))
                self._send(*respond(len(fake.asked) - 1, document))

            def do_GET(self) -> None:
                self._send(200, {"card": fake.card.model_dump(mode="json", exclude_none=True)})

            def _send(self, status: int, content: Any) -> None:
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.send_header("x-policy-version", fake.card.version)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Quiet."""

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self._serving = serving(self._server)

    def right(self, document: Any, **changes: Any) -> dict[str, Any]:
        """A right answer but for `changes`; the state of a recurrent policy counts the requests."""
        state = {"state": str(len(self.asked))} if self.card.recurrent else {}
        common = {"version": self.card.version, "timingMs": 1.0, "deterministic": True}
        return {"actions": [ACTION] * len(document["observations"]), **common, **state, **changes}

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._serving.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._serving.__exit__(kind, error, trace)
