"""Where an episode stands, as far as the user's side of a service knows, and what led there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Prefix:
    """What led to a state: the seed and options of the reset, then the actions, and what each of them was worth."""

    seed: int
    options: dict[str, Any]
    actions: tuple[Any, ...]
    rewards: tuple[float, ...]


@dataclass
class Episode:
    """Where the episode stands, as far as this side knows."""

    id: str
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    service_step: int = 0
    steps: int = 0
    """Calls of `step`; the service counts `frame_skip` for each."""
    over: bool = False
    actions: list[Any] | None = field(default_factory=list)
    """Since the reset; unknown for a state that somebody else brought about."""
    rewards: list[float] = field(default_factory=list)

    def copy(self) -> Episode:
        actions = None if self.actions is None else list(self.actions)
        return replace(self, actions=actions, rewards=list(self.rewards))
