"""Asking a server with any method, headers and bytes, also such as no client would send."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from typing_extensions import Self

from carla_policy_tools.urls import prediction_url
from tests.servers import ServeProcess
from tests.test_server import worker_pids

TIMEOUT_S = 30.0
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """An answer over HTTP; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def told(self) -> tuple[int, str | None]:
        """Status and type of error; an error's own `code` must be the status."""
        if self.status == 200:
            return 200, None
        content = json.loads(self.content)
        assert content["code"] == self.status, content
        return self.status, content["type"]

    @property
    def actions(self) -> Any:
        assert self.status == 200, self.content
        return json.loads(self.content)["actions"]


@dataclass(frozen=True)
class Target:
    """One version of a running server."""

    server: ServeProcess
    version: str

    @property
    def url(self) -> str:
        return prediction_url(self.server.base, self.version)

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 80

    def workers(self) -> list[int]:
        """The pids of the workers: unchanged means that none was restarted."""
        return worker_pids(self.server)

    def ask(
        self, body: bytes, headers: Mapping[str, str] | None = None, *, method: str = "POST", path: str | None = None
    ) -> Reply:
        """Send exactly `headers` beside the content length; `path` is the version's own unless given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path or self.path, body, dict(JSON if headers is None else headers))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, names, response.read())
        finally:
            connection.close()

    def send(self, payload: bytes, *, wait_s: float) -> bytes:
        """All that the server says to `payload`, and to its end, until it closes, or says nothing for `wait_s`."""
        said = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait_s) as connection:
            try:
                connection.sendall(payload)
                connection.shutdown(socket.SHUT_WR)
                while received := connection.recv(65_536):
                    said += received
            except OSError:
                return said
        return said


def first_reply(port: int, payload: bytes) -> Reply:
    """What the server on `port` answers first to `payload`, after which nothing follows."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        connection.sendall(payload)
        with http.client.HTTPResponse(connection) as response:
            response.begin()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, names, response.read())


class Bystander:
    """A client of the same server who sends a good request over and over; it must get the same action each time."""

    def __init__(self, target: Target, body: bytes) -> None:
        self._target, self._body = target, body
        self._expected = target.ask(body).actions
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answered = 0
        self.wrong: list[Any] = []

    def _run(self) -> None:
        while not self._done.is_set() or not self.answered:
            try:
                reply = self._target.ask(self._body)
            except OSError as error:
                self.wrong.append(error)
                return
            if reply.status != 200 or reply.actions != self._expected:
                self.wrong.append(reply)
            self.answered += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        if error is None:
            assert not self.wrong, self.wrong[:3]
