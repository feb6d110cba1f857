"""Services as processes: kept alive by a manager, stepped as one by a vector environment, whatever happens to one."""

from __future__ import annotations

import json
import os
import re
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
from carla_policy_environment.simulators.gymnasium_simulator import GymnasiumSimulator
from carla_policy_environment.vector_infos import batch_infos
from carla_policy_tools.paths import PROJECT
from tests.environment_services import Served
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


def gone(pid: int) -> bool:
    """Whether a process has ended, also where nobody asks for its status."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


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


HEALTH = """
import http.server, os, pathlib, sys
port, status, text = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(status)
        body = text.encode()
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
print("CUDA", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
"""Something that starts quicker than a service, to be watched."""
OK, ILL = '{"status": "ok"}', '{"status": "unhealthy", "reason": "no road"}'


@contextmanager
def watched(tmp_path: Path, status: int = 200, text: str = OK, **options: Any) -> Iterator[ManagedService]:
    slot = Slot(0, reserved_port("127.0.0.1"), "GPU-1", options.pop("carla_port", None))
    program = [sys.executable, "-I", "-S", "-c", HEALTH, str(slot.port), str(status), text]
    companion = options.pop("companion", None)
    settings = WatchSettings(**{"probe_interval_s": 0.05, "first_pause_s": 0.01, **options})
    programs = Programs(program, companion, slot.carla_port)
    service = ManagedService(slot, programs, host="127.0.0.1", log_dir=tmp_path, settings=settings)
    service.start()
    try:
        yield service
    finally:
        service.stop()
        service.join()
        assert service.pid is None


def test_a_service_is_started_again_so_often_and_no_more(tmp_path: Path) -> None:
    with watched(tmp_path, max_restarts=2) as service:
        pids = set()
        for _ in range(3):
            until(lambda: service.state is State.READY and service.pid not in pids)
            assert service.pid
            pids.add(service.pid)
            os.kill(service.pid, signal.SIGKILL)
        until(lambda: service.state is State.FAILED)
        assert service.reason == "it was ended by SIGKILL; started again 2 times in a row, which is the limit"
        assert service.restarts == 2
        assert service.log.read_text() == "CUDA GPU-1\n" * 3


def test_one_whose_simulator_stays_broken_is_started_again(tmp_path: Path) -> None:
    with watched(tmp_path, 503, ILL, unhealthy_s=0.2) as service:
        until(lambda: service.state is State.UNHEALTHY)
        until(lambda: service.state is State.FAILED)
        assert service.reason == "it was unhealthy for 0.2 s: no road"


def test_one_that_takes_too_much_memory_is_started_again(tmp_path: Path) -> None:
    with watched(tmp_path, max_memory_mb=1.0, max_restarts=0) as service:
        until(lambda: service.state is State.FAILED)
        assert service.reason
        assert "MiB, more than the 1 it may take" in service.reason


def test_growth_of_memory_is_told_from_loading() -> None:
    watch = MemoryWatch(settle_s=60)
    for second, megabytes in ((0, 50), (30, 400), (60, 500), (90, 510)):
        watch.note(megabytes, now=second)
    assert (watch.growth_mb, watch.growth_mb_per_hour) == (10, None)
    watch.note(530, now=120)
    assert (watch.growth_mb, watch.growth_mb_per_hour) == (30, 1800)


def test_a_simulator_is_started_before_its_service_and_all_that_it_started_ends_with_it(tmp_path: Path) -> None:
    port = reserved_port("127.0.0.1")
    serving = f"{sys.executable} -I -S -m http.server --bind 127.0.0.1 {port}"
    script = ["sh", "-c", f"{serving} & echo $! > {tmp_path}/pid; wait"]
    with watched(tmp_path, companion=script, carla_port=port) as service:
        until(lambda: service.state is State.READY)
        grandchild = int((tmp_path / "pid").read_text())
        os.kill(grandchild, signal.SIGKILL)
        until(lambda: service.reason)
        assert service.reason
        assert service.reason.startswith("its simulator ended with status")
        until(lambda: service.state is State.READY and service.restarts == 1)
        grandchild = int((tmp_path / "pid").read_text())
        assert psutil.pid_exists(grandchild)
    until(lambda: gone(grandchild))


def test_ports_and_gpus_go_round(tmp_path: Path) -> None:
    allocation = Allocation(0, parse_gpus("0,0,1"), carla_port=2000)
    slots = [allocation.slot(index) for index in range(4)]
    assert [slot.gpu for slot in slots] == ["0", "0", "1", "0"]
    assert [slot.carla_port for slot in slots] == [2000, 2004, 2008, 2012]
    assert [slot.carla_traffic_port for slot in slots] == [8000, 8001, 8002, 8003]
    assert len({slot.port for slot in slots}) == 4
    assert slots[2].fill("-carla-rpc-port={port} -graphicsadapter={gpu}") == "-carla-rpc-port=2008 -graphicsadapter=1"
    with pytest.raises(ValueError, match=r"expected only \{index\}"):
        slots[0].fill("{gpus}")
    with pytest.raises(ValueError, match="gpus: expected"):
        parse_gpus("0;1")
    with pytest.raises(ValueError, match="needs a carla_port"):
        EnvironmentManager(carla_command="CarlaUE4.sh", log_dir=tmp_path)


def test_services_come_and_go_and_keep_their_addresses(manager: EnvironmentManager) -> None:
    urls = manager.urls
    manager.scale(1)
    assert manager.urls == urls[:1]
    manager.scale(2)
    manager.wait_until_ready(PATIENCE_S)
    assert manager.urls == urls
    environment = Path(f"/proc/{manager.report()[1]['pid']}/environ").read_bytes().split(b"\0")
    assert b"CUDA_VISIBLE_DEVICES=1" in environment


def test_one_that_cannot_start_is_told_with_its_own_reason(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match=r"service 0: .*nonsense:Env: cannot be made.*log is"):
        EnvironmentManager(1, env="nonsense:Env", log_dir=tmp_path).__enter__()


def test_a_service_that_stays_away_is_raised_in_time() -> None:
    with Served(lambda: GymnasiumSimulator(LaneEnv, "lane")) as served:
        env = VectorizedCarlaEnv([served.url], recovery_timeout=0.2)
        env.reset()
    actions = np.zeros((1, 2), np.float32)
    assert env.step(actions)[3].tolist() == [True]
    with pytest.raises(ServiceUnavailable):
        env.step(actions)
    env.close()


def test_services_end_with_a_manager_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import pathlib, time\nfrom carla_policy_environment.child_process import ChildProcess\n"
        f"log = pathlib.Path({str(tmp_path / 'log')!r})\n"
        "one, other = ChildProcess(['sleep', '600'], log), ChildProcess(['sh', '-c', 'sleep 600'], log, group=True)\n"
        "print(one.pid, other.pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        one, other = (psutil.Process(int(pid)) for pid in process.stdout.readline().split())
        until(lambda: one.name() == "sleep" and other.children())
        children = [one, other, *other.children(recursive=True)]
        process.kill()
    until(lambda: all(gone(child.pid) for child in children))


def test_the_command_tells_states_and_ends_all_on_ctrl_c(tmp_path: Path) -> None:
    options = ["--services", "1", "--port", "0", "--gpus", "1,0", "--env", LANE, "--log-dir", str(tmp_path), "--json"]
    command = [*COMMAND, "env", "manage", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        (service,) = json.loads(process.stdout.readline())["services"]
        assert (service["state"], service["gpu"], service["restarts"]) == ("ready", "1", 0)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    assert not psutil.pid_exists(service["pid"])


def test_infos_of_a_vector_are_laid_out_as_gymnasium_does() -> None:
    infos = batch_infos([{"speed": 1.5, "lane": "left", "pose": {"x": 1}}, {"speed": 2, "pose": {}}, {"crash": True}])
    assert infos["speed"].tolist() == [1.5, 2, None]
    assert infos["_speed"].tolist() == [True, True, False]
    assert infos["lane"].tolist() == ["left", None, None]
    assert infos["pose"]["x"].tolist() == [1, 0, 0]
    assert infos["pose"]["_x"].tolist() == [True, False, False]
    assert (infos["crash"].dtype, infos["crash"].tolist()) == (np.bool_, [False, False, True])


def test_the_examples_of_the_documentation_run(manager: EnvironmentManager) -> None:
    text = (PROJECT / "environment" / "training.md").read_text()
    examples = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Manager" not in block]
    assert len(examples) == 4
    manager.wait_until_ready(PATIENCE_S)
    names: dict[str, Any] = {}
    for example in examples:
        for port, url in zip((8090, 8091), manager.urls, strict=True):
            example = example.replace(f"http://localhost:{port}", url)
        exec(example, names)
    assert len(names["best_rollouts"]) == len(names["best"]) == 2
    assert names["branches"].exact
    assert names["rewards"].shape == (2,)
