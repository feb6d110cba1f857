"""A version drives a simulator that is a service, as it would one in its own process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from carla_policy_environment.simulators.gymnasium_simulator import GymnasiumSimulator
from carla_policy_tools.driving.loop import Pace, drive_episodes
from carla_policy_tools.driving.pilots import PolicyPilot
from carla_policy_tools.driving.records import Episode
from carla_policy_tools.driving.simulation import simulation_of
from tests.environment_services import Served
from tests.lane_env import LaneEnv
from tests.lane_policies import LANE_ARGUMENTS, LANE_ENV, lane_policy

SERVICE_ENV = "carla_policy_environment:CarlaEnv"


class SteerFirst(LaneEnv):
    """The lane as CARLA's simulator takes actions: steer, throttle, brake; and it tells where its vehicle is."""

    action_layout = ("steer", "throttle", "brake")

    def __init__(self) -> None:
        super().__init__(columns=7)
        self.action_space = spaces.Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        steer, throttle, brake = (float(value) for value in action)
        observation, reward, terminated, truncated, _ = super().step(np.array([throttle - brake, steer]))
        told = {"position": [0.1 * self.steps, self.offset], "speed": self.speed, "is_success": truncated}
        return observation, reward, terminated or truncated, False, told


def driven(loaded: Any, environment: str, arguments: str) -> list[Episode]:
    with simulation_of(loaded.policy.card, environment, arguments) as simulation:
        return list(drive_episodes(simulation, PolicyPilot(loaded.policy), [3, 4], Pace()))


def controls_and_rows(episodes: list[Episode]) -> list[tuple[bytes, bytes, float]]:
    return [
        (episode.controls.tobytes(), np.stack([step.row for step in episode.steps]).tobytes(), episode.total_return)
        for episode in episodes
    ]


def test_a_drive_through_a_service_has_the_bits_of_one_in_process(tmp_path: Path) -> None:
    loaded = lane_policy(tmp_path)
    with Served(lambda: GymnasiumSimulator(lambda: LaneEnv(columns=7), "lane")) as service:
        through = driven(loaded, SERVICE_ENV, json.dumps({"server_url": service.url}))
    assert controls_and_rows(through) == controls_and_rows(driven(loaded, LANE_ENV, LANE_ARGUMENTS))
    assert len(through[0].steps) > 5


def test_a_service_says_what_its_action_is_made_of_and_how_it_went(tmp_path: Path) -> None:
    loaded = lane_policy(tmp_path)
    with Served(lambda: GymnasiumSimulator(SteerFirst, "lane")) as service:
        arguments = json.dumps({"server_url": service.url})
        through = driven(loaded, SERVICE_ENV, arguments)
    direct = driven(loaded, LANE_ENV, LANE_ARGUMENTS)
    assert [len(episode.steps) for episode in through] == [len(episode.steps) for episode in direct]
    assert np.allclose(through[0].controls, direct[0].controls, atol=1e-5)
    step = through[0].steps[5]
    assert step.position == (0.5, step.position[1] if step.position else None)
    assert step.speed is not None
    endings = {episode.ending for episode in direct}
    assert {episode.ending for episode in through} == endings
