"""What happens in the simulator, told to any number of readers, none of whom can hold it up.

Each reader has a queue of its own. A reader that is too slow loses the oldest messages, and is told how many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

QUEUED = 256
MAX_READERS = 64


class Reader:
    """One reader's queue of JSON texts, each an object whose last key is still to be written."""

    def __init__(self) -> None:
        self._queue: deque[str] = deque(maxlen=QUEUED)
        self._filled = asyncio.Event()
        self.missed = 0

    def put(self, message: str) -> None:
        """Add a message; the oldest is lost if there is no room."""
        self.missed += len(self._queue) == QUEUED
        self._queue.append(message)
        self._filled.set()

    async def next(self) -> str:
        """The next message, with `missed`: how many this reader has lost since it came."""
        while not self._queue:
            self._filled.clear()
            await self._filled.wait()
        return f'{self._queue.popleft()[:-1]}, "missed": {self.missed}}}'


class Telemetry:
    """All readers of one service."""

    def __init__(self) -> None:
        self._readers: set[Reader] = set()

    @property
    def is_read(self) -> bool:
        return bool(self._readers)

    @property
    def is_full(self) -> bool:
        return len(self._readers) >= MAX_READERS

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """A reader that gets all messages from now on."""
        reader = Reader()
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    def publish(self, message: str) -> None:
        """Give `message`, the text of a JSON object that is not empty, to all readers."""
        for reader in self._readers:
            reader.put(message)
