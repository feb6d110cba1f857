"""Health and its probes: green only while everything declared is there, and never out of habit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from carla_policy_tools.lifecycle.endpoint import Announcement, announced
from carla_policy_tools.lifecycle.health import Health, check_health
from carla_policy_tools.lifecycle.intents import intent
from carla_policy_tools.lifecycle.registry import RegistryFile
from tests.declared import PROFILE, PretendedServer, changed, registry_of

GOOD = Health(True, ())


@pytest.fixture
def file(tmp_path: Path) -> RegistryFile:
    file = RegistryFile.of(tmp_path)
    file.write(registry_of("v1.0.0", "v1.1.0"))
    return file


@pytest.fixture
def announcement(file: RegistryFile) -> Iterator[Announcement]:
    with announced(file) as announcement:
        yield announcement


@pytest.fixture
def server(announcement: Announcement, tmp_path: Path) -> Iterator[PretendedServer]:
    """Ready, and exactly as declared."""
    server = PretendedServer(["v1.0.0", "v1.1.0"], "v1.0.0")
    with server.running():
        announcement.say(server.endpoint(tmp_path))
        yield server


def test_server_as_declared_is_healthy(file: RegistryFile, server: PretendedServer) -> None:
    assert check_health(file) == GOOD
    assert server.writes == []


def test_no_server_is_not_healthy(file: RegistryFile) -> None:
    assert check_health(file) == Health(False, ("no server is running",))


@pytest.mark.parametrize(("state", "alive"), [("starting", False), ("draining", True)])
def test_server_that_begins_or_ends_is_not_ready(
    file: RegistryFile, server: PretendedServer, announcement: Announcement, tmp_path: Path, state: str, alive: bool
) -> None:
    announcement.say(server.endpoint(tmp_path, state=state))
    assert check_health(file) == Health(alive, (f"the server is {state}",))


def test_server_that_does_not_answer_is_not_alive(file: RegistryFile, server: PretendedServer) -> None:
    server._server.shutdown()
    server._server.server_close()
    found = check_health(file)
    assert not found.alive
    assert found.findings[0].startswith("the server does not answer: ")


@pytest.mark.parametrize("states", [[], ["UNLOADING"], ["UNLOADED", "DIED"]])
@pytest.mark.parametrize("version", ["v1.0.0", "v1.1.0"])
def test_missing_worker_of_any_version_is_a_finding(
    file: RegistryFile, server: PretendedServer, version: str, states: list[str]
) -> None:
    server.workers[version] = states
    assert check_health(file) == Health(True, (f"{version}: 0 of 1 workers ready",))


def test_one_worker_of_two_is_a_finding(file: RegistryFile, server: PretendedServer, tmp_path: Path) -> None:
    profile = tmp_path / "two.yaml"
    profile.write_text(yaml.safe_dump({**PROFILE.model_dump(), "workers": 2}))
    file.write(changed(file.read(), "configure", "v1.1.0", profile=str(profile)))
    server.workers["v1.1.0"] = ["READY", "UNLOADING"]
    assert check_health(file) == Health(True, ("v1.1.0: 1 of 2 workers ready",))
    server.workers["v1.1.0"] = ["READY", "READY"]
    assert check_health(file) == GOOD


def test_missing_version_is_a_finding(file: RegistryFile, server: PretendedServer) -> None:
    del server.workers["v1.1.0"]
    assert check_health(file) == Health(True, ("v1.1.0: declared, but not on the server",))


def test_version_that_nobody_declared_is_a_finding(file: RegistryFile, server: PretendedServer) -> None:
    server.workers["v1.2.0"] = ["READY"]
    assert check_health(file) == Health(True, ("v1.2.0: on the server, but not declared",))


def test_another_default_than_the_promoted_version_is_a_finding(file: RegistryFile, server: PretendedServer) -> None:
    server.default = "v1.1.0"
    assert check_health(file) == Health(True, ("v1.1.0 answers by default, but v1.0.0 is promoted",))


def test_golden_observation_that_is_answered_wrongly_is_a_finding(file: RegistryFile, server: PretendedServer) -> None:
    server.golden_status = 500
    (finding,) = check_health(file).findings
    assert finding.startswith("v1.0.0: a golden observation was answered 500: ")


def test_version_without_workers_is_not_asked_for_a_golden_observation(
    file: RegistryFile, server: PretendedServer
) -> None:
    server.workers["v1.0.0"], server.golden_status = [], 503
    assert check_health(file).findings == ("v1.0.0: 0 of 1 workers ready",)


def test_golden_observation_without_an_answer_is_a_finding(
    file: RegistryFile, server: PretendedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carla_policy_tools.lifecycle.health.GOLDEN_TIMEOUT_S", 0.1)
    ended = threading.Event()
    answer = server.answer

    def hang(method: str, path: str, query: str) -> tuple[int, object]:
        if path.startswith("/predictions/"):
            ended.wait(30)
        return answer(method, path, query)

    monkeypatch.setattr(server, "answer", hang)
    (finding,) = check_health(file).findings
    ended.set()
    assert finding.startswith("v1.0.0: a golden observation got no answer within ")


@pytest.mark.parametrize("content", ["{", '{"format": 2}'])
def test_registry_that_cannot_be_read_is_a_finding(file: RegistryFile, server: PretendedServer, content: str) -> None:
    file.path.write_text(content)
    found = check_health(file)
    assert found.alive
    assert "not a registry" in found.findings[0]
    assert server.writes == []


def test_profile_that_is_gone_is_a_finding(file: RegistryFile, server: PretendedServer) -> None:
    file.write(changed(file.read(), "configure", "v1.1.0", profile="gone"))
    assert "there is no profile 'gone'" in check_health(file).findings[0]
    assert server.writes == []


def test_version_that_is_just_being_retired_or_promoted_is_no_finding(
    file: RegistryFile, server: PretendedServer
) -> None:
    with intent(file, "promote", "v1.1.0"):
        server.default = "v1.1.0"
        assert check_health(file) == GOOD
    server.default = "v1.0.0"
    with intent(file, "retire", "v1.1.0"):
        del server.workers["v1.1.0"]
        assert check_health(file) == GOOD
        server.workers["v1.0.0"] = []
        assert not check_health(file).ready


@pytest.mark.parametrize("at", ["/all", "/carla_policy"])
def test_promotion_that_ends_during_the_check_is_no_finding(
    file: RegistryFile, server: PretendedServer, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    answer = server.answer

    def answer_and_promote(method: str, path: str, query: str) -> tuple[int, object]:
        before = answer(method, path, query)
        if path.endswith(at) and server.default == "v1.0.0":
            server.default = "v1.1.0"
            file.write(changed(file.read(), "promote", "v1.1.0"))
        return before

    monkeypatch.setattr(server, "answer", answer_and_promote)
    assert check_health(file) == GOOD
    assert file.read().promoted == "v1.1.0"


@pytest.mark.parametrize("begins", [True, False])
def test_version_whose_change_begins_or_ends_during_the_check_is_no_finding(
    file: RegistryFile, server: PretendedServer, monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    answer, change = server.answer, ExitStack()

    def answer_and_change(method: str, path: str, query: str) -> tuple[int, object]:
        before = answer(method, path, query)
        if path.endswith("/all"):
            if begins:
                change.enter_context(intent(file, "retire", "v1.1.0"))
            else:
                change.close()
        return before

    if not begins:
        change.enter_context(intent(file, "retire", "v1.1.0"))
    server.workers["v1.1.0"] = []
    monkeypatch.setattr(server, "answer", answer_and_change)
    with change:
        assert check_health(file) == GOOD
