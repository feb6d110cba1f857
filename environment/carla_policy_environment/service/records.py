"""What the service remembers: where its episode stands, and the snapshots that can be gone back to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from carla_policy_environment.service.errors import ServiceError, conflict


@dataclass(frozen=True)
class Episode:
    """Where an episode stands: its last observation and info, as they go over the wire."""

    episode_id: str
    step: int
    observed: dict[str, Any]
    ended: bool = False
    action: Any = None
    answer: bytes | None = None
    """The answer to the last step, as long as a repeat of it may come."""

    @property
    def place(self) -> dict[str, Any]:
        return {"episode_id": self.episode_id, "step": self.step}


@dataclass(frozen=True)
class Snapshot:
    """A state of the simulator, and the episode that it belongs to."""

    snapshot_id: str
    name: str | None
    created: str
    episode: Episode
    state: object

    @property
    def entry(self) -> dict[str, Any]:
        return {
            "snapshot_id": self.snapshot_id,
            "name": self.name,
            **self.episode.place,
            "created": self.created,
        }


class Snapshots:
    """No more than `limit` snapshots, the oldest first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[str, Snapshot] = {}

    def __getitem__(self, snapshot_id: str) -> Snapshot:
        """404 if there is none of this name."""
        if snapshot := self._kept.get(snapshot_id):
            return snapshot
        raise ServiceError(404, "NotFound", f"no snapshot {snapshot_id}; GET /snapshot/list tells which there are")

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [snapshot.entry for snapshot in self._kept.values()]

    def check_room(self) -> None:
        """409 if there is no room for one more: none is forgotten to make some."""
        if len(self._kept) >= self._limit:
            oldest = next(iter(self._kept))
            raise conflict(
                "SnapshotLimit",
                f"there are {len(self._kept)} snapshots, as many as are kept; delete one first, such as the "
                f"oldest: DELETE /snapshot/{oldest}",
            )

    def add(self, snapshot: Snapshot) -> None:
        self._kept[snapshot.snapshot_id] = snapshot

    def remove(self, snapshot_id: str) -> None:
        """404 if there is none of this name."""
        del self._kept[self[snapshot_id].snapshot_id]
