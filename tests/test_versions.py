"""Versions on a real server, changed by the command line: nothing is lost, forgotten or half done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from carla_policy.card import CARD_FILE, load_card
from carla_policy_tools.archive import pack
from carla_policy_tools.build import build
from carla_policy_tools.keys import load_signing_key, make_key_pair
from carla_policy_tools.lifecycle.warming import CLIENTS, SHORT_ROUND
from carla_policy_tools.paths import CONFIG, archive_name
from carla_policy_tools.signing import sign_archive
from tests.servers import COMMAND, ServeProcess
from tests.synthetic import make_artifact
from tests.test_artifact import change_golden

OBSERVATION = {"observations": [{"speed": 1.0, "steering": 0.0, "sensors": [0.0] * 5}]}
PATIENCE_S = 30.0
FIRST, SECOND, THIRD = "v1.9.0", "v1.10.0", "v1.11.0"


class Operator:
    """Runs verbs against one registry."""

    def __init__(self, store: Path, registry: Path) -> None:
        self.where = ["--store", str(store), "--registry", str(registry)]
        self.store, self.registry = store, registry

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, *arguments, *self.where]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def do(self, *arguments: str) -> dict[str, Any]:
        """Run a verb that must succeed; its JSON."""
        result = self.run(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        content: dict[str, Any] = json.loads(result.stdout)
        return content

    def refused(self, *arguments: str) -> str:
        """Run a verb that must fail, without a trace in the registry; what it says."""
        before = self.registry.read_bytes() if self.registry.exists() else b""
        result = self.run(*arguments)
        assert result.returncode == 1, result.stdout
        assert result.stderr.startswith("error: ")
        assert (self.registry.read_bytes() if self.registry.exists() else b"") == before
        return result.stderr

    def history(self) -> list[tuple[str, str | None]]:
        events = self.do("history", "--last", "0")["history"]
        return [(event["verb"], event.get("version")) for event in events]


def default_of(server: ServeProcess) -> str:
    return str(requests.get(f"{server.ready['management']}/models/carla_policy", timeout=10).json()[0]["modelVersion"])


def listed(server: ServeProcess) -> set[str]:
    found = requests.get(f"{server.ready['management']}/models/carla_policy/all", timeout=10).json()
    return {version["modelVersion"] for version in found}


def answering(server: ServeProcess, version: str | None = None) -> str:
    response = server.post(version, OBSERVATION)
    assert response.status_code == 200, response.text
    return str(response.json()["version"])


def worker_of(server: ServeProcess, version: str) -> psutil.Process:
    (found,) = requests.get(f"{server.ready['management']}/models/carla_policy/{version}", timeout=10).json()
    return psutil.Process(found["workers"][0]["pid"])


def poll(condition: Callable[[], bool]) -> bool:
    """Whether `condition` comes true while it is asked again and again."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of a third synthetic version."""
    root = tmp_path_factory.mktemp("third")
    return build(make_artifact(root, THIRD), root).verification.archive


@pytest.fixture
def own_store(small_store: Path, third: Path, tmp_path: Path) -> Path:
    store = Path(shutil.copytree(small_store, tmp_path / "store"))
    shutil.copy(third, store)
    return store


@pytest.fixture
def operator(own_store: Path, tmp_path: Path) -> Operator:
    return Operator(own_store, tmp_path / "registry.json")


@pytest.fixture
def server(operator: Operator) -> Iterator[ServeProcess]:
    """A server that was first started with one version, and whose registry therefore declares that one only."""
    with ServeProcess(operator.store, FIRST, registry=operator.registry) as process:
        yield process


def test_version_goes_all_the_way_and_back(server: ServeProcess, operator: Operator) -> None:
    done = operator.do("register", SECOND, "--reason", "new")
    assert done["actions"] == done["bit_equal"] == 512
    assert (listed(server), answering(server), answering(server, SECOND)) == ({FIRST, SECOND}, FIRST, SECOND)
    assert operator.do("promote", "1.10.0", "--reason", "better")["promoted"] == SECOND
    assert (default_of(server), answering(server)) == (SECOND, SECOND)
    assert operator.do("rollback")["promoted"] == FIRST
    assert answering(server) == FIRST
    assert operator.do("retire", SECOND)["versions"] == [FIRST]
    assert listed(server) == {FIRST}
    assert server.post(SECOND, OBSERVATION).status_code == 404
    assert operator.history() == [
        ("register", FIRST),
        ("promote", FIRST),
        ("register", SECOND),
        ("promote", SECOND),
        ("rollback", FIRST),
        ("retire", SECOND),
    ]
    assert operator.do("status")["drift"] == []


