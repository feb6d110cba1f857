"""`PolicyClient` on asyncio: the same actions for the same reasons, and the loop is free while a step waits."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any, Sequence

from carla_policy_client.actions import FULL_BRAKE, Action
from carla_policy_client.aio_connection import AsyncConnection
from carla_policy_client.aio_link import AsyncLink
from carla_policy_client.answers import Answer
from carla_policy_client.dialling import Dialler
from carla_policy_client.driver import Driver, Step
from carla_policy_client.fallbacks import Fallback
from carla_policy_client.http11 import Response
from carla_policy_client.misses import BUSY, REFUSED, Miss, as_miss
from carla_policy_client.observations import AnyObservation
from carla_policy_client.reporting import Reporter
from carla_policy_client.statistics import Statistics


class AsyncPolicyClient:
    """For one loop; it connects at the first step, or when an `async with` is entered.

    Steps of several tasks take turns; one that gets no turn within its deadline falls back with the reason `busy`.
    A deadline holds as far as the loop comes round: what blocks it, blocks every step.
    """

    def __init__(
        self,
        url: str,
        version: str | None = None,
        deadline_s: float = 0.05,
        fallback: Action | Fallback = FULL_BRAKE,
        vehicle_id: str | None = None,
        token: str | None = None,
        *,
        model: str = "carla_policy",
        failures_to_open: int = 5,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Arguments are those of `PolicyClient`."""
        self._driver = Driver(url, version, deadline_s, fallback, vehicle_id, token, model, failures_to_open)
        dialler = Dialler(self._driver.address, ssl_context)
        self._reporter = Reporter(dialler.dial, self._driver.counts)
        self._link = AsyncLink(dialler, self._probe, self._driver.breaker)
        self._turn: asyncio.Future[None] | None = None

    async def act(self, observation: AnyObservation, deterministic: bool = True, seed: int | None = None) -> Action:
        """As `PolicyClient.act`."""
        return (await self._act([observation], False, deterministic, seed))[0]

    async def act_many(
        self, observations: Sequence[AnyObservation], deterministic: bool = True, seed: int | None = None
    ) -> list[Action]:
        """As `PolicyClient.act_many`."""
        listed = list(observations)
        return await self._act(listed, True, deterministic, seed) if listed else []

    def set_override(self, action: Action) -> None:
        """From now on `action` is what every step returns, also one that is under way; from any thread."""
        self._driver.set_override(action)

    def release(self) -> None:
        """Give control back to the policy; from any thread."""
        self._driver.release()

    def start_episode(self, episode_id: str | None = None) -> str:
        """As `PolicyClient.start_episode`."""
        return self._driver.start_episode(episode_id)

    def end_episode(self, total_return: float, length: int) -> bool:
        """As `PolicyClient.end_episode`: the report is sent by a thread, and nothing waits for it."""
        report = self._driver.end_episode(total_return, length)
        return report is not None and self._reporter.put(report)

    @property
    def vehicle_id(self) -> str:
        """As whom the server knows this vehicle; one is made up where none is given."""
        return self._driver.vehicle_id

    @property
    def statistics(self) -> Statistics:
        """What has been counted so far."""
        return self._driver.statistics(self._link.connects)

    async def close(self, timeout_s: float = 1.0) -> None:
        """End the connection, after waiting so long at most for reports; `act` falls back from now on."""
        self._driver.is_closed = True
        await self._link.close()
        await asyncio.get_event_loop().run_in_executor(None, self._reporter.close, timeout_s)

    async def __aenter__(self) -> AsyncPolicyClient:
        self._link.want()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _act(self, observed: list[Any], is_fleet: bool, deterministic: bool, seed: int | None) -> list[Action]:
        driver = self._driver
        step = driver.begin(len(observed), is_fleet, deterministic, seed)
        overridden = driver.overridden(step)
        if overridden is not None:
            return overridden
        turn: asyncio.Future[None] | None = None
        try:
            turn = await self._take_turn(step.due)
            driver.admit(step, observed)
            return driver.accept(step, await self._exchange(step))
        except asyncio.CancelledError:  # an Exception in Python 3.7
            raise
        except Exception as error:
            miss = as_miss(error)
            if driver.note(miss):
                self._link.probe(miss.retry_after_s)
            return driver.fall_back(step, miss)
        finally:
            if turn is not None:
                turn.set_result(None)

    async def _take_turn(self, due: float) -> asyncio.Future[None]:
        while self._turn is not None and not self._turn.done():
            left = due - time.monotonic()
            if left <= 0.0:
                raise Miss(BUSY, "another step took all of the deadline")
            await asyncio.wait([self._turn], timeout=left)
        self._turn = asyncio.get_event_loop().create_future()
        return self._turn

    async def _exchange(self, step: Step) -> Answer:
        while True:
            connection = await self._link.take(step.due)
            was_used = connection.exchanges > 0
            try:
                return self._driver.read(step, await self._exchange_over(connection, step))
            except Miss as miss:
                if not self._driver.should_try_again(step, miss, was_used):
                    raise

    async def _exchange_over(self, connection: AsyncConnection, step: Step) -> Response:
        try:
            response = await connection.exchange(self._driver.request(step), step.asked.max_body_bytes, step.due)
        except BaseException:
            self._link.drop(connection)
            raise
        if response.keep_alive and response.status == 200:
            self._link.give_back(connection)
        else:
            self._link.drop(connection)
        return response

    async def _probe(self, connection: AsyncConnection) -> None:
        step = self._driver.probing()
        if step is None:
            return
        try:
            request = self._driver.request(step)
            self._driver.read(step, await connection.exchange(request, step.asked.max_body_bytes, step.due))
        except Miss as miss:
            if miss.reason != REFUSED:
                raise
