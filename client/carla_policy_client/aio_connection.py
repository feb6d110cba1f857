"""One connection on asyncio's loop, and one exchange at a time over it; `connection.py` says what holds."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

from carla_policy_client.connection import QUICKACK, ended
from carla_policy_client.http11 import Response, ResponseReader
from carla_policy_client.misses import LATE, Miss
from carla_policy_client.waiting import is_ready


class AsyncConnection(asyncio.Protocol):
    """Made by `loop.create_connection`."""

    def __init__(self) -> None:
        self.exchanges = 0
        self._transport: Any = None
        self._reader: ResponseReader | None = None
        self._answer: asyncio.Future[Response] | None = None
        self._is_over = False

    async def is_usable(self) -> bool:
        """Whether the idle connection is still there, with nothing in it that nobody asked for."""
        if is_ready(self._transport.get_extra_info("socket"), False):
            for _ in range(2):  # the loop sees what has come in its next round, and reads it in that after
                await asyncio.sleep(0)
        return not self._is_over and not self._transport.is_closing()

    async def exchange(self, request: bytes, max_body_bytes: int, due: float) -> Response:
        """Send `request` and read the answer to it; raises `Miss`, after which the connection must be closed."""
        loop = asyncio.get_event_loop()
        self._reader, self._answer = ResponseReader(max_body_bytes), loop.create_future()
        late = Miss(LATE, "no whole answer before the deadline")
        timer = loop.call_later(max(0.0, due - time.monotonic()), self._fail, late)
        try:
            if self._is_over:
                raise ended(self._reader, "the server ended the connection")
            self._transport.write(request)
            sock = self._transport.get_extra_info("socket")
            if QUICKACK is not None and sock is not None:
                sock.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)
            response = await self._answer
        except OSError as error:
            raise ended(self._reader, f"the connection failed: {error.strerror or error}") from None
        finally:
            timer.cancel()
            self._reader = self._answer = None
        self.exchanges += 1
        return response

    def close(self) -> None:
        """At once, whatever is still to be sent."""
        self._is_over = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._reader is None or self._answer is None or self._answer.done():
            self.close()
            return
        try:
            if self._reader.feed(data):
                self._answer.set_result(self._reader.response)  # type: ignore[arg-type]
        except Miss as miss:
            self._fail(miss)

    def eof_received(self) -> None:
        self._end("the server ended the connection")

    def connection_lost(self, error: Exception | None) -> None:
        self._end(f"the connection failed: {error}" if error else "the server ended the connection")

    def _end(self, words: str) -> None:
        self._is_over = True
        if self._reader is not None:
            self._fail(ended(self._reader, words))

    def _fail(self, miss: Miss) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(miss)
