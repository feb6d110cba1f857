"""`carla-policy config apply`: what changes while a server runs, without a lost request, and what does not."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from carla_policy import holding
from carla_policy.holding import hold, hold_directory
from carla_policy_tools.paths import archive_name
from carla_policy_tools.urls import prediction_url
from tests.servers import ServeProcess
from tests.test_host import becomes_ready
from tests.test_serve_command import run

VERSION = "v1.9.0"
CLIENTS = 6
OBSERVATION = {"speed": 1.0, "steering": 0.0, "sensors": [0.0] * 5}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deployment") / "own.yaml"
    path.write_text("workers: 1\nlog_level: warning\n")
    return path


@pytest.fixture(scope="module")
def served(small_store: Path, deployment: Path) -> Iterator[ServeProcess]:
    with ServeProcess(small_store, VERSION, "--deployment", str(deployment)) as server:
        yield server


def apply(server: ServeProcess, *assignments: str) -> dict[str, Any]:
    done = run("config", "apply", *assignments, "--registry", str(server.registry), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return dict(json.loads(done.stdout))


def workers(server: ServeProcess) -> int:
    (described,) = requests.get(f"{server.ready['management']}/models/carla_policy/{VERSION}", timeout=10).json()
    return len(described["workers"])


class Clients:
    """Ask without a pause, each on a connection of its own, and count the answers by status; -1 is none."""

    def __init__(self, base: str) -> None:
        self._url = prediction_url(base, VERSION)
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(CLIENTS)
        self.answers: Counter[int] = Counter()

    def __enter__(self) -> Clients:
        self._running = [self._pool.submit(self._ask) for _ in range(CLIENTS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for running in self._running:
            self.answers.update(running.result())

    def _ask(self) -> Counter[int]:
        seen: Counter[int] = Counter()
        with requests.Session() as session:
            while not self._stop.is_set():
                try:
                    seen[session.post(self._url, json={"observations": [OBSERVATION]}, timeout=10).status_code] += 1
                except requests.RequestException:
                    seen[-1] += 1
        return seen


def test_no_request_is_lost_and_health_stays_green_while_workers_come_and_go(
    served: ServeProcess,
) -> None:
    ailing = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            answer = requests.get(f"{served.ready['health']}/readyz", timeout=10)
            if not answer.ok:
                ailing.append(answer.text)

    assert becomes_ready(served.ready["health"])
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with Clients(served.base) as clients:
            for count in (3, 1, 2, 1):
                assert apply(served, f"workers={count}")["workers"] == {VERSION: count}
                assert workers(served) == count
    finally:
        done.set()
        watcher.join()
    assert set(clients.answers) == {200}
    assert clients.answers[200] > 100
    assert ailing == []
    assert not list(Path(served.ready["run_dir"]).glob("hold-*"))


def test_file_that_has_changed_is_applied_as_far_as_it_can_be(served: ServeProcess, deployment: Path) -> None:
    apply(served, "workers=", "log_level=")
    deployment.write_text("workers: 2\nlog_level: debug\nfrozen: true\n")
    shown = json.loads(run("config", "show", "--registry", str(served.registry), "--json").stdout)["server"]
    advice = {found["name"]: found["advice"] for found in shown["differences"]}
    assert advice["workers"] == advice["log_level"] == "`carla-policy config apply`"
    assert advice["frozen"].startswith("needs a restart: TorchServe reads it once")
    done = apply(served)
    assert done["applied"] == {"workers": 2, "log_level": "debug"}
    assert [found["name"] for found in done["differences"]] == ["frozen"]
    assert workers(served) == 2
    assert apply(served)["applied"] == {}


def test_log_level_changes_what_the_front_end_writes(served: ServeProcess) -> None:
    log = Path(served.ready["run_dir"], "logs", "torchserve.log")

    def grows() -> bool:
        before = log.stat().st_size
        served.post(VERSION, {"observations": [OBSERVATION]})
        time.sleep(0.2)  # for the lines of this request
        return log.stat().st_size > before

    def becomes(state: bool) -> bool:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if grows() is state:
                return True
        return False

    apply(served, "log_level=debug")
    assert becomes(True)
    apply(served, "log_level=ERROR")
    assert becomes(False)


def test_given_value_stays_until_it_is_undone(served: ServeProcess, deployment: Path) -> None:
    deployment.write_text("workers: 1\nlog_level: warning\n")
    apply(served, "workers=2", "log_level=info")
    deployment.write_text("workers: 3\nlog_level: warning\n")
    assert apply(served)["applied"] == {}
    assert apply(served, "workers=")["applied"] == {"workers": 3}
    assert workers(served) == 3


@pytest.mark.parametrize(
    ("assignment", "reason"),
    [
        ("port=9090", "port: needs a restart: sockets are opened once"),
        ("workers=0", "config apply workers: expected a number of workers for each version, from 1 to 256, got '0'"),
        ("worker=2", "worker=2: expected NAME=VALUE of a setting that changes without a restart: workers, log_level"),
        ("log_level", "log_level: expected NAME=VALUE"),
    ],
)
def test_what_cannot_be_applied_is_refused(served: ServeProcess, assignment: str, reason: str) -> None:
    done = run("config", "apply", assignment, "--registry", str(served.registry))
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in done.stderr


def test_without_a_server_there_is_nothing_to_apply_to(tmp_path: Path) -> None:
    done = run("config", "apply", "workers=2", "--store", str(tmp_path))
    assert done.returncode == 1
    assert "no server serves" in done.stderr


def test_worker_is_held_while_the_directory_is_there_but_not_by_an_old_one(
    tmp_path: Path,
) -> None:
    directory = hold_directory(tmp_path, VERSION)
    hold(directory)
    directory.mkdir()
    held = threading.Thread(target=hold, args=(directory,))
    held.start()
    while not (directory / str(os.getpid())).exists():
        time.sleep(0.01)
    assert held.is_alive()
    (directory / str(os.getpid())).unlink()
    directory.rmdir()
    held.join(5)
    assert not held.is_alive()
    directory.mkdir()
    os.utime(directory, (0, 0))
    hold(directory)
    assert list(directory.iterdir()) == []


def test_archives_carry_what_holds_workers(small_store: Path) -> None:
    import zipfile

    with zipfile.ZipFile(small_store / archive_name(VERSION)) as packed:
        assert f"carla_policy/{Path(holding.__file__).name}" in packed.namelist()
