"""What a service is told at its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServiceSettings:
    """Limits of one service; `ValueError` names one that makes no sense."""

    max_steps: int | None = None
    """Steps after which an episode is truncated; `None` leaves that to the simulator."""
    frame_skip: int = 1
    """Steps of the simulator for one of the service, all with the same action; their rewards are added."""
    time_limit_s: float = 60.0
    """Seconds that a call of the simulator may take, and that a request waits for those before it."""
    snapshot_limit: int = 64
    """Snapshots that are kept; they are in memory."""
    max_body_bytes: int = 1 << 20
    """Bytes of a request's body."""

    def __post_init__(self) -> None:
        limits = {"max_steps": self.max_steps, "frame_skip": self.frame_skip, "time_limit_s": self.time_limit_s}
        limits |= {"snapshot_limit": self.snapshot_limit, "max_body_bytes": self.max_body_bytes}
        for name, value in limits.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected a number above 0, got {value}")
