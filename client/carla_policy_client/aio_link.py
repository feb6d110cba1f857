"""The one connection on asyncio's loop, kept by a task of its own; `link.py` says what holds."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from typing import Awaitable, Callable

from carla_policy_client.aio_connection import AsyncConnection
from carla_policy_client.breaker import Breaker
from carla_policy_client.dialling import CONNECT_TIMEOUT_S, Dialler, Place
from carla_policy_client.link import FIRST_PAUSE_S, LONGEST_PAUSE_S, NOT_YET, reason
from carla_policy_client.misses import DISCONNECTED, Miss


class AsyncLink:
    """Begins to connect when it is first asked; for one loop."""

    def __init__(self, dialler: Dialler, probe: Callable[[AsyncConnection], Awaitable[None]], breaker: Breaker) -> None:
        self._dialler = dialler
        self._probe = probe
        self._breaker = breaker
        self._idle: AsyncConnection | None = None
        self._is_closed = False
        self._task: asyncio.Future[None] | None = None
        self._news: asyncio.Future[None] | None = None
        self._why = NOT_YET
        self._retry_at = 0.0
        self.connects = 0

    async def take(self, due: float) -> AsyncConnection:
        """The connection, for one request; raises `Miss` if there is none by then, or will not be."""
        while True:
            connection, self._idle = self._idle, None
            if connection is not None:
                if await connection.is_usable():
                    return connection
                connection.close()
            self.want()
            left = due - max(time.monotonic(), self._retry_at)
            if left <= 0.0:
                raise Miss(DISCONNECTED, self._why)
            if self._news is None or self._news.done():
                self._news = asyncio.get_event_loop().create_future()
            await asyncio.wait([self._news], timeout=left)

    def give_back(self, connection: AsyncConnection) -> None:
        other: AsyncConnection | None = connection
        if not self._is_closed:
            self._idle, other = connection, self._idle
        if other is not None:
            other.close()

    def drop(self, connection: AsyncConnection) -> None:
        """Close `connection`, which was lent, and make another."""
        connection.close()
        self.want()

    def probe(self, after_s: float = 0.0) -> None:
        """The circuit has opened: make a connection, no sooner than in `after_s`, and lend it once a probe succeeds."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None
        self._retry_at = max(self._retry_at, time.monotonic() + after_s)
        self.want()

    def want(self) -> None:
        """See that a connection is being made."""
        if not self._is_closed and (self._task is None or self._task.done()):
            self._task = asyncio.ensure_future(self._work())

    async def close(self) -> None:
        self._is_closed = True
        if self._idle is not None:
            self._idle.close()
            self._idle = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._is_closed:
            await asyncio.sleep(max(0.0, self._retry_at - time.monotonic()))
            try:
                is_kept = await self._attempt()
            except asyncio.CancelledError:  # an Exception in Python 3.7
                raise
            except Exception as error:  # as in Link: whatever a name or an address may raise
                self._why = reason(error)
                self._retry_at = max(self._retry_at, time.monotonic() + pause_s * random.uniform(0.8, 1.2))
                pause_s = min(2.0 * pause_s, LONGEST_PAUSE_S)
                is_kept = False
            if self._news is not None and not self._news.done():
                self._news.set_result(None)
            if is_kept:
                return

    async def _attempt(self) -> bool:
        connection = await self._dial()
        self.connects += 1
        try:
            is_probed = self._breaker.is_open
            if is_probed:
                await self._probe(connection)
                self._breaker.succeed()
            if not is_probed and self._breaker.is_open:
                connection.close()
                return False
        except BaseException:
            connection.close()
            raise
        self.give_back(connection)
        return True

    async def _dial(self) -> AsyncConnection:
        failure: OSError | None = None
        for is_resolved in (False, True):
            for place in await self._resolve() if is_resolved else self._dialler.known:
                try:
                    connection = await asyncio.wait_for(self._connect(place), CONNECT_TIMEOUT_S)
                except asyncio.TimeoutError:
                    failure = OSError(f"no connection in {CONNECT_TIMEOUT_S:g} s")
                except OSError as error:
                    failure = error
                else:
                    self._dialler.known = [place]
                    return connection
        raise failure or OSError(f"{self._dialler.address.host} has no address")

    async def _connect(self, place: Place) -> AsyncConnection:
        context = self._dialler.context
        _, connection = await asyncio.get_event_loop().create_connection(
            AsyncConnection,
            host=place.where[0],
            port=place.where[1],
            family=place.family,
            ssl=context,
            server_hostname=self._dialler.address.host if context else None,
        )
        return connection

    async def _resolve(self) -> list[Place]:
        """In a thread that nothing waits for at the end: the loop's own would hold up the program's exit."""
        loop = asyncio.get_event_loop()
        found: asyncio.Future[list[Place]] = loop.create_future()

        def work() -> None:
            places: list[Place] | Exception
            try:
                places = self._dialler.resolve()
            except Exception as error:  # the loop's task shall have it, whatever it is
                places = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, found, places)

        threading.Thread(target=work, name="carla-policy-resolve", daemon=True).start()
        return await found


def _settle(found: asyncio.Future[list[Place]], places: list[Place] | Exception) -> None:
    if found.done():
        return
    if isinstance(places, Exception):
        found.set_exception(places)
    else:
        found.set_result(places)
