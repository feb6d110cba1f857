"""One connection to the server, and one exchange at a time over it that ends when it is due, whatever the server does.

The socket never blocks. Every wait is for what is left until `due`, a time of `time.monotonic()`, so that an answer in
many small pieces gets no more time than one in a single piece.
"""

from __future__ import annotations

import socket
import ssl
from typing import Callable, TypeVar

from carla_policy_client.http11 import Response, ResponseReader
from carla_policy_client.misses import DISCONNECTED, LATE, Hangup, Miss
from carla_policy_client.waiting import wait

_PIECE = 65536
_AGAIN = (BlockingIOError, InterruptedError)
QUICKACK = getattr(socket, "TCP_QUICKACK", None)
_Result = TypeVar("_Result")


class Connection:
    """Owns a connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.exchanges = 0
        """Answers that came over it."""

    def is_usable(self) -> bool:
        """Whether the idle connection is still there, with nothing in it that nobody asked for."""
        try:
            self._socket.recv(1)
        except (ssl.SSLWantReadError, BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        return False

    def exchange(self, request: bytes, max_body_bytes: int, due: float) -> Response:
        """Send `request` and read the answer to it; raises `Miss`, after which the connection must be closed."""
        reader = ResponseReader(max_body_bytes)
        try:
            self._send(request, due)
            while reader.response is None:
                data = self._perform(lambda: self._socket.recv(_PIECE), False, due)
                if not data:
                    raise ended(reader, "the server ended the connection")
                reader.feed(data)
        except OSError as error:
            raise ended(reader, f"the connection failed: {error.strerror or error}") from None
        self.exchanges += 1
        return reader.response

    def handshake(self, due: float) -> None:
        """Agree on TLS, where that is spoken; raises `OSError` (`ssl.SSLError` is one) or `Miss`."""
        if isinstance(self._socket, ssl.SSLSocket):
            self._perform(self._socket.do_handshake, False, due)

    def close(self) -> None:
        self._socket.close()

    def _send(self, request: bytes, due: float) -> None:
        sent = 0
        while sent < len(request):
            rest = memoryview(request)[sent:]
            sent += self._perform(lambda: self._socket.send(rest), True, due)  # noqa: B023
        if QUICKACK is not None:
            # A server that writes head and body apart would wait 40 ms for the acknowledgement of the head.
            self._socket.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)

    def _perform(self, action: Callable[[], _Result], writes: bool, due: float) -> _Result:
        while True:
            try:
                return action()
            except ssl.SSLWantReadError:
                for_write = False
            except ssl.SSLWantWriteError:
                for_write = True
            except _AGAIN:
                for_write = writes
            if not wait(self._socket, for_write, due):
                raise Miss(LATE, "no whole answer before the deadline")


def ended(reader: ResponseReader, words: str) -> Miss:
    """A connection that has ended, before the answer did."""
    return Miss(DISCONNECTED, words + ", in the middle of its answer") if reader.has_begun else Hangup(words)
