"""Services as processes: kept alive by a manager, stepped as one by a vector environment, whatever happens to one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from carla_policy_environment import EnvironmentManager, VectorizedCarlaEnv
from carla_policy_environment.allocation import Allocation, Slot, parse_gpus, reserved_port
from carla_policy_environment.comparing import bits
from carla_policy_environment.errors import ServiceUnavailable
from carla_policy_environment.managed_service import ManagedService, Programs
from carla_policy_environment.manager import ServiceFailed
from carla_policy_environment.probing import State, WatchSettings
from carla_policy_environment.resources import MemoryWatch
from carla_policy_environment.vector_infos import batch_infos
from tests.lane_env import LaneEnv
from tests.servers import COMMAND

PATIENCE_S = 60
LANE = "tests.lane_env:LaneEnv"
IMPATIENT = WatchSettings(probe_interval_s=0.1, probe_timeout_s=0.5, silent_s=1.0, first_pause_s=0.1)


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EnvironmentManager]:
    logs = tmp_path_factory.mktemp("logs")
    with EnvironmentManager(2, env=LANE, gpus=[0, 1], log_dir=logs, settings=IMPATIENT) as running:
        yield running


@contextmanager
def vector_of(manager: EnvironmentManager, **options: Any) -> Iterator[VectorizedCarlaEnv]:
    env = VectorizedCarlaEnv(manager.urls, **options)
    try:
        yield env
    finally:
        env.close()


def until(happened: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := happened()):
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_vector_has_the_bits_of_gymnasiums_own(manager: EnvironmentManager, mode: AutoresetMode) -> None:
    here = SyncVectorEnv([LaneEnv, LaneEnv], autoreset_mode=mode)
    with vector_of(manager, autoreset_mode=mode) as env:
        assert env.metadata["autoreset_mode"] is mode
        assert (env.observation_space, env.action_space) == (here.observation_space, here.action_space)
        assert bits(env.reset(seed=3)) == bits(here.reset(seed=3))
        env.action_space.seed(3)
        ends = 0
        while ends < 3:
            actions = env.action_space.sample()
            there = env.step(actions)
            expected = here.step(actions)
            assert bits(there) == bits(expected)
            over = there[2] | there[3]
            ends += int(over.sum())
            if mode is AutoresetMode.DISABLED and over.any():
                with pytest.raises(gymnasium.error.ResetNeeded, match="reset_mask"):
                    env.step(actions)
                there_first = env.reset(seed=[8, 9], options={"reset_mask": over.copy()})
                assert bits(there_first) == bits(here.reset(seed=[8, 9], options={"reset_mask": over.copy()}))


def test_a_wrong_action_is_told_before_any_environment_has_stepped(manager: EnvironmentManager) -> None:
    with vector_of(manager) as env:
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(np.zeros((2, 2), np.float32))
        env.reset(seed=1)
        here = SyncVectorEnv([LaneEnv, LaneEnv])
        here.reset(seed=1)
        with pytest.raises(ValueError, match=r"environment 1: action\[0\]: expected -1.0 to 1.0, got 7.0"):
            env.step(np.array([[0, 0], [7, 0]], np.float32))
        actions = np.zeros((2, 2), np.float32)
        assert bits(env.step(actions)) == bits(here.step(actions))


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_service_that_fails_loses_its_episode_and_comes_back_while_the_other_goes_on(
    manager: EnvironmentManager, blow: signal.Signals
) -> None:
    actions = np.zeros((2, 2), np.float32)
    here = SyncVectorEnv([LaneEnv])
    manager.wait_until_ready(PATIENCE_S)
    before = manager.report()[0]
    with vector_of(manager, timeout=0.5) as env:
        env.reset(seed=1)
        here.reset(seed=2)

        def step() -> tuple[Any, ...]:
            stepped = env.step(actions)
            assert bits([part[1:] for part in stepped[:4]]) == bits(list(here.step(actions[1:])[:4]))
            return stepped

        step()
        os.kill(before["pid"], blow)
        _, rewards, terminations, truncations, infos = step()
        while truncations[0]:
            assert (rewards[0], terminations[0]) == (0.0, False)
            assert infos["_service_failure"].tolist() == [True, False]
            assert before["url"] in infos["service_failure"][0]
            time.sleep(0.05)
            observations, rewards, terminations, truncations, infos = step()
        assert observations[0] in env.single_observation_space
        assert observations[0][1] == 0.0
        assert step()[1][0] != 0.0
    after = manager.report()[0]
    assert (after["state"], after["restarts"]) == ("ready", before["restarts"] + 1)
    assert after["pid"] != before["pid"]
    assert after["reason"] == ("it was ended by SIGKILL" if blow is signal.SIGKILL else "it has not answered for 1 s")
    assert not psutil.pid_exists(before["pid"])
