"""The circuit breaker of one worker: after failures in a row the network is given a rest, and then another chance."""

from __future__ import annotations

import time
from collections.abc import Callable

from carla_policy.specs import CircuitBreaker as CircuitBreakerSpec


class CircuitBreaker:
    """Closed: the network is asked. Open, after `failures` in a row: it is not, for `recovery_s` seconds.

    Then half open: one request is tried; its success closes the circuit, its failure opens it again.
    """

    def __init__(
        self,
        spec: CircuitBreakerSpec | None,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[str, str], None] = lambda _before, _after: None,
    ) -> None:
        """`on_change` hears of each outcome that opened or closed the circuit: the state before, and after."""
        self._spec = spec
        self._clock = clock
        self._on_change = on_change
        self._failures = 0
        self._opened: float | None = None

    @property
    def state(self) -> str:
        """`off`, `closed`, `open` or `half_open`."""
        if self._spec is None:
            return "off"
        if self._opened is None:
            return "closed"
        return "half_open" if self._clock() - self._opened >= self._spec.recovery_s else "open"

    def allows(self, already_asked: bool) -> bool:
        """Whether the network may be asked for one more request; half open, only for the first of a batch."""
        state = self.state
        return state in ("off", "closed") or (state == "half_open" and not already_asked)

    @property
    def is_on(self) -> bool:
        return self._spec is not None

    def record(self, failed: bool) -> None:
        """Count the outcome of one action that the network was asked for."""
        if self._spec is None:
            return
        before = self.state
        self._failures = self._failures + 1 if failed else 0
        if not failed:
            self._opened = None
        elif self._opened is not None or self._failures >= self._spec.failures:
            self._opened = self._clock()
        after = self.state
        if after != before:
            self._on_change(before, after)