def test_version_is_asked_a_few_times_before_it_can_be_promoted(server: ServeProcess, operator: Operator) -> None:
    operator.do("register", SECOND)

    text = requests.get(f"{server.ready['metrics']}/metrics", timeout=30).text
    lines = [line for line in text.splitlines() if line.startswith("ts_inference_requests_total{")]
    asked = sum(float(line.split()[-1]) for line in lines if f'"{SECOND}"' in line and '"carla_policy"' in line)
    assert asked >= SHORT_ROUND * CLIENTS


def test_promoted_version_and_the_others_survive_a_restart(operator: Operator) -> None:
    with ServeProcess(operator.store, FIRST, registry=operator.registry) as server:
        operator.do("register", SECOND)
        operator.do("promote", SECOND)
        operator.do("register", THIRD, "--profile", "throughput")
        os.kill(server.ready["server_pid"], signal.SIGKILL)
        assert server.wait()[0] == 1
    with ServeProcess(operator.store, FIRST, "--promote", FIRST, registry=operator.registry) as server:
        assert server.ready["versions"] == [FIRST, SECOND, THIRD]
        assert (default_of(server), answering(server)) == (SECOND, SECOND)
        (described,) = requests.get(f"{server.ready['management']}/models/carla_policy/{THIRD}", timeout=10).json()
        assert described["batchSize"] == 64
        assert operator.do("status")["drift"] == []
        _, notes = server.stop()
        assert f"note: the registry says that {SECOND} is promoted; `carla-policy promote {FIRST}` changes it" in notes


def test_version_that_does_not_reproduce_training_never_reaches_the_server(
    server: ServeProcess, operator: Operator, tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path, "v2.0.0")
    change_golden(artifact, "mean", (5, 1), 0.875)
    archive = operator.store / archive_name("v2.0.0")
    archive.write_bytes(pack(artifact, load_card(artifact / CARD_FILE), None))
    assert f"error: {archive}: golden.npz: vector 5, mean.steer: expected 0.875" in operator.refused(
        "register", "v2.0.0"
    )
    assert (listed(server), answering(server)) == ({FIRST}, FIRST)


def test_version_that_fails_in_the_server_only_is_removed_again(server: ServeProcess, operator: Operator) -> None:
    """A worker that cannot start although the archive is good: here the server's unpacked copies cannot be written."""
    models = Path(server.ready["run_dir"]) / "tmp" / "models"
    shutil.rmtree(models)
    models.write_text("not a directory")
    message = operator.refused("register", SECOND)
    assert SECOND in message
    assert (listed(server), answering(server)) == ({FIRST}, FIRST)
    models.unlink()
    operator.do("register", SECOND)
    assert answering(server, SECOND) == SECOND


def test_what_cannot_be_done_is_refused_in_one_line(server: ServeProcess, operator: Operator) -> None:
    assert f"{FIRST}: is registered already" in operator.refused("register", FIRST)
    assert "not found; the store has v1.9.0, v1.10.0, v1.11.0" in operator.refused("register", "v9.9.9")
    assert f"{SECOND}: not registered (registered: {FIRST})" in operator.refused("promote", SECOND)
    assert "no version was promoted before this one" in operator.refused("rollback")
    assert f"{FIRST}: is promoted; promote another version" in operator.refused("retire", FIRST)
    assert "there is no profile 'fast'" in operator.refused("register", SECOND, "--profile", "fast")
    assert "'vlatest' is not a version" in operator.refused("promote", "latest")
    assert listed(server) == {FIRST}


def test_version_that_no_trusted_key_has_signed_is_not_registered(
    server: ServeProcess, operator: Operator, tmp_path: Path
) -> None:
    key = make_key_pair(tmp_path / "ours")
    values = (CONFIG / "profiles" / "realtime.yaml").read_text()
    (tmp_path / "signed.yaml").write_text(f"{values}\ntrusted_keys: [ours.pub]\n")
    archive = operator.store / archive_name(SECOND)
    profile = ("--profile", str(tmp_path / "signed.yaml"))
    assert f"error: {archive}.sig: there is no such file" in operator.refused("register", SECOND, *profile)
    assert listed(server) == {FIRST}
    sign_archive(archive, load_signing_key(key.private_key))
    assert operator.do("register", SECOND, *profile)["version"] == SECOND
    assert operator.do("status")["versions"][SECOND]["profile"] == str(tmp_path / "signed.yaml")


def test_verbs_without_a_server_say_what_to_do(own_store: Path, tmp_path: Path) -> None:
    operator = Operator(own_store, tmp_path / "registry.json")
    for verb in ("register", "promote"):
        assert "no server serves" in operator.refused(verb, FIRST)
    assert operator.run("health").returncode == 1
    assert "failing: no server is running" in operator.run("health").stderr


def test_rollback_works_while_the_promoted_version_is_dead(server: ServeProcess, operator: Operator) -> None:
    operator.do("register", SECOND)
    operator.do("promote", SECOND)
    worker = worker_of(server, SECOND)
    worker.suspend()
    assert operator.do("rollback")["promoted"] == FIRST
    assert answering(server) == FIRST
    worker.resume()


