"""The one connection, kept by a thread of its own, which connects, waits between attempts, and probes a failed server.

`take` and `give_back` lend the connection to one request at a time. What went wrong is never lent again: it is closed,
and with it whatever answer is still on its way.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Callable

from carla_policy_client.breaker import Breaker
from carla_policy_client.connection import Connection
from carla_policy_client.misses import DISCONNECTED, Miss
from carla_policy_client.waiting import pause

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0
NOT_YET = "no connection yet"


class Link:
    """Starts to connect at once; thread-safe."""

    def __init__(self, dial: Callable[[], Connection], probe: Callable[[Connection], None], breaker: Breaker) -> None:
        """`probe` asks for a prediction and raises `Miss` while the server gives none; it is used while it is open."""
        self._dial = dial
        self._probe = probe
        self._breaker = breaker
        self._changed = threading.Condition()
        self._idle: Connection | None = None
        self._is_wanted = True
        self._is_closed = False
        self._why = NOT_YET
        self._retry_at = 0.0
        self.connects = 0
        """Connections made so far."""
        threading.Thread(target=self._work, name="carla-policy-client", daemon=True).start()

    def take(self, due: float) -> Connection:
        """The connection, for one request; raises `Miss` if there is none by then, or will not be."""
        while True:
            with self._changed:
                connection, self._idle = self._idle, None
                if connection is None:
                    self._want()
            if connection is not None:
                if connection.is_usable():
                    return connection
                connection.close()
            elif max(time.monotonic(), self._retry_at) >= due:
                raise Miss(DISCONNECTED, self._why)
            else:
                pause(due)

    def give_back(self, connection: Connection) -> None:
        with self._changed:
            other: Connection | None = connection
            if not self._is_closed:
                self._idle, other = connection, self._idle
        if other is not None:
            other.close()

    def drop(self, connection: Connection) -> None:
        """Close `connection`, which was lent, and make another."""
        connection.close()
        with self._changed:
            self._want()

    def probe(self, after_s: float = 0.0) -> None:
        """The circuit has opened: make a connection, no sooner than in `after_s`, and lend it once a probe succeeds."""
        with self._changed:
            connection, self._idle = self._idle, None
            self._retry_at = max(self._retry_at, time.monotonic() + after_s)
            self._want()
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Nothing is connected any more; does not wait for the thread, which may be resolving a name."""
        with self._changed:
            self._is_closed = True
            connection, self._idle = self._idle, None
            self._changed.notify_all()
        if connection is not None:
            connection.close()

    def abandon(self) -> None:
        """In a process that was forked: the connection and the thread are the parent's; locks may be anybody's."""
        connection, self._idle = self._idle, None
        if connection is not None:
            connection.close()

    def _want(self) -> None:
        self._is_wanted = True
        self._changed.notify_all()

    def _work(self) -> None:
        pause_s = FIRST_PAUSE_S
        while self._sleep_until_wanted():
            try:
                self._attempt()
                pause_s = FIRST_PAUSE_S
            except Exception as error:  # a name may also be beyond what Unicode's rules for names allow
                self._why = reason(error)
                self._retry_at = max(self._retry_at, time.monotonic() + pause_s * random.uniform(0.8, 1.2))
                pause_s = min(2.0 * pause_s, LONGEST_PAUSE_S)

    def _sleep_until_wanted(self) -> bool:
        """Whether a connection is to be made now; `False` once all is over."""
        with self._changed:
            while not self._is_wanted and not self._is_closed:
                self._changed.wait()
        while not self._is_closed and time.monotonic() < self._retry_at:
            time.sleep(min(0.02, max(0.0, self._retry_at - time.monotonic())))
        return not self._is_closed

    def _attempt(self) -> None:
        connection = self._dial()
        self.connects += 1
        is_probed = self._breaker.is_open
        if is_probed:
            try:
                self._probe(connection)
            except BaseException:
                connection.close()
                raise
            self._breaker.succeed()
        with self._changed:
            is_kept = not self._is_closed and (is_probed or not self._breaker.is_open)
            if is_kept:
                self._idle, self._is_wanted = connection, False
        if not is_kept:
            connection.close()


def reason(error: Exception) -> str:
    """Why there is no connection, in words."""
    return f"no connection: {getattr(error, 'strerror', None) or error}"
