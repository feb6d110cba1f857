"""Split, shadow and guard as commands, with a real server behind a real proxy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pytest
import requests

from benchmarks.servers import EXIT_TIMEOUT_S
from carla_policy_tools.client import golden_observations, request_body
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.paths import archive_name
from carla_policy_tools.routing.following import find_proxy, shadow_file
from carla_policy_tools.routing.haproxy import ProxyError, find_haproxy
from carla_policy_tools.urls import prediction_url
from tests.servers import COMMAND, ServeProcess

try:
    find_haproxy()
except ProxyError as error:
    pytest.skip(str(error), allow_module_level=True)

OLD, NEW = "v0.1.0", "v0.2.0"


class Command:
    """A `carla-policy` command in the background; `first` is the line that it printed first."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def first(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=EXIT_TIMEOUT_S)[1]
        content: dict[str, Any] = json.loads(line)
        return content

    def end(self, number: int = 0) -> tuple[int, str, str]:
        if number:
            os.kill(self.process.pid, number)
        output, error = self.process.communicate(timeout=EXIT_TIMEOUT_S)
        return self.process.returncode, output, error


def run(*arguments: str) -> dict[str, Any]:
    code, output, error = Command(*arguments).end()
    assert code == 0, error
    content: dict[str, Any] = json.loads(output)
    return content


@pytest.fixture(scope="module")
def options(server: ServeProcess, store: Path) -> list[str]:
    return ["--store", str(store), "--registry", str(server.registry)]


@pytest.fixture(scope="module")
def registry_file(server: ServeProcess, store: Path) -> RegistryFile:
    return RegistryFile.of(store, server.registry)


@pytest.fixture(scope="module")
def proxy(options: list[str]) -> Iterator[str]:
    """Its address."""
    command = Command("proxy", "--port", "0", *options)
    ready = command.first()
    yield ready["url"]
    haproxy = psutil.Process(command.process.pid).children()
    code, _, error = command.end(signal.SIGINT)
    assert code == 0, error
    assert not any(child.is_running() for child in haproxy)


@pytest.fixture(scope="module")
def body(store: Path) -> dict[str, Any]:
    observations, _ = golden_observations(store / archive_name(OLD))
    return request_body(observations[:3])


@pytest.fixture
def traffic(proxy: str, body: dict[str, Any]) -> Iterator[Event]:
    """A fleet that drives through the proxy until the test ends; set when somebody got no answer."""
    stop, trouble = Event(), Event()

    def drive(number: int) -> None:
        with requests.Session() as session:
            episode = 0
            while not stop.is_set():
                episode += 1
                for _ in range(5):
                    headers = {"x-episode-id": f"{number}-{episode}"}
                    answer = session.post(prediction_url(proxy, None), json=body, headers=headers, timeout=20)
                    if answer.status_code not in (200, 422):
                        trouble.set()

    drivers = [Thread(target=drive, args=(number,)) for number in range(3)]
    for driver in drivers:
        driver.start()
    yield trouble
    stop.set()
    for driver in drivers:
        driver.join()


def ask(proxy: str, body: dict[str, Any], episode: str) -> str:
    answer = requests.post(prediction_url(proxy, None), json=body, headers={"x-episode-id": episode}, timeout=20)
    version: str = answer.json()["version"]
    return version


def test_a_split_is_in_force_when_the_command_returns(
    options: list[str], proxy: str, body: dict[str, Any], registry_file: RegistryFile
) -> None:
    promoted = registry_file.read().promoted
    assert ask(proxy, body, "before") == promoted
    done = run("split", f"{OLD}=50", f"{NEW}=50", "--reason", "test", *options)
    assert (done["split"], done["in_force"]) == ({OLD: 50, NEW: 50}, True)
    answered = {str(number): ask(proxy, body, str(number)) for number in range(40)}
    assert set(answered.values()) == {OLD, NEW}
    run("split", f"{OLD}=99", f"{NEW}=1", *options)
    assert {number: ask(proxy, body, number) for number in answered} == answered
    assert run("split", "--off", *options)["split"] is None
    assert {ask(proxy, body, number) for number in answered} == {promoted}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([f"{OLD}=50", f"{NEW}=40"], "add up to 100 percent, got 90"),
        ([f"{OLD}=50", "v9.9.9=50"], "v9.9.9: not registered"),
        ([f"{OLD}=50", OLD], "expected a version and its percent"),
        ([], "or --off"),
    ],
)
def test_a_split_that_cannot_be_is_refused(
    options: list[str], registry_file: RegistryFile, arguments: list[str], reason: str
) -> None:
    before = registry_file.read()
    code, _, error = Command("split", *arguments, *options).end()
    assert code in (1, 2)
    assert reason in " ".join(error.replace("│", " ").split())
    assert registry_file.read() == before


