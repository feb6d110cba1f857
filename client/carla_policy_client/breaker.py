"""The circuit breaker: a server that failed several times in a row is left alone until it is well again."""

from __future__ import annotations

import threading

CLOSED, OPEN = "closed", "open"


class Breaker:
    """Opens after `threshold` failures with no success between them; thread-safe."""

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._failures = 0
        self._lock = threading.Lock()
        self.state = CLOSED
        self.opened = 0
        """How often it has opened."""

    @property
    def is_open(self) -> bool:
        return self.state == OPEN

    def fail(self) -> bool:
        """Count a failure; whether that opened the circuit."""
        with self._lock:
            self._failures += 1
            if self.state == OPEN or self._failures < self._threshold:
                return False
            self.state = OPEN
            self.opened += 1
            return True

    def succeed(self) -> None:
        with self._lock:
            self._failures = 0
            self.state = CLOSED
