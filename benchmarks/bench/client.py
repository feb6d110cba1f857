"""One client on one connection: each request leaves when the answer to the last one is there."""

from __future__ import annotations

import gc
import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from typing_extensions import Self

CHUNK = 1 << 18
HEAD_END = b"\r\n\r\n"
TIMEOUT_S = 60.0
JSON_TYPE = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    """A status and a body, and the seconds from sending the request to the last byte."""

    status: int
    body: bytes
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A context manager around a plain socket: it costs less than what it measures. Raises `OSError`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._address = (parts.hostname, parts.port)
        self._head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def request(self, body: bytes, headers: Mapping[str, str] = JSON_TYPE) -> bytes:
        """The bytes of a request, for `send`."""
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{self._head}{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def send(self, request: bytes) -> Answer:
        """Send a request and wait for its answer, over the connection of the last one if the server has kept it."""
        connection, started, received = self._begin(request)
        head, found, body = received.partition(HEAD_END)
        while received and not found:
            more = connection.recv(CHUNK)
            received = received + more if more else b""
            head, found, body = received.partition(HEAD_END)
        if not found:
            self.close()
            raise ConnectionResetError("the server closed the connection before it answered")
        fields = head.lower()
        length = int(fields.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            body = self._rest(connection, body, length)
        seconds = time.perf_counter() - started
        if b"connection: close" in fields:
            self.close()
        return Answer(int(head[9:12]), body, seconds)

    def _begin(self, request: bytes) -> tuple[socket.socket, float, bytes]:
        """Send, and the first bytes of the answer; anew where the server has closed the idle connection."""
        kept = self._socket
        if kept is not None:
            started = time.perf_counter()
            with suppress(ConnectionError):
                kept.sendall(request)
                if received := kept.recv(CHUNK):
                    return kept, started, received
            self.close()
        fresh = self._connect()
        started = time.perf_counter()
        fresh.sendall(request)
        return fresh, started, fresh.recv(CHUNK)

    def _connect(self) -> socket.socket:
        self._socket = socket.create_connection(self._address, timeout=TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._socket

    def _rest(self, connection: socket.socket, body: bytes, length: int) -> bytes:
        whole = bytearray(body)
        while len(whole) < length:
            data = connection.recv(CHUNK)
            if not data:
                raise ConnectionResetError("the server closed the connection within an answer")
            whole += data
        return bytes(whole)


def closed_loop(
    client: Client, requests: Sequence[bytes], *, seconds: float, limit: int | None = None
) -> tuple[list[float], int]:
    """Latencies in seconds of the answers of status 200 within `seconds`, at most `limit`; how many were others."""
    latencies, others, number = [], 0, 0
    with no_collection():
        end = time.perf_counter() + seconds
        while time.perf_counter() < end and number != limit:
            answer = client.send(requests[number % len(requests)])
            number += 1
            if answer.status == 200:
                latencies.append(answer.seconds)
            else:
                others += 1
    return latencies, others


@contextmanager
def no_collection() -> Iterator[None]:
    """Python's garbage collector does not run in this process meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
