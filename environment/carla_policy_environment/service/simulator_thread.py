"""The one thread in which the simulator lives: made, used and closed there, one call after another.

Simulators block, and some hold to the thread that made them. Here a blocked call keeps nobody waiting but who asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeAlias, TypeVar

from carla_policy_environment.simulators.base import Simulator

log = logging.getLogger(__name__)
T = TypeVar("T")
GIVEN_UP_S = 1.0


class Outcome(Generic[T]):
    """What a call returned or raised; raised again by `result`.

    A future cannot carry `StopIteration`, and would end the loop with `SystemExit`: a simulator may raise either.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self.error: BaseException | None = None
        try:
            self.value = function()
        except BaseException as error:
            self.error = error

    def result(self) -> T:
        if self.error is not None:
            raise self.error
        return self.value


Call: TypeAlias = "tuple[Callable[[], Any], Future[Outcome[Any]]]"


class SimulatorThread:
    """Makes a simulator in a thread of its own; whatever that raises, this does too."""

    def __init__(self, make_simulator: Callable[[], Simulator]) -> None:
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._going_on: Future[Outcome[Any]] | None = None
        self._thread = Thread(target=self._serve, name="simulator", daemon=True)
        self._thread.start()
        made = self._submit(make_simulator).result()
        if made.error is not None:
            self._calls.put(None)
        self.simulator = made.result()

    async def call(self, function: Callable[[], T]) -> Outcome[T]:
        """Run `function` in the thread, after all that was asked before."""
        return await asyncio.wrap_future(self._submit(function))

    def close(self, timeout_s: float) -> bool:
        """Close the simulator and end the thread; false if that takes longer than `timeout_s`.

        A call that is going on is not waited for as long as that: it has been given up by all others.
        """
        going_on = self._going_on
        closing = self._submit(self.simulator.close)
        self._calls.put(None)
        if going_on is not None:
            self._thread.join(GIVEN_UP_S)
            if self._going_on is going_on:
                return False
        self._thread.join(timeout_s)
        if closing.done() and (error := closing.result().error):
            log.error("closing failed", exc_info=error)
        return closing.done()

    def _submit(self, function: Callable[[], T]) -> Future[Outcome[T]]:
        future: Future[Outcome[T]] = Future()
        self._calls.put((function, future))
        return future

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future = call
            if future.set_running_or_notify_cancel():
                self._going_on = future
                future.set_result(Outcome(function))
                self._going_on = None
