"""Exclusive use of the service: while a session is open, only its holder changes the simulator's state."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from carla_policy_environment.service.errors import ServiceError, conflict


def now() -> str:
    """The present time in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@dataclass
class Session:
    session_id: str
    name: str | None
    opened: str
    idle_timeout_s: float
    last_used: float


class Sessions:
    """At most one open session, which expires when it is idle."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: Session | None = None

    @property
    def open(self) -> Session | None:
        """The open session; one that was idle for too long is not."""
        session = self._open
        if session and self._clock() - session.last_used >= session.idle_timeout_s:
            self._open = session = None
        return session

    def begin(self, name: str | None, idle_timeout_s: float) -> Session:
        """Open a session; 409 while there is one."""
        self._refuse_others(None)
        self._open = Session(uuid.uuid4().hex, name, now(), idle_timeout_s, self._clock())
        return self._open

    def check(self, session_id: str | None) -> None:
        """409 unless a request with `session_id`, or without any, may change the state now."""
        if session_id is not None and (self.open is None or self.open.session_id != session_id):
            raise conflict("SessionOver", f"session {session_id} is not open, it was ended or idle; open one again")
        self._refuse_others(session_id)
        self.touch(session_id)

    def touch(self, session_id: str | None) -> None:
        """The session was used just now."""
        if self._open and self._open.session_id == session_id:
            self._open.last_used = self._clock()

    def get(self, session_id: str) -> Session:
        """The open session if it is `session_id`, else 404."""
        if (session := self.open) and session.session_id == session_id:
            return session
        raise ServiceError(404, "NotFound", f"no session {session_id} is open")

    def end(self, session_id: str) -> None:
        """Close it; 404 if it is not the open one."""
        self.get(session_id)
        self._open = None

    def entry(self, session: Session) -> dict[str, Any]:
        """The session as an answer shows it."""
        idle_s = round(self._clock() - session.last_used, 3)
        return {
            "session_id": session.session_id,
            "name": session.name,
            "opened": session.opened,
            "idle_timeout_s": session.idle_timeout_s,
            "idle_s": idle_s,
        }

    def _refuse_others(self, session_id: str | None) -> None:
        session = self.open
        if session and session.session_id != session_id:
            holder = f"{session.name or 'somebody'} (since {session.opened})"
            raise conflict(
                "SessionHeld",
                f"{holder} holds this service; requests that change it need that session's x-session-id. It ends when "
                f"deleted, or after {session.idle_timeout_s:g} s without a request",
            )
