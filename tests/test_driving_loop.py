"""The closed loop: what drives, what is kept of it, what is told of it, and what cannot be driven."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from carla_policy.card import CARD_FILE, load_card
from carla_policy.loading import LoadedPolicy
from carla_policy_tools.driving import loop
from carla_policy_tools.driving.loop import Pace, drive_episodes
from carla_policy_tools.driving.pilots import PolicyPilot
from carla_policy_tools.driving.records import Answer, Drive, Episode, Settings, Step, events_of
from carla_policy_tools.driving.simulation import Simulation, Transition, simulation_of
from carla_policy_tools.driving.summary import quantiles, summarize
from carla_policy_tools.driving.vehicle import ControlledAction, ObservationRow
from carla_policy_tools.export.environments import Environment
from tests.lane_env import LaneEnv
from tests.lane_policies import LANE_ARGUMENTS, LANE_ENV, lane_artifact, lane_policy

SETTINGS = Settings("v1.0.0", "sha256:0", "0" * 40, LANE_ENV, {}, 1, 0, step_s=0.5)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedPolicy:
    return lane_policy(tmp_path_factory.mktemp("lane"))


def driven(loaded: LoadedPolicy, seeds: Any = (1, 2), **options: Any) -> list[Episode]:
    with simulation_of(loaded.policy.card, LANE_ENV, LANE_ARGUMENTS) as simulation:
        return list(drive_episodes(simulation, PolicyPilot(loaded.policy), seeds, Pace(), **options))


def step(time_s: float = 0.0, source: str = "policy", reason: str = "", late_s: float = 0.0, **more: Any) -> Step:
    row = np.array([more.pop("observed", 0.0), 0.0], np.float32)
    reward, speed = more.pop("reward", 1.0), more.pop("speed", None)
    answer = Answer(np.zeros(3, np.float32), source, reason, latency_s=0.01, **more)
    return Step(time_s, row, answer, reward, late_s, speed=speed)


def test_same_seeds_are_driven_with_the_same_bits(loaded: LoadedPolicy) -> None:
    first, second = driven(loaded), driven(loaded)
    assert [episode.seed for episode in first] == [1, 2]
    assert all((len(episode.steps) > 5 and episode.ending == "terminated") or episode.steps for episode in first)
    for one, other in zip(first, second, strict=True):
        assert one.controls.tobytes() == other.controls.tobytes()
        assert [s.row.tobytes() for s in one.steps] == [s.row.tobytes() for s in other.steps]
        assert one.total_return == other.total_return
    assert first[0].controls.tobytes() != first[1].controls.tobytes()


def test_drive_as_json_reads_back_with_the_same_bits(loaded: LoadedPolicy) -> None:
    episodes = driven(loaded, max_steps=7)
    episodes[0].steps[3] = replace(episodes[0].steps[3], position=(1.5, -2.25), speed=3.5)
    drive = Drive(replace(SETTINGS, columns=("speed",), latency_s=(0.0, 0.1)), episodes, road=[[(0.0, 1.0)]])
    content = json.loads(json.dumps(drive.to_json(), allow_nan=False))
    again = Drive.from_json(content)
    assert json.dumps(again.to_json()) == json.dumps(drive.to_json())
    assert again.settings == drive.settings
    for one, other in zip(again.episodes, episodes, strict=True):
        assert one.controls.tobytes() == other.controls.tobytes()
        assert [s.row.tobytes() for s in one.steps] == [s.row.tobytes() for s in other.steps]
    with pytest.raises(ValueError, match="expected 1, got 2"):
        Drive.from_json({**content, "format": 2})


def test_episode_is_cut_where_the_drive_says_and_told_as_that(loaded: LoadedPolicy) -> None:
    (episode,) = driven(loaded, [1], max_steps=3)
    assert (episode.ending, len(episode.steps)) == ("max_steps", 3)


def test_drive_that_is_stopped_keeps_the_episode_as_far_as_it_came(loaded: LoadedPolicy) -> None:
    seen: list[int] = []
    episodes = driven(
        loaded, range(5), on_step=lambda episode: seen.append(episode.number), is_stopping=lambda: len(seen) == 2
    )
    assert [(episode.number, len(episode.steps), episode.ending) for episode in episodes] == [(0, 2, "")]


class Clock:
    """Time that passes only where somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_periods_follow_one_another_and_a_missed_one_starts_the_next_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    pace = Pace(0.5)
    clock.now += 10  # what comes before the first period, such as a reset, makes it no later
    pace.start()
    clock.now += 0.25
    assert (pace.wait(), clock.now) == (0.0, 110.5)
    clock.now += 0.75
    assert (pace.wait(), clock.now) == (0.25, 111.25)
    clock.now += 0.25
    assert (pace.wait(), clock.now) == (0.0, 111.75)
    assert pace.elapsed_s == 11.75


