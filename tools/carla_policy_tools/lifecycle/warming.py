"""Warm a server up before it is called ready: Java compiles what requests pass through only once many have.

Until then requests wait for processors that the compiler has. So a server that has just loaded its versions is asked
for them over HTTP, all in turn, until the compiler has nothing left to do or the profile's time is over. Asked is
`healthz`, which takes a prediction's way through the front end and the network, and counts as no prediction: not for
the circuit breaker, nor as an intervention. Only TorchServe's own counters of requests begin above zero.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle, islice, repeat
from pathlib import Path
from urllib.parse import urlsplit

from carla_policy_tools.urls import prediction_url

CLIENTS = 2
"""So that batches of more than one occur as well."""
ROUND = 100
"""Requests of each client between two looks at the compiler."""
SHORT_ROUND = 20
"""For a version that joins a server which is warm: only its workers are new, and nothing in them is compiled."""
QUIET_ROUNDS = 2
QUIET_SHARE = 0.1
"""A compiler that works for less of the time than this has what remains in its queue done soon."""
_TIMEOUT_S = 2.0
_NANOSECOND = 1e-9


def warm_up(
    base: str,
    versions: Sequence[str],
    limit_s: float,
    compiler_s: Callable[[], float] | None,
    authorization: str | None = None,
) -> int:
    """Ask `versions` in turn until the compiler is quiet, at most for `limit_s` seconds and one round; how many times.

    `compiler_s` gives the seconds that the compiler has worked so far; without it one short round is enough, for a
    server that is warm. What does not answer is left alone: whether it is healthy is found out elsewhere.
    """
    started, requests, quiet = time.monotonic(), 0, 0
    url = urlsplit(base)
    address = (str(url.hostname), int(url.port or 80))
    clients = [_Client(address, [*versions[number:], *versions[:number]], authorization) for number in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        while quiet < QUIET_ROUNDS and time.monotonic() - started < limit_s:
            before, began = compiler_s() if compiler_s else 0.0, time.monotonic()
            answered = sum(pool.map(_Client.ask, clients, repeat(ROUND if compiler_s else SHORT_ROUND)))
            requests += answered
            if not answered or compiler_s is None:
                break
            quiet = quiet + 1 if compiler_s() - before < QUIET_SHARE * (time.monotonic() - began) else 0
    for client in clients:
        client.close()
    return requests


def compiler_seconds(pid: int) -> float:
    """Processor time of the just-in-time compiler's threads in the Java process `pid`; 0 where that cannot be seen."""
    total = 0
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, ValueError):
                if (task / "comm").read_text().startswith(("C1 Compiler", "C2 Compiler")):
                    total += int((task / "schedstat").read_text().split()[0])
    return total * _NANOSECOND


class _Client:
    """One connection that is kept, and as little work as possible: the processors are for the server."""

    def __init__(self, address: tuple[str, int], versions: Sequence[str], authorization: str | None) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        head = "Host: localhost\r\n" + (f"Authorization: {authorization}\r\n" if authorization else "")
        paths = [f"{urlsplit(prediction_url('', version)).path}/healthz" for version in versions]
        self._requests = cycle([f"GET {path} HTTP/1.1\r\n{head}\r\n".encode() for path in paths])

    def ask(self, requests: int) -> int:
        """Send so many requests; how many were answered with 200. Ends at the first that is not."""
        answered = 0
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, _TIMEOUT_S)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for request in islice(self._requests, requests):
                self._socket.sendall(request)
                if not _is_answered(self._socket):
                    self.close()
                    break
                answered += 1
        except (OSError, ValueError, IndexError):
            self.close()
        return answered

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def _is_answered(connection: socket.socket) -> bool:
    """Read one answer; whether it is 200. Raises `OSError`, `ValueError` or `IndexError` for what is none."""
    data = b""
    while True:
        part = connection.recv(1 << 16)
        if not part:
            raise ConnectionResetError
        data += part
        head, end, body = data.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
            return head.split(b" ", 2)[1] == b"200"
