"""Reports of driven episodes, sent by a thread of its own, so that no step ever waits for one.

Each is counted at most once: what may have arrived is not sent again. What the server cannot take, in spite of some
attempts, is dropped and counted.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from typing import Callable, Mapping, NamedTuple

from carla_policy_client import http11
from carla_policy_client.connection import Connection
from carla_policy_client.misses import Miss
from carla_policy_client.statistics import Counts

MAX_WAITING, ATTEMPTS = 256, 8
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0
_ANSWER_S, _MAX_ANSWER_BYTES = 5.0, 65536


class Report(NamedTuple):
    """An episode's undiscounted return and its steps, and where to tell it."""

    path: str
    headers: Mapping[str, str]
    total_return: float
    length: int

    def request(self) -> bytes:
        body = json.dumps({"return": self.total_return, "length": self.length}, allow_nan=False).encode("ascii")
        return http11.request("POST", self.path, {**self.headers, "Connection": "close"}, body)


class Reporter:
    """Sends reports one after the other, each over a connection of its own; thread-safe."""

    def __init__(self, dial: Callable[[], Connection], counts: Counts) -> None:
        self._dial = dial
        self._counts = counts
        self._waiting: deque[Report] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def put(self, report: Report) -> bool:
        """Whether it will be sent: not if too many are waiting already."""
        with self._changed:
            if self._is_closed or len(self._waiting) >= MAX_WAITING:
                self._counts.episodes_dropped += 1
                return False
            self._waiting.append(report)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="carla-policy-reports", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return True

    def finish(self) -> None:
        """Take no more, send what is there, and end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def close(self, timeout_s: float) -> None:
        """Wait for what is still to be sent, but not longer than that."""
        self.finish()
        if self._thread is not None:
            self._thread.join(timeout_s)
        with self._changed:
            self._counts.episodes_dropped += len(self._waiting)
            self._waiting.clear()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                report = self._waiting[0]
            is_taken = self._send(report)
            with self._changed:
                if not self._waiting:
                    return  # given up by close, and counted there
                self._waiting.popleft()
                self._counts.episodes_reported += is_taken
                self._counts.episodes_dropped += not is_taken

    def _send(self, report: Report) -> bool:
        for attempt in range(ATTEMPTS):
            if attempt:
                self._pause(min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S))
            try:
                connection = self._dial()
            except Exception:  # as in Link: whatever a name or an address may raise
                continue
            try:
                response = connection.exchange(report.request(), _MAX_ANSWER_BYTES, time.monotonic() + _ANSWER_S)
            except Miss:
                return False
            finally:
                connection.close()
            if response.status < 500:
                return response.status == 200
        return False

    def _pause(self, seconds: float) -> None:
        """Not once it is closed."""
        with self._changed:
            if not self._is_closed:
                self._changed.wait(seconds)