def test_reset_that_takes_long_makes_no_period_late(loaded: LoadedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    reset = Simulation.reset

    def slow(self: Simulation, seed: int) -> Any:
        clock.sleep(10)
        return reset(self, seed)

    monkeypatch.setattr(Simulation, "reset", slow)
    with simulation_of(loaded.policy.card, LANE_ENV, LANE_ARGUMENTS) as simulation:
        episodes = list(drive_episodes(simulation, PolicyPilot(loaded.policy), [1, 2], Pace(0.5), 3))
    assert [s.late_s for episode in episodes for s in episode.steps] == [0.0] * 6
    assert [s.time_s for s in episodes[1].steps] == [21.5, 22.0, 22.5]


def test_without_a_period_nothing_waits_and_nothing_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    pace = Pace()
    clock.now += 10
    assert (pace.wait(), clock.now) == (0.0, 110.0)


@pytest.mark.parametrize(
    ("terminated", "truncated", "info", "ending"),
    [
        (False, False, {"crashed": True}, ""),
        (True, False, {"crashed": True, "on_road": False}, "collision"),
        (True, False, {"on_road": np.False_}, "off_road"),
        (True, False, {"off_road": True}, "off_road"),
        (True, False, {"on_road": True}, "terminated"),
        (True, False, {}, "terminated"),
        (False, True, {"on_road": True}, "completed"),
    ],
)
def test_ending_of_an_episode(terminated: bool, truncated: bool, info: dict[str, Any], ending: str) -> None:
    assert Transition(np.zeros(2, np.float32), 0.0, terminated, truncated, info).ending == ending


def test_runs_of_the_same_reason_are_one_event() -> None:
    episode = Episode(
        4,
        0,
        [
            step(0.0),
            step(0.1, "fallback", "late", detail="slow"),
            step(0.2, "fallback", "late", late_s=0.01),
            step(0.3, "fallback", "circuit_open"),
            step(0.4, late_s=0.02),
            step(0.5, interventions=("steer_rate", "deadline")),
            step(0.6, interventions=("steer_rate",)),
            step(0.7, late_s=0.01),
            step(0.8, "fallback", "late"),
        ],
    )
    other = Episode(5, 1, [step(0.9, "fallback", "late")])
    events = events_of([episode, other])
    found = [(event.episode, event.step, event.kind, event.detail, event.steps) for event in events]
    assert found == [
        (4, 1, "fallback", "late: slow", 2),
        (4, 2, "late", "", 1),
        (4, 3, "fallback", "circuit_open", 1),
        (4, 4, "late", "", 1),
        (4, 5, "safe_action", "deadline", 1),
        (4, 7, "late", "", 1),
        (4, 8, "fallback", "late", 1),
        (5, 0, "fallback", "late", 1),
    ]
    assert events[0].duration_s == pytest.approx(0.11)


def test_figures_count_who_answered_and_what_the_loop_missed() -> None:
    steps = [
        step(0.0),
        replace(step(0.1, late_s=0.03), simulated_s=0.05),
        step(0.2, "fallback", "late", late_s=0.02),
        step(0.3, "fallback", "refused"),
        step(0.4, "override"),
        replace(step(0.5, interventions=("deadline",), late_s=0.01), simulated_s=0.01),
    ]
    summary = summarize([Episode(0, 0, steps, "collision"), Episode(1, 1, [step(reward=4.0)])], SETTINGS)
    assert summary["sources"] == {"policy": 4, "fallback": 2, "override": 1}
    assert summary["reasons"] == {"fallback: late": 1, "fallback: refused": 1, "override": 1}
    assert (summary["deadline_misses"], summary["safe_actions"]) == (2, 1)
    assert (summary["overruns"], summary["overruns_by_simulator"]) == (3, 2)
    assert summary["fallback_share"] == 2 / 7
    assert summary["returns"] == {"mean": 5.0, "std": pytest.approx(2**0.5), "min": 4.0, "max": 6.0}
    assert {name: count for name, count in summary["endings"].items() if count} == {"collision": 1, "stopped": 1}
    assert summary["latency_s"] == quantiles([0.01] * 4)


def test_figures_of_nothing_are_none() -> None:
    summary = summarize([], SETTINGS)
    assert summary["returns"] is summary["latency_s"] is summary["jerk"] is summary["fallback_share"] is None


@pytest.mark.parametrize(
    ("more", "unit", "source"),
    [
        ("speed", "m/s³", "vehicle's speed"),
        ("observed", "m/s³", "observed speed"),
        (None, "1/s", "throttle less brake"),
    ],
)
def test_jerk_says_its_unit_and_what_it_is_of(more: str | None, unit: str, source: str) -> None:
    steps = [step(**({more: speed} if more else {})) for speed in (1.0, 2.0, 4.0, 4.0)]
    jerk = summarize([Episode(0, 0, steps)], SETTINGS)["jerk"]
    assert (jerk["unit"], jerk["source"]) == (unit, f"{source}, steps of 0.5 s")
    # Accelerations 2, 4, 0 m/s² half a second apart.
    assert (jerk["mean"], jerk["max"]) == ((6.0, 8.0) if more else (0.0, 0.0))


def test_controls_become_the_action_that_they_came_from(tmp_path: Path) -> None:
    artifact = lane_artifact(
        tmp_path,
        card={"action": {"layout": ["acceleration", "steer"], "low": [-1.0, -1.0], "high": [1.0, 1.0],
                         "full_scale": [2.0, 0.5], "full_brake": 4.0, "bounding": "clip"}},
    )  # fmt: skip
    card = load_card(artifact / CARD_FILE)
    action = ControlledAction(card)
    assert action.native(np.array([0.5, 0.0, -0.5], np.float32)).tolist() == [1.0, -0.25]
    assert action.native(np.array([0.0, 0.25, 1.0], np.float32)).tolist() == [-1.0, 0.5]
    own = ControlledAction(card, ("steer", "throttle", "brake"))
    assert own.native(np.array([0.5, 0.25, -0.5], np.float32)).tolist() == [-0.5, 0.5, 0.25]
    with pytest.raises(ValueError, match="got wheel"):
        ControlledAction(card, ("wheel",))


def test_columns_that_the_policy_does_not_see_are_zero() -> None:
    row = ObservationRow(5, (1, 4)).of_observation(np.array([2.0, 3.0]))
    assert (row.dtype, row.tolist()) == (np.float32, [0.0, 2.0, 0.0, 0.0, 3.0])


class Closing(LaneEnv):
    closed = 0

    def close(self) -> None:
        Closing.closed += 1


def test_environment_that_does_not_fit_is_refused_by_name_and_closed(loaded: LoadedPolicy) -> None:
    card = loaded.policy.card
    wrong_actions = Closing(columns=7)
    wrong_actions.action_space = spaces.Dict({})
    refused = {
        "observes .*v1.0.0 wants 7 numbers": Closing(columns=5),
        "takes actions .*acts in 2 dimensions": wrong_actions,
        "takes actions Discrete.*acts in 2 dim": Closing(columns=7, discrete=True),
    }
    Closing.closed = 0
    for message, env in refused.items():
        with pytest.raises(ValueError, match=message):
            Simulation(lambda env=env: Environment(env, "--env lane"), card)  # type: ignore[misc]
    assert Closing.closed == len(refused)


@pytest.mark.parametrize(
    ("vehicle", "position", "speed"),
    [
        (SimpleNamespace(position=np.array([1.0, 2.0, 9.0]), speed=np.float32(3.0)), (1.0, 2.0), 3.0),
        (SimpleNamespace(position=5, speed="fast"), None, None),
        (SimpleNamespace(position=[np.nan, 0.0], speed=np.inf), None, None),
        (None, None, None),
    ],
)
def test_vehicle_is_told_of_as_far_as_it_tells(loaded: LoadedPolicy, vehicle: Any, position: Any, speed: Any) -> None:
    env: Any = LaneEnv(columns=7)
    env.vehicle = vehicle
    simulation = Simulation(lambda: Environment(env, "--env lane"), loaded.policy.card)
    assert (simulation.position, simulation.speed) == (position, speed)


def test_what_driving_needs_and_is_not_installed_is_named(
    loaded: LoadedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="gymnasium and highway-env: run `make simulator`"):
        simulation_of(loaded.policy.card)


def test_step_time_is_the_environment_s_own_or_its_frame_rate(loaded: LoadedPolicy) -> None:
    def step_s(**attributes: Any) -> float | None:
        env: gym.Env[Any, Any] = type("Timed", (LaneEnv,), attributes)(columns=7)
        return Simulation(lambda: Environment(env, "--env lane"), loaded.policy.card).step_s

    assert step_s() is None
    assert step_s(metadata={"render_fps": 20}) == 0.05
    assert step_s(step_s=0.25, metadata={"render_fps": 20}) == 0.25
