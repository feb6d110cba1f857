"""The one thread in which the simulator lives: made, used and closed there, one call after another.

Simulators block, and some hold to the thread that made them. Here a blocked call keeps nobody waiting but who asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeAlias, TypeVar

from carla_policy_environment.simulators.base import Simulator

T = TypeVar("T")


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
        self._thread = Thread(target=self._serve, name="simulator", daemon=True)
        self._thread.start()
        self.simulator = self._submit(make_simulator).result().result()

    async def call(self, function: Callable[[], T]) -> Outcome[T]:
        """Run `function` in the thread, after all that was asked before."""
        return await asyncio.wrap_future(self._submit(function))

    def close(self, timeout_s: float) -> bool:
        """Close the simulator and end the thread; false if it is still in a call after `timeout_s`."""
        self._submit(self.simulator.close)
        self._calls.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _submit(self, function: Callable[[], T]) -> Future[Outcome[T]]:
        future: Future[Outcome[T]] = Future()
        self._calls.put((function, future))
        return future

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future = call
            if future.set_running_or_notify_cancel():
                future.set_result(Outcome(function))
