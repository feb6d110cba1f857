"""What a vehicle does in a step without an answer: a fixed action, the last good one, or less and less of that."""

from __future__ import annotations

from abc import ABC, abstractmethod

from carla_policy_client.actions import FULL_BRAKE, Action


class Fallback(ABC):
    """Chooses an action from the last good one; keeps nothing itself, so one object may serve many vehicles."""

    @abstractmethod
    def action(self, last: Action | None, age_s: float) -> Action:
        """`last` is the policy's last action in this episode, `None` before the first, `age_s` seconds old."""


class Fixed(Fallback):
    """Always the same action."""

    def __init__(self, action: Action = FULL_BRAKE) -> None:
        self._action = _checked(action)

    def action(self, last: Action | None, age_s: float) -> Action:  # noqa: ARG002
        return self._action


class Hold(Fallback):
    """The last good action until it is `seconds` old, then `then`."""

    def __init__(self, seconds: float, then: Action = FULL_BRAKE) -> None:
        self._seconds = _positive(seconds)
        self._then = _checked(then)

    def action(self, last: Action | None, age_s: float) -> Action:
        return last if last is not None and age_s <= self._seconds else self._then


class Decay(Fallback):
    """Within `seconds` from the last good action to standing on the brake.

    Throttle runs out in the first half, and only then the brake comes up, so that there are never both; steering goes
    to straight ahead all the while. A brake that was on stays on.
    """

    def __init__(self, seconds: float, brake: float = 1.0) -> None:
        self._seconds = _positive(seconds)
        self._end = Action(brake=brake)

    def action(self, last: Action | None, age_s: float) -> Action:
        gone = age_s / self._seconds
        if last is None or not 0.0 <= gone < 1.0:
            return self._end
        pressed = max(0.0, 2.0 * gone - 1.0) * self._end.brake
        return Action(
            throttle=last.throttle * max(0.0, 1.0 - 2.0 * gone),
            brake=max(last.brake, pressed),
            steer=last.steer * (1.0 - gone),
        )


def as_fallback(fallback: Action | Fallback) -> Fallback:
    """A fixed action is a strategy, too."""
    if isinstance(fallback, Fallback):
        return fallback
    return Fixed(fallback)


def _checked(action: Action) -> Action:
    if not isinstance(action, Action):
        raise TypeError(f"fallback: expected an Action, Hold or Decay, got {action!r:.40}")
    return action


def _positive(seconds: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"seconds: expected a number, got {seconds!r:.40}")
    if not 0.0 < seconds < float("inf"):
        raise ValueError(f"seconds: expected a number above 0, got {seconds!r}")
    return float(seconds)
