"""The client of a control loop: `act` returns an action within the deadline, whatever the server does."""

from __future__ import annotations

import functools
import os
import ssl
import threading
import time
import weakref
from typing import Any, Sequence

from carla_policy_client.actions import FULL_BRAKE, Action
from carla_policy_client.answers import Answer
from carla_policy_client.connection import Connection
from carla_policy_client.dialling import Dialler
from carla_policy_client.driver import Driver, Step
from carla_policy_client.fallbacks import Fallback
from carla_policy_client.http11 import Response
from carla_policy_client.link import Link
from carla_policy_client.misses import BUSY, REFUSED, Miss, as_miss
from carla_policy_client.observations import AnyObservation
from carla_policy_client.reporting import Reporter
from carla_policy_client.statistics import Statistics


class PolicyClient:
    """Asks one server for actions over one connection that is kept.

    Thread-safe: steps of several threads take turns, and one that gets no turn within its deadline falls back with
    the reason `busy`. `TypeError` or `ValueError` for arguments that cannot be used; `act` raises them for
    `deterministic` and `seed` alone. After `os.fork` the child's first step makes a connection of its own, and counts
    from zero.
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
        """`version` `None` asks whichever is promoted. After `failures_to_open` in a row the circuit opens."""
        self._new_driver = functools.partial(
            Driver, url, version, deadline_s, fallback, vehicle_id, token, model, failures_to_open
        )
        self._ssl_context = ssl_context
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._turn = threading.Lock()
        self._driver = self._new_driver()
        dialler = Dialler(self._driver.address, self._ssl_context)
        self._reporter = Reporter(dialler.dial, self._driver.counts)
        self._link = Link(dialler.dial, functools.partial(_probe, self._driver), self._driver.breaker)
        # Threads know the link and the reporter, but not the client: one that is forgotten ends them.
        weakref.finalize(self, self._link.close)
        weakref.finalize(self, self._reporter.finish)

    def act(self, observation: AnyObservation, deterministic: bool = True, seed: int | None = None) -> Action:
        """The action for `observation`: the policy's if it comes in time, else the fallback's, or a human's."""
        return self._act([observation], False, deterministic, seed)[0]

    def act_many(
        self, observations: Sequence[AnyObservation], deterministic: bool = True, seed: int | None = None
    ) -> list[Action]:
        """An action for each of `observations`, in one request: all are the policy's, or none is."""
        listed = list(observations)
        return self._act(listed, True, deterministic, seed) if listed else []

    def set_override(self, action: Action) -> None:
        """From now on `action` is what every step returns, also one that is under way."""
        self._driver.set_override(action)

    def release(self) -> None:
        """Give control back to the policy."""
        self._driver.release()

    @property
    def statistics(self) -> Statistics:
        """What has been counted so far."""
        return self._driver.statistics(self._link.connects)

    def start_episode(self, episode_id: str | None = None) -> str:
        """Begin an episode: a recurrent policy forgets, `Hold` and `Decay` too; returns the episode's id.

        In a canary all steps of an episode get the same version.
        """
        return self._driver.start_episode(episode_id)

    def end_episode(self, total_return: float, length: int) -> bool:
        """Report an episode's undiscounted return and its steps, in the background; whether that will be tried.

        An episode that no version drove, or more than one, is not reported: nobody knows whose return it is.
        """
        report = self._driver.end_episode(total_return, length)
        return report is not None and self._reporter.put(report)

    def close(self, timeout_s: float = 1.0) -> None:
        """End the connection, after waiting so long at most for reports; `act` falls back from now on."""
        self._driver.is_closed = True
        self._link.close()
        self._reporter.close(timeout_s)

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def vehicle_id(self) -> str:
        """As whom the server knows this vehicle; one is made up where none is given."""
        return self._driver.vehicle_id

    def _act(self, observed: list[Any], is_fleet: bool, deterministic: bool, seed: int | None) -> list[Action]:
        if os.getpid() != self._process and not self._driver.is_closed:
            self._link.abandon()
            self._begin()
        driver = self._driver
        step = driver.begin(len(observed), is_fleet, deterministic, seed)
        overridden = driver.overridden(step)
        if overridden is not None:
            return overridden
        if not self._turn.acquire(timeout=step.due - time.monotonic()):
            return driver.fall_back(step, Miss(BUSY, "another step took all of the deadline"))
        try:
            driver.admit(step, observed)
            answer = self._exchange(step)
            return driver.accept(step, answer)
        except Exception as error:
            miss = as_miss(error)
            if driver.note(miss):
                self._link.probe(miss.retry_after_s)
            return driver.fall_back(step, miss)
        finally:
            self._turn.release()

    def _exchange(self, step: Step) -> Answer:
        while True:
            connection = self._link.take(step.due)
            was_used = connection.exchanges > 0
            try:
                return self._driver.read(step, self._exchange_over(connection, step))
            except Miss as miss:
                if not self._driver.should_try_again(step, miss, was_used):
                    raise

    def _exchange_over(self, connection: Connection, step: Step) -> Response:
        try:
            response = connection.exchange(self._driver.request(step), step.asked.max_body_bytes, step.due)
        except BaseException:
            self._link.drop(connection)
            raise
        if response.keep_alive and response.status == 200:
            self._link.give_back(connection)
        else:
            self._link.drop(connection)
        return response


def _probe(driver: Driver, connection: Connection) -> None:
    step = driver.probing()
    if step is None:
        return
    try:
        request = driver.request(step)
        driver.read(step, connection.exchange(request, step.asked.max_body_bytes, step.due))
    except Miss as miss:
        if miss.reason != REFUSED:
            raise