def test_rollback_without_a_server_is_obeyed_by_the_next_start(operator: Operator) -> None:
    with ServeProcess(operator.store, FIRST, SECOND, "--promote", FIRST, registry=operator.registry):
        operator.do("promote", SECOND)
    assert operator.do("rollback", "--reason", "does not start")["promoted"] == FIRST
    with ServeProcess(operator.store, registry=operator.registry) as server:
        assert answering(server) == FIRST


def test_version_that_is_not_ready_is_not_promoted(server: ServeProcess, operator: Operator) -> None:
    operator.do("register", SECOND)
    worker_of(server, SECOND).suspend()
    assert "a golden observation got no answer within 2" in operator.refused("promote", SECOND)
    assert answering(server) == FIRST


def test_version_that_clients_still_ask_by_name_is_not_retired(server: ServeProcess, operator: Operator) -> None:
    operator.do("register", SECOND)
    command = [*COMMAND, "retire", SECOND, "--timeout", "1", *operator.where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as retiring:
        while retiring.poll() is None:
            assert answering(server, SECOND) == SECOND
        assert retiring.stderr is not None
        assert "clients still ask" in retiring.stderr.read()
    assert retiring.returncode == 1
    assert operator.do("retire", SECOND, "--force")["versions"] == [FIRST]


def test_drift_is_shown_and_mended(server: ServeProcess, operator: Operator) -> None:
    operator.do("register", SECOND)
    models = f"{server.ready['management']}/models"
    shutil.copy(operator.store / archive_name(THIRD), Path(server.ready["run_dir"]) / "store")
    url = f"{models}?url={archive_name(THIRD)}&initial_workers=1&synchronous=true"
    assert requests.post(url, timeout=60).ok
    assert requests.put(f"{models}/carla_policy/{THIRD}/set-default", timeout=10).ok
    assert requests.delete(f"{models}/carla_policy/{SECOND}", timeout=10).ok
    assert sorted(operator.do("status")["drift"]) == [
        f"{SECOND}: declared, but not on the server",
        f"{THIRD} answers by default, but {FIRST} is promoted",
        f"{THIRD}: on the server, but not declared",
    ]
    assert operator.run("health").returncode == 1
    assert operator.do("reconcile")["drift"] == []
    assert (listed(server), answering(server), answering(server, SECOND)) == ({FIRST, SECOND}, FIRST, SECOND)
    assert operator.run("health").stdout == "ok\n"


def test_changed_archive_of_a_registered_version_is_drift_and_stops_the_next_start(
    server: ServeProcess, operator: Operator
) -> None:
    archive = operator.store / archive_name(FIRST)
    archive.write_bytes(archive.read_bytes()[:-1])
    (drift,) = operator.do("status")["drift"]
    assert f"{archive} has changed since it was registered" in drift
    server.stop()
    refused = subprocess.run(
        [*COMMAND, "serve", *operator.where, "--port", "0"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    assert archive.name in refused.stderr


def test_interrupted_change_is_taken_back_by_the_server(server: ServeProcess, operator: Operator) -> None:
    """As a kill -9 of `promote` leaves it, between the server's switch and the record."""
    operator.do("register", SECOND)
    assert requests.put(f"{server.ready['management']}/models/carla_policy/{SECOND}/set-default", timeout=10).ok
    pending = operator.registry.with_name("registry.json.pending") / SECOND
    pending.write_text(json.dumps({"verb": "promote", "by": "somebody", "since": "just now"}))
    assert poll(lambda: not pending.exists() and default_of(server) == FIRST)
    assert operator.history()[-1] == ("undo", SECOND)


def test_second_server_of_a_registry_is_refused(server: ServeProcess, operator: Operator) -> None:
    command = [*COMMAND, "serve", *operator.where, "--port", "0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "a server serves this registry already" in refused.stderr
    assert answering(server) == FIRST


def test_health_turns_red_when_the_promoted_version_cannot_answer(server: ServeProcess) -> None:
    ready = f"{server.ready['health']}/readyz"
    assert poll(lambda: requests.get(ready, timeout=5).status_code == 200)
    worker = worker_of(server, FIRST)
    worker.suspend()
    assert poll(lambda: requests.get(ready, timeout=5).status_code == 503)
    assert "got no answer" in requests.get(ready, timeout=5).json()["findings"][0]
    assert requests.get(f"{server.ready['health']}/livez", timeout=5).status_code == 200
    worker.resume()
    assert poll(lambda: requests.get(ready, timeout=5).status_code == 200)
    worker.kill()
    assert poll(lambda: requests.get(ready, timeout=5).status_code == 503)
    assert poll(lambda: requests.get(ready, timeout=5).status_code == 200)