def test_a_shadow_is_compared_and_no_client_notices(
    options: list[str], proxy: str, traffic: Event, registry_file: RegistryFile
) -> None:
    assert proxy
    promoted = registry_file.read().promoted
    report = run("shadow", OLD, "--share", "50", "--requests", "30", *options)
    assert report["baselines"] == {promoted: report["compared"]}
    assert report["compared"] == 30
    assert report["actions"] == 90
    worst = max(found["worst"] for found in report["differences"].values())
    assert worst > 0.001
    case = next(found for found in report["differences"].values() if found["worst"] == worst)["worst_case"]
    assert {"speed", "steering", "sensors"} == case["observation"].keys()
    assert not traffic.is_set()


def test_a_version_differs_by_nothing_from_itself_and_the_wish_ends_with_the_shadow(
    options: list[str], proxy: str, traffic: Event, registry_file: RegistryFile
) -> None:
    promoted = registry_file.read().promoted or ""
    command = Command("shadow", promoted, "--share", "100", *options)
    while not (state := find_proxy(registry_file)) or state.shadow_share != 100:
        assert command.process.poll() is None
    assert proxy
    code, output, error = command.end(signal.SIGINT)
    assert code == 0, error
    assert json.loads(output)["compared"] == 0
    while (state := find_proxy(registry_file)) and state.shadow_share:
        pass
    assert not shadow_file(registry_file).read_bytes()
    assert not traffic.is_set()


def test_the_guard_takes_a_failing_canary_out_and_says_why(
    server: ServeProcess, options: list[str], proxy: str, body: dict[str, Any], registry_file: RegistryFile
) -> None:
    promoted = registry_file.read().promoted
    run("split", f"{promoted}=50", f"{OLD}=50", *options)
    guard = Command("guard", "--for", "20s", *options)
    _set_workers(server, OLD, 0)
    try:
        while guard.process.poll() is None:
            for number in range(20):
                headers = {"x-episode-id": f"guarded-{number}"}
                requests.post(prediction_url(proxy, None), json=body, headers=headers, timeout=20)
    finally:
        _set_workers(server, OLD, 1)
    code, output, error = guard.end()
    found = json.loads(output)
    assert code == 3, error
    assert found["tripped"]
    assert found["findings"][0]["text"] == f"{OLD}: errors 10 in a row"
    registry = registry_file.read()
    assert (registry.split, registry.promoted) == (None, promoted)
    assert registry.history[-1].reason == f"guard; {OLD}: errors 10 in a row"


def test_a_guard_whose_time_is_up_without_a_finding_ends_well(options: list[str], proxy: str) -> None:
    assert proxy
    run("split", f"{OLD}=50", f"{NEW}=50", *options)
    found = run("guard", "--for", "500ms", *options)
    assert not found["tripped"]
    assert [(watched["baseline"], watched["canary"]) for watched in found["watched"]] == [(OLD, NEW)]
    run("split", "--off", *options)


def test_a_second_proxy_is_refused_and_what_a_killed_one_left_is_removed(
    options: list[str], proxy: str, registry_file: RegistryFile, tmp_path: Path
) -> None:
    assert proxy
    code, _, error = Command("proxy", "--port", "0", *options).end()
    assert (code, "follows this registry already" in error) == (1, True)
    other = RegistryFile(tmp_path / "registry.json", registry_file.store)
    other.write(registry_file.read())
    other.server_file.hardlink_to(registry_file.server_file)
    where = ["--store", str(other.store), "--registry", str(other.path)]
    killed = Command("proxy", "--port", "0", *where)
    left = Path(killed.first()["stats_socket"]).parent
    (haproxy,) = psutil.Process(killed.process.pid).children()
    killed.end(signal.SIGKILL)
    haproxy.wait(10)
    assert left.exists()
    following = Command("proxy", "--port", "0", *where)
    assert following.first()["promoted"] == other.read().promoted
    assert not left.exists()
    assert following.end(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize("verb", [["shadow", OLD], ["guard"]])
def test_without_a_proxy_the_reason_is_one_line(
    server: ServeProcess, store: Path, tmp_path: Path, verb: list[str]
) -> None:
    """The registry is another one here, which nobody follows."""
    assert server.ready
    code, _, error = Command(*verb, "--store", str(store), "--registry", str(tmp_path / "registry.json")).end()
    assert code == 1
    assert error.startswith("error: no ")
    assert error.count("\n") == 1


def _set_workers(server: ServeProcess, version: str, workers: int) -> None:
    url = f"{server.ready['management']}/models/carla_policy/{version}"
    parameters: dict[str, str | int] = {"min_worker": workers, "max_worker": workers, "synchronous": "true"}
    answer = requests.put(url, params=parameters, timeout=30)
    assert answer.ok, answer.text
