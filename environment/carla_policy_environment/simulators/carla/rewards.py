"""What a step is worth, and what ends an episode: from plain facts, so that each rule can be read and tested alone."""

from __future__ import annotations

from dataclasses import dataclass

from carla_policy_environment.simulators.carla.config import EpisodeConfig, RewardConfig


@dataclass(frozen=True)
class StepFacts:
    """What a step came to: metres, m/s, seconds, N s."""

    step: int
    """1 for an episode's first."""
    duration_s: float
    progress_m: float
    """How much further along its route the vehicle came than ever before in the episode."""
    remaining_m: float
    lane_offset: float
    deviation_m: float
    speed: float
    steering_change: float
    strongest_impulse: float | None
    """Of this step's collisions; None where there were none."""
    markings: tuple[str, ...]
    """Kinds of lane markings that were crossed."""
    off_road: bool


@dataclass(frozen=True)
class Outcome:
    """Whether the episode is over; `reason` says why."""

    terminated: bool
    truncated: bool
    reason: str | None = None
    failed: bool = False


def outcome(facts: StepFacts, config: EpisodeConfig) -> Outcome:
    """The first that holds: collision, off the road, lane invasion, off the route, goal, step limit."""
    collided = facts.strongest_impulse is not None and facts.strongest_impulse >= config.collision_impulse_ns
    ends_on = config.end_on_lane_invasion
    invaded = ends_on != "never" and any(ends_on == "any" or is_solid(marking) for marking in facts.markings)
    deviation = config.max_route_deviation_m
    failures = {
        "collision": config.end_on_collision and collided,
        "off_road": config.end_off_road and facts.off_road,
        "lane_invasion": invaded,
        "off_route": deviation is not None and facts.deviation_m > deviation,
    }
    for reason, holds in failures.items():
        if holds:
            return Outcome(terminated=True, truncated=False, reason=reason, failed=True)
    if facts.remaining_m <= config.goal_radius_m:
        return Outcome(terminated=True, truncated=False, reason="goal")
    if config.max_steps is not None and facts.step >= config.max_steps:
        return Outcome(terminated=False, truncated=True, reason="max_steps")
    return Outcome(terminated=False, truncated=False)


def reward(facts: StepFacts, end: Outcome, config: RewardConfig) -> float:
    """The step's reward; see `RewardConfig` for what is in it."""
    if config.type == "sparse":
        return -1.0 if end.failed else 1.0 if end.reason == "goal" else 0.0
    earned = config.progress_per_m * facts.progress_m
    earned -= config.over_speed_per_mps_s * max(facts.speed - config.target_speed_mps, 0.0) * facts.duration_s
    earned -= config.off_centre_per_m_s * abs(facts.lane_offset) * facts.duration_s
    earned -= config.steering_change * abs(facts.steering_change)
    if end.failed:
        earned -= config.failure
    elif end.reason == "goal":
        earned += config.goal
    return earned


def is_solid(marking: str) -> bool:
    """Whether a kind of `carla.LaneMarkingType` is solid on a side, or a kerb or grass: not to be crossed."""
    return "Solid" in marking or marking in ("Curb", "Grass")
