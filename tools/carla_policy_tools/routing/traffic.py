"""What became of each prediction: HAProxy writes a record, the proxy's process hands it to whoever listens.

The records come through a pipe, so that HAProxy neither waits nor connects when nobody listens; a listener that is
too slow misses records, and is told how many. (A datagram socket holds ten on many machines, and a HAProxy 2.6 that
sends to a ring without a reader takes milliseconds for each request.)
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from typing_extensions import Self

from carla_policy_tools.routing.haproxy import ProxyError

Route = Literal["split", "promoted", "named"]
"""How the version was chosen: by the split, because it is promoted, or by the request itself."""

_GATHER_S = 0.02
_CHUNK_BYTES = 32_768
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Exchange:
    """A prediction request and its answer."""

    version: str | None
    """The version that answered, or was to answer."""
    route: Route | None
    status: int
    """HTTP status; -1 if the client was gone before there was one."""
    response_ms: float | None
    """From the request's headers to the answer's headers."""
    total_ms: float
    interventions: tuple[str, ...] = ()
    ood: int = 0
    """How many observations were out of distribution."""
    key: str | None = None
    """`episode:<x-episode-id>` or `vehicle:<x-vehicle-id>`."""
    complete: bool = True
    """Whether the server sent its answer to the end."""

    @property
    def failed(self) -> bool:
        """No usable answer, and not the request's fault: status 500 and above, none, or cut off."""
        return self.status >= 500 or self.status < 0 or not self.complete

    @property
    def refused(self) -> bool:
        """The request was at fault: status 400 to 499."""
        return 400 <= self.status < 500


class TrafficFeed:
    """Hands lines to every connected listener, as fast as each can; in the proxy's process."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen()
        self._listener.setblocking(False)
        self._lost: dict[socket.socket, int] = {}

    def pump(self, source: int) -> None:
        """Hand on what can be read from the file descriptor `source`, until its end."""
        rest = b""
        try:
            while part := os.read(source, _READ_BYTES):
                self._accept()
                whole, newline, rest = (rest + part).rpartition(b"\n")
                if self._lost:
                    for chunk in _chunks(whole + newline):
                        self._send(chunk)
                time.sleep(_GATHER_S)  # a pass for many records; the pipe holds what comes meanwhile
        finally:
            self.close()

    def close(self) -> None:
        for connection in (self._listener, *self._lost):
            connection.close()
        self._lost.clear()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            self._lost[connection] = 0

    def _send(self, chunk: bytes) -> None:
        for connection, lost in list(self._lost.items()):
            try:
                if lost:
                    connection.send(json.dumps({"lost": lost}).encode())
                    self._lost[connection] = 0
                connection.send(chunk)
            except BlockingIOError:
                self._lost[connection] += chunk.count(b"\n")
            except OSError:
                connection.close()
                del self._lost[connection]


class Traffic:
    """A listener at a proxy's traffic socket; use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.lost = 0
        """Records missed because they were not read fast enough."""
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._connection.connect(str(path))
        except OSError:
            self._connection.close()
            raise ProxyError(f"{path}: no proxy runs there; start one with `carla-policy proxy`") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def read(self, timeout_s: float) -> list[Exchange]:
        """What came next, in order; empty if nothing came in time. `ProxyError` when the proxy has ended."""
        self._connection.settimeout(timeout_s)
        try:
            packet = self._connection.recv(_READ_BYTES)
        except TimeoutError:
            return []
        if not packet:
            raise ProxyError("the proxy has ended")
        exchanges = []
        for line in packet.splitlines():
            record = json.loads(line)
            if "lost" in record:
                self.lost += record["lost"]
            else:
                exchanges.append(parse_exchange(record))
        return exchanges


def parse_exchange(record: dict[str, Any]) -> Exchange:
    """One of HAProxy's records, in which `-` stands for nothing; its log-format says what they hold."""
    given = {name: value for name, value in record.items() if value != "-"}
    status, ood = given["status"], given.get("ood", "")
    return Exchange(
        version=given.get("version"),
        route=given.get("route"),
        status=status,
        response_ms=int(given["response_us"]) / 1e3 if "response_us" in given else None,
        total_ms=int(given["total_us"]) / 1e3,
        interventions=tuple(kind for part in given.get("interventions", "").split(",") if (kind := part.strip())),
        ood=int(ood) if ood.isdigit() else 0,
        key=given.get("key"),
        complete=not (200 <= status < 300 and record["state"][0] in "Ss"),
    )


def _chunks(lines: bytes) -> list[bytes]:
    """`lines` in pieces of whole lines, each small enough for one packet."""
    chunks, start = [], 0
    while start < len(lines):
        end = len(lines) if len(lines) - start <= _CHUNK_BYTES else lines.rindex(b"\n", start, start + _CHUNK_BYTES) + 1
        chunks.append(lines[start:end])
        start = end
    return chunks
