"""`CarlaEnv` against real services: what comes through is what the simulator gave, and what goes wrong is told."""

from __future__ import annotations

import contextlib
import copy
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from carla_policy_environment import CarlaEnv, branch, collect_trajectory, select_top_k
from carla_policy_environment.actions import cast
from carla_policy_environment.branching import StateMismatch
from carla_policy_environment.comparing import bits
from carla_policy_environment.errors import (
    EpisodeLost,
    RequestRefused,
    ServiceBusy,
    ServiceError,
    ServiceUnavailable,
    SimulatorFailed,
)
from carla_policy_environment.simulators.gymnasium_simulator import GymnasiumSimulator
from carla_policy_environment.trajectories import group_relative_advantages
from tests.environment_services import OPEN, Scripted, Served
from tests.lane_env import LaneEnv

ACTIONS = np.random.default_rng(1).uniform(-1, 1, (60, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def lane() -> Iterator[Served]:
    with Served(lambda: GymnasiumSimulator(LaneEnv, "lane")) as served:
        yield served


@pytest.fixture(scope="module")
def second_lane() -> Iterator[Served]:
    with Served(lambda: GymnasiumSimulator(LaneEnv, "lane")) as served:
        yield served


@pytest.fixture(scope="module")
def scripted_service() -> Iterator[Served]:
    with Served(Scripted) as served:
        yield served


@pytest.fixture
def script(scripted_service: Served) -> Scripted:
    simulator = scripted_service.service.simulator
    assert isinstance(simulator, Scripted)
    simulator.forget_script()
    return simulator


@contextmanager
def env_of(served: Served | str, **options: Any) -> Iterator[CarlaEnv]:
    env = CarlaEnv(served if isinstance(served, str) else served.url, **options)
    try:
        yield env
    finally:
        env.close()


def sampling(_observation: Any, generator: np.random.Generator) -> Any:
    return generator.uniform(-1, 1, 2).astype(np.float32)


class Relay:
    """Passes requests on to a service, but loses the answers to the paths in `losing`, each once."""

    def __init__(self, served: Served) -> None:
        self.losing: list[bytes] = []
        self._target = served.address[:2]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connection: socket.socket | None = None
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def hang_up(self) -> None:
        """Close the connection, as services do with idle ones."""
        assert self._connection
        self._connection.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._connection, _ = self._listener.accept()
                with self._connection as connection, contextlib.suppress(EOFError):
                    while self._pass_on(connection):
                        pass

    def _pass_on(self, connection: socket.socket) -> bool:
        request = _message(connection)
        with socket.create_connection(self._target) as service:
            service.sendall(request)
            answer = _message(service)
        path = request.split(b" ")[1]
        if path in self.losing:
            self.losing.remove(path)
            return False
        connection.sendall(answer)
        return True


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The address of something that answers one request so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                _message(connection)
                connection.sendall(answer)

        thread = threading.Thread(target=run)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def _message(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    while len(body) < int((lengths or [b"0"])[0]):
        body += _some(connection)
    return head + b"\r\n\r\n" + body


def _some(connection: socket.socket) -> bytes:
    if received := connection.recv(1 << 16):
        return received
    raise EOFError


@pytest.mark.filterwarnings("ignore:.*Box observation space .*infinity.*:UserWarning")
def test_gymnasiums_own_checker_finds_nothing(lane: Served) -> None:
    with env_of(lane) as env:
        check_env(env, skip_render_check=True)


def test_an_episode_has_the_bits_of_one_in_process(lane: Served) -> None:
    here = LaneEnv()
    with env_of(lane) as env:
        assert bits(env.reset(seed=7)) == bits(here.reset(seed=7))
        for action in ACTIONS:
            there = env.step(action)
            assert bits(there) == bits(here.step(action))
            if there[2] or there[3]:
                break
        with pytest.raises(gymnasium.error.ResetNeeded, match="over"):
            env.step(ACTIONS[0])
        assert bits(env.reset()) == bits(here.reset())


def test_frame_skip_repeats_an_action_and_max_steps_ends_an_episode(lane: Served) -> None:
    here = LaneEnv()
    with env_of(lane, frame_skip=2, max_steps=3) as env:
        here.reset(seed=1)
        env.reset(seed=1)
        for number, action in enumerate(ACTIONS[:3], start=1):
            _, first, *_ = here.step(action)
            observation, second, *_ = here.step(action)
            there, reward, terminated, truncated, _ = env.step(action)
            assert (bits(there), reward) == (bits(observation), first + second)
            assert (terminated, truncated) == (False, number == 3)


def test_an_answer_that_was_lost_is_asked_for_again_and_nothing_is_done_twice(
    scripted_service: Served, script: Scripted
) -> None:
    with Relay(scripted_service) as relay, env_of(relay.url) as env:
        env.reset(seed=1)
        relay.losing = [b"/step", b"/reset"]
        observation, *_ = env.step([0.0, 0.5])
        assert observation[0] == script.steps == 1
        env.reset(seed=2)
        assert script.seeds == [1, 2, 2]
        relay.hang_up()
        env.delete_snapshot(env.save_snapshot())
        relay.losing = [b"/snapshot/create"]
        with pytest.raises(ServiceUnavailable, match="/snapshot/create"):
            env.save_snapshot()
        relay.losing = [b"/step"] * 2
        with pytest.raises(ServiceUnavailable, match="/step, twice"):
            env.step([0.0, 0.5])
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step([0.0, 0.5])


def test_an_action_outside_of_its_space_is_named_and_changes_nothing(
    script: Scripted, scripted_service: Served
) -> None:
    with env_of(scripted_service) as env:
        env.reset()
        for action, message in (
            ([0.0, 2.0], r"action\[1\]: expected 0.0 to 1.0, got 2.0"),
            ([np.nan, 0.0], r"action\[0\]: expected a finite number"),
            ([0.0], r"action: expected shape \[2\], got \[1\]"),
            ("left", r"action: expected shape \[2\], got \[\]"),
            (["left", "on"], "action: expected float32"),
        ):
            with pytest.raises(ValueError, match=message):
                env.step(action)
        assert env.step([0.0, 0.5])[0][0] == script.steps == 1


def test_a_service_that_is_away_silent_or_something_else_is_told(script: Scripted, scripted_service: Served) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ServiceUnavailable, match=f"{url}.*refused.*carla-policy env serve"):
            CarlaEnv(url)
    with env_of(scripted_service, timeout=0.2) as env:
        env.reset()
        script.gate = threading.Event()
        with pytest.raises(ServiceUnavailable, match=r"no answer to POST /step in 0.2 s"):
            env.step([0.0, 0.5])
        script.gate.set()
        script.gate = OPEN
        assert env.reset()[0][0] == 0
    page = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")
    with page as url, pytest.raises(ServiceError, match="no environment service: status 200, b'<html>'"):
        CarlaEnv(url)
    for wrong in ({"server_url": "localhost:8090"}, {"timeout": 0.0}, {"frame_skip": 0}, {"render_mode": "human"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            CarlaEnv(**{"server_url": scripted_service.url, **wrong})
    with pytest.raises(ValueError, match="reward_type"):
        CarlaEnv(scripted_service.url, reward_type="dense")


def test_a_simulator_that_fails_ends_the_episode_and_a_reset_begins_another(
    script: Scripted, scripted_service: Served
) -> None:
    with env_of(scripted_service) as env:
        env.reset()
        script.step_error = RuntimeError("the wheel came off")
        with pytest.raises(SimulatorFailed, match="the wheel came off"):
            env.step([0.0, 0.5])
        script.step_error = None
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step([0.0, 0.5])
        env.reset()
        env.step([0.0, 0.5])


def test_a_service_is_one_users_until_it_is_closed_or_the_session_runs_out(
    script: Scripted, scripted_service: Served
) -> None:
    with env_of(scripted_service) as holder, env_of(scripted_service) as other:
        holder.reset()
        with pytest.raises(ServiceBusy, match=r"CarlaEnv on .* holds this service"):
            other.reset()
        session = scripted_service.get("/health").json()["session_id"]
        scripted_service.delete(f"/session/{session}")
        assert holder.step([0.0, 0.5])[0][0] == 1
        holder.close()
        other.reset()
        assert script.steps == 0


def test_an_episode_that_somebody_else_ended_is_lost_and_not_stepped(
    script: Scripted, scripted_service: Served
) -> None:
    with env_of(scripted_service, exclusive=False) as env, env_of(scripted_service, exclusive=False) as other:
        env.reset()
        other.reset()
        with pytest.raises(EpisodeLost, match="present one"):
            env.step([0.0, 0.5])
        assert script.steps == 0


def test_a_snapshot_brings_back_the_state_and_the_count_of_steps(lane: Served) -> None:
    with env_of(lane, max_steps=5) as env:
        env.reset(seed=3)
        for action in ACTIONS[:2]:
            before = env.step(action)
        saved = env.save_snapshot("corner")
        assert [(one["snapshot_id"], one["name"], one["step"]) for one in env.list_snapshots()] == [
            (saved, "corner", 2)
        ]
        first = [env.step(action) for action in ACTIONS[2:5]]
        assert first[-1][3]
        for _ in range(2):
            observation, _ = env.restore_snapshot(saved)
            assert bits(observation) == bits(before[0])
            assert bits([env.step(action) for action in ACTIONS[2:5]]) == bits(first)
        env.delete_snapshot(saved)
        with pytest.raises(RequestRefused, match="no snapshot"):
            env.restore_snapshot(saved)


def test_the_image_is_the_simulators(script: Scripted, scripted_service: Served) -> None:
    with env_of(scripted_service, render_mode="rgb_array") as env:
        assert env.metadata["render_fps"] == 10
        env.reset()
        env.step([0.0, 0.5])
        image = env.render()
        assert image is not None
        assert bits(image) == bits(script.render())


def test_branches_are_what_the_policy_does_in_process_from_that_state(lane: Served) -> None:
    here = LaneEnv()
    with env_of(lane) as env:
        env.reset(seed=5)
        start, _ = here.reset(seed=5)
        for action in ACTIONS[:3]:
            env.step(action)
            start, *_ = here.step(action)
        branches = branch(env, sampling, branches=3, horizon=6, seeds=[4, 5, 6], discount=0.9, value=lambda _: 2.0)
        assert branches.exact
        assert env.list_snapshots() == []
        for trajectory, seed in zip(branches, (4, 5, 6), strict=True):
            expected = collect_trajectory(
                copy.deepcopy(here), sampling, start, horizon=6, seed=seed, discount=0.9, value=lambda _: 2.0
            )
            assert bits(trajectory.observations) == bits(expected.observations)
            assert trajectory.total_return == expected.total_return
            by_hand = sum(reward * 0.9**t for t, reward in enumerate(trajectory.rewards)) + 2.0 * 0.9**6
            assert trajectory.total_return == pytest.approx(by_hand)
        assert bits(env.step(ACTIONS[3])) == bits(here.step(ACTIONS[3]))


def test_advantages_compare_within_the_group() -> None:
    advantages = group_relative_advantages([1.0, 2.0, 3.0, 6.0])
    assert advantages == pytest.approx(np.array([-2.0, -1.0, 0.0, 3.0]) / np.sqrt(3.5))
    assert (group_relative_advantages([0.1] * 3) == 0).all()
    with pytest.raises(ValueError, match="finite"):
        group_relative_advantages([1.0, np.nan])


def test_the_best_come_first_and_equals_in_their_order() -> None:
    class Worth:
        def __init__(self) -> None:
            self.rewards = iter([1.0, 3.0, 3.0])

        def step(self, _action: Any) -> Any:
            return 0, next(self.rewards), False, False, {}

    env = Worth()
    trajectories = [collect_trajectory(env, lambda *_: 0, 0, horizon=1) for _ in range(3)]
    assert select_top_k(trajectories, k=2) == trajectories[1:]
    with pytest.raises(ValueError, match="1 to 3"):
        select_top_k(trajectories, k=4)


def test_branches_over_two_services_have_the_bits_of_those_of_one(lane: Served, second_lane: Served) -> None:
    with env_of(lane) as env, env_of(second_lane) as other:
        env.reset()
        with pytest.raises(ValueError, match="without a seed"):
            branch([env, other], sampling, branches=2, horizon=2)
        env.reset(seed=5)
        for action in ACTIONS[:3]:
            env.step(action)
        alone = branch(env, sampling, branches=3, horizon=4)
        shared = branch([env, other], sampling, branches=3, horizon=4)
        assert [bits(one.observations) for one in shared] == [bits(one.observations) for one in alone]
        assert (shared.returns == alone.returns).all()


def test_a_replay_that_leads_elsewhere_is_refused(lane: Served, second_lane: Served, monkeypatch: Any) -> None:
    with env_of(lane) as env, env_of(second_lane) as other:
        env.reset(seed=5)
        for action in ACTIONS[:3]:
            env.step(action)
        original: Callable[[Any], Any] = LaneEnv.step

        def slippery(self: LaneEnv, action: Any) -> Any:
            observation, reward, *rest = original(self, action)
            return observation, reward + 1e-9 * (self.steps == 2), *rest

        monkeypatch.setattr(LaneEnv, "step", slippery)
        with pytest.raises(StateMismatch, match="step 2 was worth"):
            branch([env, other], sampling, branches=2, horizon=2)


@pytest.mark.parametrize(
    ("space", "action", "expected"),
    [
        (spaces.Box(-1, 1, (2,), np.float32), [1, 0], np.array([1, 0], np.float32)),
        (spaces.Box(-1, 1, (1,), np.float32), np.array([0.1]), np.array([0.1], np.float32)),
        (spaces.MultiDiscrete([3, 3]), np.array([2, 1], np.int8), np.array([2, 1], np.int64)),
        (spaces.MultiBinary(2), np.array([True, False]), np.array([1, 0], np.int8)),
        (spaces.Box(0, 9, (1,), np.uint8), np.array([300]), np.array([300])),
        (spaces.Discrete(3), np.int64(2), np.int64(2)),
    ],
)
def test_actions_get_the_spaces_dtype_where_they_fit(space: Any, action: Any, expected: Any) -> None:
    assert bits(cast(space, action)) == bits(expected)
    nested = spaces.Dict({"a": space, "b": spaces.Tuple([space])})
    assert bits(cast(nested, {"a": action, "b": [action]})) == bits({"a": expected, "b": (expected,)})
