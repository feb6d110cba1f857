"""Why a step has no answer of the policy, each reason a word to count by."""

from __future__ import annotations

LATE = "late"
"""No whole answer before the deadline; or the server said so itself."""
DISCONNECTED = "disconnected"
"""No connection, or it ended before the answer did."""
REFUSED = "refused"
"""A status of 400 to 499: the server is well and will say the same again."""
UNAVAILABLE = "unavailable"
"""A status of 500 to 599, 408 or 429: the server cannot answer at the moment."""
INVALID = "invalid"
"""What came is no answer to this request, or no action that a vehicle may execute."""
CIRCUIT_OPEN = "circuit_open"
"""The server failed several times in a row; it is asked again in the background, not by `act`."""
BUSY = "busy"
"""Another thread's step, or another task's, held the client until the deadline."""
OBSERVATION = "observation"
"""The observation has no finite numbers where they are needed; nothing was sent."""
CLOSED = "closed"
"""The client has been closed."""
INTERNAL = "internal"
"""The client itself failed: a bug, which the message names."""
REASONS = (LATE, DISCONNECTED, REFUSED, UNAVAILABLE, INVALID, CIRCUIT_OPEN, BUSY, OBSERVATION, CLOSED, INTERNAL)

_SERVER_S = frozenset([LATE, DISCONNECTED, UNAVAILABLE, INVALID])


class Miss(Exception):
    """A step without an answer of the policy."""

    def __init__(self, reason: str, message: str, retry_after_s: float = 0.0, kind: str = "") -> None:
        """`kind` is the status and type of a refusal; `retry_after_s` what the server asks for."""
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.kind = kind

    @property
    def is_the_server_s(self) -> bool:
        """Whether it speaks for opening the circuit."""
        return self.reason in _SERVER_S


def as_miss(error: Exception) -> Miss:
    """`error` itself if it is a miss: whatever else goes wrong, the vehicle needs an action."""
    return error if isinstance(error, Miss) else Miss(INTERNAL, f"{type(error).__name__}: {error}")


class Hangup(Miss):
    """The server ended the connection before the first byte of an answer: it may never have seen the request."""

    def __init__(self, message: str) -> None:
        super().__init__(DISCONNECTED, message)
