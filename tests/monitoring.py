"""A real Prometheus with the project's rules in fast motion."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from carla_policy_tools.debian import Program
from carla_policy_tools.monitoring.api import Api
from carla_policy_tools.monitoring.programs import MonitoringError, find_program
from carla_policy_tools.monitoring.running import Prometheus, copy_configuration
from carla_policy_tools.ports import reserved_port

FASTER = 20
"""Windows and waits of the rules are so many times shorter; counts, shares and thresholds are those of the rules."""
PATIENCE_S = 120.0
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\[|offset |for: )(\d+)([smhd])")

Labels = frozenset[tuple[str, str]]


def program(name: str) -> Program:
    """A program of monitoring; the test is skipped where it is not there."""
    try:
        return find_program(name)
    except MonitoringError as error:
        pytest.skip(str(error))


@contextmanager
def fast_prometheus(directory: Path, targets: Mapping[str, str]) -> Iterator[Api]:
    """Prometheus with these targets, in whose configuration nothing but durations and addresses differs."""
    program("prometheus")
    port = reserved_port()
    own = {"prometheus": f"127.0.0.1:{port}"}
    configuration = copy_configuration(directory / "configuration", {**targets, **own})
    configuration.write_text(re.sub(r"(_interval|_timeout): \d+s", r"\1: 1s", configuration.read_text()))
    for rules in (configuration.parent / "rules").iterdir():
        rules.write_text(_DURATION.sub(_shorter, rules.read_text()))
    with Prometheus(configuration, directory, port=port) as running:
        yield Api(running.url)


def firing(api: Api) -> set[tuple[str, str, str]]:
    """Name, severity and version of what fires."""
    return {_alert(alert["labels"]) for alert in api.alerts() if alert["state"] == "firing"}


def ever_fired(api: Api, since: float) -> set[tuple[str, str, str]]:
    """Name, severity and version of what has fired since a time."""
    found = api.query_range('ALERTS{alertstate="firing"}', since, time.time(), 1)
    return {_alert(series.labels) for series in found}


def wait_until_fires(api: Api, *wanted: tuple[str, str, str], timeout_s: float = PATIENCE_S) -> None:
    """Until each of `wanted` has been seen to fire."""
    missing, deadline = set(wanted), time.monotonic() + timeout_s
    while missing:
        missing -= firing(api)
        assert time.monotonic() < deadline, f"{missing} did not fire; pending or firing: {api.alerts()}"
        time.sleep(0.3)


def _alert(labels: Mapping[str, str]) -> tuple[str, str, str]:
    return labels["alertname"], labels["severity"], labels.get("model_version", "")


def _shorter(match: re.Match[str]) -> str:
    seconds = int(match[2]) * _SECONDS[match[3]]
    return f"{match[1]}{round(seconds * 1000 / FASTER)}ms"
