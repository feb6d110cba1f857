"""Asks a service how it is, and judges when that is so bad for so long that it has to be started again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum

from carla_policy_environment.api_client import ServiceClient
from carla_policy_environment.errors import ServiceError


class State(str, Enum):
    """Where a service stands."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    """It says of itself that its simulator does not work."""
    SILENT = "silent"
    """It does not answer: frozen, or too busy to."""
    WAITING = "waiting"
    """Before its next start."""
    FAILED = "failed"
    """It was started as often as it may be."""
    STOPPED = "stopped"


@dataclass(frozen=True)
class WatchSettings:
    """When a service counts as failed, and how often it is started again."""

    start_timeout_s: float = 180.0
    probe_interval_s: float = 1.0
    probe_timeout_s: float = 2.0
    silent_s: float = 15.0
    """One that does not answer for so long is killed."""
    unhealthy_s: float = 60.0
    """So long a user has to bring a broken simulator back by a reset."""
    max_restarts: int = 5
    """In a row; one that was ready for `stable_s` counts from 0 again."""
    stable_s: float = 60.0
    retry_first_start: bool = False
    """Whether one that was never ready is started again too; else what is wrong is taken to be its options."""
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0
    max_memory_mb: float | None = None
    """A service that takes more is started again, which ends its episode."""


class Probe:
    """Questions to the service at `url`, which has just been started."""

    def __init__(self, url: str, settings: WatchSettings) -> None:
        self.state = State.STARTING
        self._client = ServiceClient(url, settings.probe_timeout_s)
        self._settings = settings
        self._began = self._last_answer = time.monotonic()
        self._unhealthy_since: float | None = None

    def ask(self) -> str | None:
        """Ask once, and set `state` to what follows; why it has to be started again, if it does."""
        settings = self._settings
        try:
            answer = self._client.health(settings.probe_timeout_s)
        except ServiceError:
            return self._no_answer()
        self._last_answer = now = time.monotonic()
        if answer.get("status") == "ok":
            self.state, self._unhealthy_since = State.READY, None
            return None
        self.state = State.UNHEALTHY
        self._unhealthy_since = self._unhealthy_since or now
        if now - self._unhealthy_since < settings.unhealthy_s:
            return None
        return f"it was unhealthy for {settings.unhealthy_s:g} s: {answer.get('reason')}"

    def close(self) -> None:
        self._client.close()

    def _no_answer(self) -> str | None:
        now, settings = time.monotonic(), self._settings
        if self.state is State.STARTING:
            late = now - self._began > settings.start_timeout_s
            return f"it was not ready after {settings.start_timeout_s:g} s" if late else None
        self.state = State.SILENT
        late = now - self._last_answer > settings.silent_s
        return f"it has not answered for {settings.silent_s:g} s" if late else None
