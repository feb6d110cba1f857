"""What a vehicle, or a fleet that is asked for together, takes from one step of an episode to the next."""

from __future__ import annotations

from typing import Any, Sequence

from carla_policy_client.actions import Action


class Memory:
    """Of one episode: the last good actions, and a recurrent policy's state."""

    def __init__(self) -> None:
        self._rows = 0  # of the last answer, 0 before the first
        self._state: str | None = None
        self._last: Sequence[Action] = ()
        self._at = 0.0

    def options(self, rows: int) -> dict[str, Any]:
        """What a request of so many observations says of the past; a policy that is not recurrent does not mind."""
        if rows != self._rows:
            return {"episode_start": True}
        return {} if self._state is None else {"state": self._state}

    def keep(self, actions: Sequence[Action], state: str | None, at: float) -> None:
        """An answer has come `at` that time."""
        self._rows, self._state, self._last, self._at = len(actions), state, actions, at

    def begin_anew(self) -> bool:
        """Forget the state, as the server has no use for it; whether there was more to forget than nothing."""
        known, self._rows, self._state = self._rows, 0, None
        return known > 0

    def last(self, row: int, rows: int, now: float) -> tuple[Action | None, float]:
        """The last good action of that row and how old it is."""
        return (self._last[row], now - self._at) if len(self._last) == rows else (None, 0.0)
