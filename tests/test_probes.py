"""The probes answer with what was found last, at once, and never with what is too old to be true."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from carla_policy_tools.lifecycle import probes as probes_module
from carla_policy_tools.lifecycle.health import Health
from carla_policy_tools.lifecycle.probes import Probes
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.ports import choose_ports

GOOD = Health(True, ())
ROUTES = ("/livez", "/readyz", "/startupz")


class Probed:
    """Probes whose findings a test decides."""

    def __init__(self, file: RegistryFile, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: Health | Exception = Health(False, ("nothing yet",))
        self.may_check = threading.Event()
        self.may_check.set()
        self.check_s = 0.0
        self.checks = 0
        monkeypatch.setattr(probes_module, "check_health", self._check)
        monkeypatch.setattr(probes_module, "INTERVAL_S", 0.005)
        self._file = file
        self._url = ""

    def _check(self, _: RegistryFile) -> Health:
        self.may_check.wait(30)
        time.sleep(self.check_s)
        self.checks += 1
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    @contextmanager
    def running(self) -> Iterator[Probes]:
        port = choose_ports(0).health
        self._url = f"http://127.0.0.1:{port}"
        try:
            with Probes(self._file, port) as probes:
                yield probes
                self.may_check.set()
        finally:
            self.may_check.set()

    def ask(self, path: str) -> requests.Response:
        return requests.get(f"{self._url}{path}", timeout=30)

    def statuses(self) -> list[int]:
        return [self.ask(path).status_code for path in ROUTES]

    def find(self, found: Health | Exception) -> None:
        """Return when a check that began afterwards has ended."""
        self.found = found
        enough = self.checks + 3
        until(lambda: self.checks >= enough)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Probed:
    return Probed(RegistryFile.of(tmp_path), monkeypatch)


def test_probes_are_red_before_the_first_check(probed: Probed) -> None:
    probed.may_check.clear()
    probed.found = GOOD
    with probed.running():
        assert probed.statuses() == [503, 503, 503]
        assert probed.ask("/readyz").json() == {"status": "failing", "alive": False, "findings": ["not checked yet"]}


def test_healthy_server_is_green_everywhere(probed: Probed) -> None:
    with probed.running():
        probed.find(GOOD)
        assert probed.statuses() == [200, 200, 200]
        answer = probed.ask("/readyz")
        assert answer.json() == {"status": "ok", "alive": True, "findings": []}
        assert answer.headers["Content-Type"] == "application/json"


def test_server_that_answers_but_not_everything_is_alive_and_not_ready(probed: Probed) -> None:
    with probed.running():
        probed.find(Health(True, ("v1.0.0: 0 of 1 workers ready",)))
        assert probed.statuses() == [200, 503, 503]
        assert probed.ask("/livez?verbose").json()["findings"] == ["v1.0.0: 0 of 1 workers ready"]


def test_started_server_stays_started(probed: Probed) -> None:
    with probed.running():
        probed.find(GOOD)
        probed.find(Health(False, ("the server does not answer",)))
        assert probed.statuses() == [503, 503, 200]
        probed.find(GOOD)
        assert probed.statuses() == [200, 200, 200]


def test_finding_that_is_too_old_is_red(probed: Probed, monkeypatch: pytest.MonkeyPatch) -> None:
    with probed.running():
        probed.find(GOOD)
        probed.may_check.clear()
        monkeypatch.setattr(probes_module, "MAX_AGE_S", 0.0)
        assert probed.statuses()[:2] == [503, 503]
        assert probed.ask("/readyz").json()["findings"][0].startswith("health is not known since 0.")


def test_check_that_takes_longer_than_its_finding_may_be_old_is_never_green(
    probed: Probed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes_module, "MAX_AGE_S", 0.05)
    probed.found, probed.check_s = GOOD, 0.1
    statuses = set()
    with probed.running() as probes:
        while probed.checks < 4:
            statuses.add(probes.answer("/readyz")[0])
            time.sleep(0.001)
    assert statuses == {503}


@pytest.mark.parametrize("error", [OSError("disk"), KeyError("workers"), RuntimeError("unforeseen")])
def test_check_that_fails_is_a_finding_and_not_the_last_check(probed: Probed, error: Exception) -> None:
    with probed.running():
        probed.find(GOOD)
        probed.find(error)
        assert probed.statuses() == [503, 503, 200]
        assert probed.ask("/readyz").json()["findings"] == [f"health cannot be found out: {error!r}"]
        probed.find(GOOD)
        assert probed.statuses() == [200, 200, 200]


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz/", "/livez/x"])
def test_other_paths_are_not_found(probed: Probed, path: str) -> None:
    with probed.running():
        probed.find(GOOD)
        answer = probed.ask(path)
        assert (answer.status_code, answer.json()) == (
            404,
            {"message": "there are /livez, /readyz, /startupz and /metrics"},
        )


def test_other_methods_are_refused(probed: Probed) -> None:
    with probed.running():
        assert requests.post(f"{probed._url}/readyz", timeout=30).status_code == 501


def test_probes_are_answered_at_once_also_while_a_check_hangs(probed: Probed) -> None:
    with probed.running():
        probed.find(GOOD)
        probed.may_check.clear()
        with ThreadPoolExecutor(16) as pool:
            statuses = list(pool.map(lambda _: probed.ask("/startupz").status_code, range(200)))
        assert statuses == [200] * 200


def test_client_that_says_nothing_does_not_keep_others_from_an_answer(probed: Probed) -> None:
    with probed.running():
        probed.find(GOOD)
        with socket.create_connection(("127.0.0.1", int(probed._url.rpartition(":")[2]))):
            assert requests.get(f"{probed._url}/readyz", timeout=5).status_code == 200


def test_port_is_free_after_the_probes_have_ended(probed: Probed) -> None:
    with probed.running():
        url = probed._url
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/livez", timeout=30)
    assert {"health", "probes"}.isdisjoint(thread.name for thread in threading.enumerate())
