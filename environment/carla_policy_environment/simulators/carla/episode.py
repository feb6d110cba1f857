"""What of an episode is in this process: how far it has come, what has happened, and what a step says of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from carla_policy_environment.simulators.base import Info, Observation
from carla_policy_environment.simulators.carla.config import Finite, Settings
from carla_policy_environment.simulators.carla.observing import Frame
from carla_policy_environment.simulators.carla.rewards import Outcome, StepFacts
from carla_policy_environment.simulators.carla.route import Route
from carla_policy_environment.simulators.carla.snapshots import WorldState


class ResetOptions(Settings):
    """What a reset may choose for its episode, over the configuration."""

    spawn_point: int | None = Field(default=None, ge=0)
    destination: int | None = Field(default=None, ge=0)
    weather: str | dict[str, Finite] | None = None


@dataclass
class Episode:
    """What of an episode is in this process; a snapshot keeps a copy."""

    number: int
    seed: int
    route: Route
    step: int = 0
    done_m: float = 0.0
    furthest_m: float = 0.0
    action: tuple[float, float, float] = (0.0, 0.0, 0.0)
    collisions: int = 0
    lane_invasions: int = 0


@dataclass(frozen=True)
class CarlaSnapshot:
    """A state of the world and of the episode in it, with what was observed."""

    world: WorldState
    episode: Episode
    observation: Observation
    info: Info
    image: NDArray[np.uint8] | None = field(repr=False)


def advance(episode: Episode, frame: Frame, *, duration_s: float) -> StepFacts:
    """Take the step that led to `frame` into account: the facts that it is judged by."""
    data, place = frame.data, frame.place
    facts = StepFacts(
        step=episode.step + 1,
        duration_s=duration_s,
        progress_m=max(place.done_m - episode.furthest_m, 0.0),
        remaining_m=place.remaining_m,
        lane_offset=place.lane_offset,
        deviation_m=place.deviation_m,
        speed=frame.vehicle.speed,
        steering_change=frame.action[0] - episode.action[0],
        strongest_impulse=max((collision.impulse_ns for collision in data.collisions), default=None),
        markings=tuple(marking for event in data.lane_invasions for marking in event.markings),
        off_road=frame.off_road,
    )
    episode.step, episode.action, episode.done_m = facts.step, frame.action, place.done_m
    episode.furthest_m = max(episode.furthest_m, place.done_m)
    episode.collisions += len(data.collisions)
    episode.lane_invasions += len(data.lane_invasions)
    return facts


def info_of(frame: Frame, episode: Episode, end: Outcome, clipped: list[str]) -> Info:
    """What a step tells beside its observation, as JSON."""
    return {
        "frame": frame.data.frame,
        "route": {
            "length_m": frame.route.length_m,
            "done_m": frame.place.done_m,
            "completion": episode.furthest_m / frame.route.length_m,
        },
        "collisions": [{"frame": c.frame, "impulse_ns": c.impulse_ns, "other": c.other} for c in frame.data.collisions],
        "lane_invasions": [
            {"frame": event.frame, "markings": list(event.markings)} for event in frame.data.lane_invasions
        ],
        "episode_collisions": episode.collisions,
        "episode_lane_invasions": episode.lane_invasions,
        "off_road": frame.off_road,
        "collision": end.reason == "collision",
        "is_success": end.reason == "goal",
        "position": list(frame.vehicle.location[:2]),
        "speed": frame.vehicle.speed,
        "clipped": clipped,
        "end": end.reason,
    }
