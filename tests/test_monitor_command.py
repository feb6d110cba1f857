"""`make monitor`: Prometheus and Alertmanager beside a server, for a person without containers."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml

from carla_policy_tools.addresses import listening_socket
from carla_policy_tools.monitoring import running
from carla_policy_tools.monitoring.api import Api, QueryError
from carla_policy_tools.monitoring.programs import MonitoringError, find_program
from carla_policy_tools.paths import CONFIG
from carla_policy_tools.ports import reserved_port
from tests.monitoring import PATIENCE_S, program


def until(happens: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := happens()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def test_it_starts_both_and_leaves_nothing_behind(tmp_path: Path) -> None:
    program("prometheus")
    nobody = f"127.0.0.1:{reserved_port()}"
    options = ["--metrics", nobody, "--health", nobody, "--port", "0", "--alertmanager-port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "carla_policy_tools.monitoring", *options, "--data", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        hints = [process.stdout.readline() for _ in range(2)]
        assert all("start the server" in hint for hint in hints)
        prometheus, alertmanager = re.findall(r"http://[\w.:]+", process.stdout.readline())
        assert [
            requests.get(f"{url}{page}", timeout=10).status_code
            for url, page in ((prometheus, "/graph"), (alertmanager, "/"))
        ] == [200, 200]
        api = Api(prometheus)
        until(
            lambda: requests.get(f"{prometheus}/api/v1/alertmanagers", timeout=10).json()["data"]["activeAlertmanagers"]
        )
        targets = until(lambda: (found := api.targets()) and all(one["lastError"] for one in found[:2]) and found)
        assert {target["scrapePool"] for target in targets} == {"carla-policy", "carla-policy-server", "prometheus"}
        assert len(api.rules()) > 50
        children = psutil.Process(process.pid).children(recursive=True)
        assert {"prometheus", "prometheus-alert"} <= {child.name()[:16] for child in children}
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    assert not [child for child in children if child.is_running()]


def test_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    from carla_policy_tools.monitoring.__main__ import main

    with listening_socket("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert f"error: port {port} on 127.0.0.1 cannot be used" in capsys.readouterr().err


def test_copied_configuration_differs_in_addresses_only(tmp_path: Path) -> None:
    source = CONFIG / "prometheus"
    copy = running.copy_configuration(tmp_path, {"carla-policy": "a:1"})
    assert copy.read_text() == (source / "prometheus.yml").read_text()
    for rules in (source / "rules").iterdir():
        assert (tmp_path / "rules" / rules.name).read_text() == rules.read_text()
    found = {file.stem: yaml.safe_load(file.read_text()) for file in (tmp_path / "targets").iterdir()}
    assert found.pop("carla-policy") == [{"targets": ["a:1"]}]
    assert set(found) == {file.stem for file in (source / "targets").iterdir()} - {"carla-policy"}
    assert all(targets == [] for targets in found.values())


def test_program_that_ends_at_once_tells_why(tmp_path: Path) -> None:
    program("prometheus")
    (tmp_path / "broken.yml").write_text("global: 5\n")
    with (
        pytest.raises(MonitoringError, match=r"prometheus has ended:\n(.*\n)*.*cannot unmarshal"),
        running.Prometheus(tmp_path / "broken.yml", tmp_path, port=reserved_port()),
    ):
        pass


def test_program_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("carla_policy_tools.monitoring.programs.BUILD", tmp_path)
    with pytest.raises(MonitoringError, match=r"promtool is not on the PATH .*: run `make monitoring`"):
        find_program("promtool")


def test_prometheus_that_does_not_answer_is_named() -> None:
    url = f"http://127.0.0.1:{reserved_port()}"
    with pytest.raises(QueryError, match=f"{url} does not answer"):
        Api(url).query("up")
