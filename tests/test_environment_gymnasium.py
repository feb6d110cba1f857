"""Gymnasium environments as simulators: made by name, the same over HTTP as in process, and restored bit by bit."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from threading import Event, Lock
from typing import Any

import gymnasium
import numpy as np
import pytest
import requests
from gymnasium import spaces

from carla_policy_environment.infos import info_from_json
from carla_policy_environment.service.command import main as service_main
from carla_policy_environment.simulators.gymnasium_simulator import GymnasiumSimulator
from carla_policy_environment.simulators.making import EnvironmentNotMade, make_environment
from carla_policy_environment.spaces import value_from_json
from tests.commands import run_here
from tests.environment_services import Served
from tests.servers import COMMAND

RACETRACK = "examples.racetrack.driving_env:DrivingEnv"
ACTIONS = np.random.default_rng(5).uniform([0, -0.1], [0.6, 0.1], (25, 2)).astype(np.float32)


class Dice(gymnasium.Env[Any, Any]):
    """Observes numbers from the generators that all code shares, and holds what cannot be copied if it shall."""

    def __init__(self, *, lock: bool = False) -> None:
        self.observation_space = spaces.Dict(
            numpy=spaces.Box(0, 1, (), np.float64), python=spaces.Tuple([spaces.Box(0, 1, (1,), np.float64)])
        )
        self.action_space = spaces.Dict(gear=spaces.Discrete(3, start=-1))
        self.lock = Lock() if lock else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observe(), float(action["gear"]), False, False, {}

    def _observe(self) -> Any:
        return {"numpy": np.array(np.random.random()), "python": (np.array([random.random()]),)}


def simulator_of(target: str, **arguments: Any) -> GymnasiumSimulator:
    return GymnasiumSimulator(lambda: make_environment(target, arguments), target)


def rollout(simulator: GymnasiumSimulator) -> list[Any]:
    """All that an episode says from here on, with the bits of its numbers."""
    said = []
    for action in ACTIONS:
        observation, *rest = simulator.step(action)
        said.append((observation.tobytes(), *rest))
        if rest[1]:
            break
    return said


def test_the_racetrack_goes_on_identically_from_a_snapshot_bit_by_bit() -> None:
    simulator = simulator_of(RACETRACK, other_vehicles=3)
    assert simulator.no_snapshots is None
    simulator.reset(11, {})
    for action in ACTIONS[:5]:
        simulator.step(action)
    before = simulator.render()
    state = simulator.snapshot()
    expected = rollout(simulator)
    simulator.reset(12, {})
    for _ in range(2):
        observation, info = simulator.restore(state)
        assert (observation.dtype, info["crashed"], info["on_road"]) == (np.float32, False, True)
        assert np.array_equal(simulator.render(), before)
        assert rollout(simulator) == expected
    simulator.restore(state)
    simulator.step(-ACTIONS[0])
    assert rollout(simulator) != expected
    simulator.close()


def test_an_episode_over_http_has_the_bits_of_the_one_in_process() -> None:
    in_process = make_environment(RACETRACK)
    with Served(lambda: simulator_of(RACETRACK)) as served:
        observation, info = in_process.reset(seed=3)
        answer = served.post("/reset", {"seed": 3}).json()
        for action in ACTIONS:
            received = value_from_json(in_process.observation_space, answer["observation"])
            assert received.tobytes() == observation.tobytes()
            assert info_from_json(answer["info"]) == info
            observation, reward, terminated, truncated, info = in_process.step(action)
            answer = served.step(action.tolist()).json()
            assert (answer["reward"], answer["terminated"], answer["truncated"]) == (reward, terminated, truncated)
    in_process.close()


def test_what_has_drawn_can_be_copied_and_draws_again() -> None:
    simulator = simulator_of("CartPole-v1")
    assert simulator.renders
    simulator.reset(1, {})
    first = simulator.render()
    state = simulator.snapshot()
    for _ in range(5):
        simulator.step(1)
    assert not np.array_equal(simulator.render(), first)
    simulator.restore(state)
    assert np.array_equal(simulator.render(), first)
    simulator.close()


def test_wrappers_are_restored_too() -> None:
    simulator = simulator_of("CartPole-v1", max_episode_steps=3)
    simulator.reset(1, {})
    simulator.step(0)
    state = simulator.snapshot()
    for _ in range(2):
        simulator.restore(state)
        assert [simulator.step(0)[3] for _ in range(2)] == [False, True]
    simulator.close()


def test_shared_random_generators_are_restored_and_nested_spaces_served() -> None:
    with Served(lambda: simulator_of("tests.test_environment_gymnasium:Dice")) as served:
        served.post("/reset")
        snapshot_id = served.post("/snapshot/create").json()["snapshot_id"]
        rolls = []
        for _ in range(2):
            restored = served.post("/snapshot/restore", {"snapshot_id": snapshot_id}).json()
            rolls.append((restored["observation"], served.step({"gear": -1}).json()["observation"]))
        assert rolls[0] == rolls[1]
        wrong = served.step({"gear": 2}).json()
        assert (wrong["message"], wrong["details"][0]["loc"]) == (
            "action.gear: expected -1 to 1, got 2",
            ["action", "gear"],
        )


def test_an_environment_that_cannot_be_copied_says_so_and_is_served_all_the_same() -> None:
    with Served(lambda: simulator_of("tests.test_environment_gymnasium:Dice", lock=True)) as served:
        said = served.get("/info").json()["snapshots"]
        assert not said["supported"]
        assert "cannot pickle '_thread.lock' object" in said["reason"]
        served.post("/reset")
        answer = served.post("/snapshot/create")
        assert (answer.status_code, answer.json()["message"]) == (501, said["reason"])
        assert served.step({"gear": 0}).status_code == 200
        assert served.get("/render").status_code == 404


def test_environments_are_made_by_module_file_or_id(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import gymnasium\ndef make(**arguments):\n    return gymnasium.make('CartPole-v1', **arguments)\n")
    (tmp_path / "registering.py").write_text(
        "import gymnasium\ngymnasium.register('Mine-v3', 'tests.lane_env:LaneEnv', kwargs={'columns': 3})\n"
    )
    made = make_environment(f"{file}:make", {"max_episode_steps": 2})
    assert made.spec
    assert made.spec.max_episode_steps == 2
    sys.path.append(str(tmp_path))
    try:
        assert make_environment("registering:Mine-v3").observation_space.shape == (3,)
    finally:
        sys.path.remove(str(tmp_path))
        gymnasium.registry.pop("Mine-v3", None)
    assert make_environment("tests.lane_env:LaneEnv", {"discrete": True}).action_space == spaces.Discrete(6)
    assert make_environment(RACETRACK).render_mode == "rgb_array"


@pytest.mark.parametrize(
    ("target", "arguments", "said"),
    [
        ("Nope-v1", {}, "Nope-v1: cannot be made: NameNotFound"),
        ("no.such.module:make", {}, "no.such.module:make: cannot be made: ModuleNotFoundError"),
        ("nowhere.py:make", {}, "nowhere.py:make: cannot be made: FileNotFoundError"),
        ("tests.lane_env:LaneEnv", {"wheels": 4}, "cannot be made: TypeError: .*unexpected keyword argument 'wheels'"),
        ("os:getcwd", {}, "expected to get a gymnasium.Env, got str"),
    ],
)
def test_an_environment_that_cannot_be_made_is_named_with_the_reason(
    target: str, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(EnvironmentNotMade, match=said):
        make_environment(target, arguments)


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ((*COMMAND, "env", "serve"), signal.SIGINT),
        ((sys.executable, "-m", "carla_policy_environment.service"), signal.SIGTERM),
    ],
    ids=["carla-policy env serve", "python -m"],
)
def test_a_service_announces_itself_and_ends_cleanly(command: tuple[str, ...], number: signal.Signals) -> None:
    options = (
        "--env",
        "tests.lane_env:LaneEnv",
        "--env-arguments",
        '{"columns": 4}',
        "--port",
        "0",
        "--max-steps",
        "1",
    )
    with subprocess.Popen([*command, *options, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        ready = json.loads(process.stdout.readline())
        assert ready | {"url": ""} == {
            "url": "",
            "simulator": "gymnasium",
            "environment": "tests.lane_env:LaneEnv",
            "pid": process.pid,
        }
        assert len(requests.post(f"{ready['url']}/reset", json={}, timeout=30).json()["observation"]) == 4
        step = requests.post(f"{ready['url']}/step", json={"action": [0, 0]}, timeout=30)
        assert step.json()["truncated"]
        process.send_signal(number)
        said = process.communicate(timeout=30)
        assert (process.returncode, said) == (0, (b"", b""))


def test_a_signal_ends_a_service_whose_simulator_is_still_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Event()

    def make() -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        made.wait(30)
        raise OSError

    monkeypatch.setattr("carla_policy_environment.service.command.simulator_maker", lambda *_: make)
    with pytest.raises(SystemExit) as ended:
        service_main(["--port", "0"])
    made.set()
    assert ended.value.code == 0


def test_a_port_that_is_taken_is_told_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert service_main(["--port", port]) == 1
        for said in (capfd.readouterr().err, run_here("env", "serve", "--port", port, status=1)):
            assert said.startswith(f"error: port {port} on 127.0.0.1 cannot be used: Address already in use; choose")
            assert said.count("\n") == 1


def test_the_racetrack_is_painted_without_a_display() -> None:
    simulator = GymnasiumSimulator(lambda: make_environment(RACETRACK), RACETRACK)
    simulator.reset(1, {})
    picture = simulator.render()
    simulator.close()
    assert picture is not None
    assert picture.std() > 5
