"""What can go wrong with a service, as its user sees it: a class for each thing that a caller may react to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ServiceError(RuntimeError):
    """A service did not do what it was asked; the message names its address, what it said, and what to do."""

    def __init__(self, message: str, *, url: str, status: int | None = None, type_: str | None = None) -> None:
        super().__init__(f"{url}: {message}")
        self.url = url
        self.status = status
        """The status of its answer, where there was one."""
        self.type = type_
        """The `type` of its answer, where there was one."""


class ServiceUnavailable(ServiceError, ConnectionError):
    """Nobody answers at its address, or not in time: it is not there, is starting, frozen or cut off."""


class ServiceBusy(ServiceError):
    """Somebody else has a session with it."""


class SessionExpired(ServiceError):
    """Our session with it was idle for too long, or the service was restarted; another can be opened."""


class EpisodeLost(ServiceError):
    """The episode that was under way is not there any more: the service was restarted, or somebody else reset it."""


class SimulatorFailed(ServiceError):
    """The service is there, but its simulator is broken, away or too slow; a reset may help."""


class RequestRefused(ServiceError, ValueError):
    """The request itself was wrong, and would be again: an action outside of its space, an unknown snapshot."""


def refusal(url: str, status: int, answer: Mapping[str, Any]) -> ServiceError:
    """The exception for an error that a service answered."""
    type_ = str(answer.get("type", ""))
    message = str(answer.get("message", "an error without a message"))
    return _kind(status, type_)(f"{message} ({status} {type_})", url=url, status=status, type_=type_)


def _kind(status: int, type_: str) -> type[ServiceError]:
    if status in _FAILURES:
        return SimulatorFailed
    return _KINDS.get(type_, RequestRefused)


_FAILURES = (500, 502, 503, 504)
_KINDS: dict[str, type[ServiceError]] = {
    "SessionHeld": ServiceBusy,
    "SessionOver": SessionExpired,
    "EpisodeOver": EpisodeLost,
    "WrongStep": EpisodeLost,
    "ResetRequired": EpisodeLost,
}
