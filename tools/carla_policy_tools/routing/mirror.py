"""The other end of HAProxy's mirror: takes copies of requests in as fast as they come, and never makes it wait.

`config/haproxy/shadow.lua` says what a copy looks like on its way.
"""

from __future__ import annotations

import os
import queue
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import BinaryIO

from typing_extensions import Self

MAX_WAITING = 256
_HEAD = struct.Struct(">IH")
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Copy:
    """A request that named no version."""

    version: str
    """The version that answers the client."""
    body: bytes | None
    """None if it was too large to be copied."""


class Collector:
    """Listens for copies; use as a context manager. At most `MAX_WAITING` wait, the others are counted as dropped."""

    def __init__(self, path: Path) -> None:
        self.dropped = 0
        """By the proxy or here, because they came faster than they were taken."""
        self._waiting: queue.Queue[Copy] = queue.Queue(MAX_WAITING)
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._thread = Thread(target=self._accept, name="mirror-collector", daemon=True)

    def __enter__(self) -> Self:
        self._path.unlink(missing_ok=True)
        previous = os.umask(0o077)
        try:
            self._listener.bind(str(self._path))
        finally:
            os.umask(previous)
        self._listener.listen()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def take(self, timeout_s: float) -> Copy | None:
        """The next copy, or none if none comes in time."""
        try:
            return self._waiting.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, connection.makefile("rb") as stream, suppress(OSError, EOFError):
                    while True:
                        self._keep(*_read_frame(stream))

    def _keep(self, dropped_before: int, copy: Copy) -> None:
        try:
            self._waiting.put_nowait(copy)
        except queue.Full:
            dropped_before += 1
        self.dropped += dropped_before


def _read_frame(stream: BinaryIO) -> tuple[int, Copy]:
    dropped_before, name_bytes = _HEAD.unpack(_read(stream, _HEAD.size))
    version = _read(stream, name_bytes).decode()
    (body_bytes,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    return dropped_before, Copy(version, _read(stream, body_bytes) if body_bytes else None)


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
