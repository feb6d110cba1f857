"""Requests take turns with the simulator: one at a time, each to its end, and none waits for longer than it may.

A request goes on when its client has gone, so that a repeat of it finds the answer. A call of the simulator that takes
longer than the time limit is given up for the client, not for the simulator: nothing else is done until it ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from carla_policy_environment.service.errors import ServiceError
from carla_policy_environment.service.simulator_thread import SimulatorThread
from carla_policy_environment.simulators.base import InvalidOptions, SimulatorError, SnapshotsNotSupported

T = TypeVar("T")
MAX_WAITING = 64
log = logging.getLogger(__name__)


class Turns:
    """Who uses the simulator in `thread`; `failure` is why its state is not known, until somebody sets it to `None`."""

    def __init__(self, thread: SimulatorThread, time_limit_s: float) -> None:
        self._thread = thread
        self._time_limit_s = time_limit_s
        self.failure: str | None = None
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._running: tuple[str, float] | None = None

    @property
    def stuck(self) -> str | None:
        """What has been running for longer than it may; `None` if nothing has."""
        limit_s = self._time_limit_s
        if self._running and (running_s := time.monotonic() - self._running[1]) > limit_s:
            return f"{self._running[0]} has been running for {running_s:.1f} s, and may take {limit_s:g} s"
        return None

    async def alone(self, name: str, body: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `body` when all requests before it are done; it goes on if the client does not wait for it."""
        limit_s = self._time_limit_s
        if self.stuck:
            raise ServiceError(503, "Busy", f"nothing was done: {self.stuck}")
        if self._waiting >= MAX_WAITING:
            raise ServiceError(503, "Busy", f"nothing was done: {self._waiting} requests are waiting already")
        self._waiting += 1
        try:
            await asyncio.wait_for(self._lock.acquire(), limit_s)
        except asyncio.TimeoutError:
            reason = self.stuck or f"other requests took the {limit_s:g} s for which a request waits"
            raise ServiceError(503, "Busy", f"nothing was done: {reason}") from None
        finally:
            self._waiting -= 1
        task = asyncio.create_task(self._finish(name, body))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait({task}, timeout=limit_s)
        except asyncio.CancelledError:  # by the server, which ends and has waited long enough
            raise ServiceError(503, "Ending", f"the service ends; whether {name} was done is not known") from None
        if task.done():
            return task.result()
        raise ServiceError(
            504, "TimeLimit", f"{name} takes longer than {limit_s:g} s; whether it will end is not known, /health tells"
        )

    async def _finish(self, name: str, body: Callable[[], Coroutine[Any, Any, T]]) -> T:
        self._running = name, time.monotonic()
        try:
            return await body()
        finally:
            self._running = None
            self._lock.release()

    async def call(self, name: str, function: Callable[[], T], *, must_succeed: bool = False) -> T:
        """Call the simulator; after a failure of what `must_succeed`, its state is not known until it is reset."""
        outcome = await self._thread.call(function)
        error = outcome.error
        if error is None:
            return outcome.value
        kind = type(error).__name__
        if isinstance(error, InvalidOptions):
            raise ServiceError(422, kind, str(error)) from error
        if isinstance(error, SnapshotsNotSupported):
            raise ServiceError(501, kind, str(error)) from error
        if must_succeed or isinstance(error, SimulatorError):
            self.failure = f"{name} failed: {kind}: {error}"
        log.error("%s failed in the simulator", name, exc_info=error)
        code = 503 if isinstance(error, SimulatorError) else 500
        raise ServiceError(code, kind, f"{name} failed in the simulator: {kind}: {error}") from error
