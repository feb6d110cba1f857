"""A real server, a real Prometheus with the project's rules, and incidents: who should fire does, and nobody else.

Alerts that need minutes of a slow or crowded machine are left to promtool (`test_alert_rules.py`), since time decides
them. The dashboards' queries are asked of the same Prometheus.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
import torch

from carla_policy_tools.build import build
from carla_policy_tools.client import request_body
from carla_policy_tools.monitoring.api import Api
from carla_policy_tools.monitoring.dashboards import DIRECTORY, panel_queries
from carla_policy_tools.monitoring.picture import draw
from carla_policy_tools.paths import ARTIFACTS
from tests.monitoring import ever_fired, fast_prometheus, firing, program, wait_until_fires
from tests.servers import ServeProcess
from tests.synthetic import Network, make_artifact, observations

GOOD, PLAIN, BROKEN, TABLE = "v0.3.0", "v9.0.0", "v9.1.0", "v9.2.0"
SENSORS = 5
PAUSE_S = 0.25
"""Between rounds of traffic: with fewer than twenty requests a second no version has enough for alerts on latency."""
DECIDED_BY_THE_MACHINE = {
    "PolicyQueueSlow",
    "PolicyQueueFilling",
    "PolicyScrapeDown",
    "PolicyServerAbsent",
    "PolicyServerNotReady",
    "PolicyWorkerDown",
}
"""What a machine with more to do than it can may cause by itself."""

NO_HEADERS: Mapping[str, str] = {}

Alert = tuple[str, str, str]
Send = Callable[[], Any]


class FailsAtSpeed(Network):
    """Yields NaN for observations faster than any in training."""

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, log_std = super().forward(features)
        return torch.where(features[:, :1] > 3.0, torch.full_like(mean, torch.nan), mean), log_std


@pytest.fixture(scope="module")
def incident_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped version, a plain one, one that fails at speed, and one that chooses from a table."""
    program("prometheus")
    root = tmp_path_factory.mktemp("incidents")
    fallback = {"throttle": 0.0, "brake": 1.0, "steer": 0.0}
    breaker = {"fallback": fallback, "circuit_breaker": {"failures": 3, "recovery_s": 20.0}}
    artifacts = [
        ARTIFACTS / GOOD,
        make_artifact(root, PLAIN),
        make_artifact(
            root,
            BROKEN,
            network=FailsAtSpeed(2 + SENSORS, 2),
            card={"safety": breaker, "inference": {"late": "reject"}},
        ),
        make_artifact(
            root, TABLE, head="categorical", card={"performance_metrics": {"mean_return": 400.0, "std_return": 60.0}}
        ),
    ]
    for artifact in artifacts:
        build(artifact, root / "store")
    return root / "store"


@pytest.fixture(scope="module")
def watched(incident_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server that Prometheus watches."""
    with ServeProcess(incident_store) as server:
        targets = {
            "carla-policy": urlsplit(server.ready["metrics"]).netloc,
            "carla-policy-server": urlsplit(server.ready["health"]).netloc,
        }
        with fast_prometheus(tmp_path_factory.mktemp("prometheus"), targets) as api:
            yield SimpleNamespace(server=server, api=api, since=time.time())


def test_a_day_of_a_server(watched: SimpleNamespace, tmp_path: Path) -> None:
    """One story, since what fires later depends on what was before: rest, good traffic, incidents, and the end."""
    server, api = watched.server, watched.api
    golden = np.load(ARTIFACTS / GOOD / "golden.npz")["observations"]
    usual = [
        predict(server, GOOD, golden, stochastic_seed=7),
        *(predict(server, version, observations(512, SENSORS)) for version in (PLAIN, BROKEN)),
        predict(server, TABLE, observations(16, SENSORS)),
        *(report(server, version, value, 500) for version, value in ((GOOD, 420.0), (TABLE, 405.0))),
    ]
    settle(api)
    assert not ever_fired_but_for_load(api, watched.since), "at rest"

    with traffic(usual):
        wait_for_rows(api, GOOD, 20_000)
        time.sleep(5)
        assert not ever_fired_but_for_load(api, watched.since), "with good traffic"

    began = time.time()
    strange = np.random.default_rng(0).uniform(golden.min(axis=0), golden.max(axis=0), (64, golden.shape[1]))
    fast, one = observations(4, SENSORS), np.repeat(observations(1, SENSORS), 2000, axis=0)
    fast[:, 0] = 59.0
    incidents = [
        predict(server, GOOD, strange.astype(np.float32)),
        predict(server, BROKEN, fast),
        predict(server, PLAIN, one),
        *(lambda: server.post(PLAIN, b"{") for _ in range(2)),
        predict(server, BROKEN, observations(1, SENSORS), headers={"x-policy-deadline-ms": "0.001"}),
        report(server, TABLE, 90.0, 60),
        report(server, TABLE, 110.0, 80),
    ]
    expected: set[Alert] = {
        ("PolicyOutOfDistribution", "warning", GOOD),
        ("PolicyUnusableAction", "warning", BROKEN),
        ("PolicyFallback", "critical", BROKEN),
        ("PolicyCircuitOpen", "critical", BROKEN),
        ("PolicyErrors", "critical", BROKEN),
        ("PolicyServerErrors", "critical", ""),
        ("PolicyRequestsRefused", "warning", PLAIN),
        ("PolicyActionDrift", "warning", PLAIN),
        ("PolicyActionDrift", "critical", PLAIN),
        ("PolicyReturnDegraded", "warning", TABLE),
        ("PolicyReturnDegraded", "critical", TABLE),
    }
    with traffic([*usual, *incidents]):
        wait_until_fires(api, *expected)
        assert requests.put(f"{server.ready['management']}/models/carla_policy/{PLAIN}/set-default", timeout=10).ok
        expected |= {("PolicyWrongDefault", "critical", promoted_version(api)), ("PolicyRegistryDrift", "warning", "")}
        wait_until_fires(api, *expected)
        texts = [text for alert in api.alerts() for text in alert["annotations"].values()]
        assert not [text for text in texts if "{{" in text or "<" in text], "a template was not filled in"
        for path in sorted(DIRECTORY.glob("*.json")):
            check_panels(api, json.loads(path.read_text()))
            draw(api, json.loads(path.read_text()), tmp_path / f"{path.stem}.png", last_s=time.time() - watched.since)
            assert (tmp_path / f"{path.stem}.png").stat().st_size > 10_000
        kill_workers_until(api, server, PLAIN, ("PolicyWorkerDown", "critical", PLAIN))
    # Strange observations and the safe action change what the vehicles do, which is drift as well.
    consequences = {("PolicyActionDrift", "critical", version) for version in (GOOD, BROKEN)}
    assert ever_fired_but_for_load(api, began) <= moderate_too(expected | consequences)

    wait_until_fires(api, ("PolicyNoTraffic", "warning", ""))
    server.stop()
    wait_until_fires(api, ("PolicyScrapeDown", "critical", ""), ("PolicyServerAbsent", "critical", ""))
    broken_rules = [rule for rule in api.rules() if rule["health"] == "err"]
    assert not broken_rules


def promoted_version(api: Api) -> str:
    (promoted,) = api.query("policy_version_promoted == 1")
    return promoted.labels["model_version"]


def moderate_too(expected: set[Alert]) -> set[Alert]:
    """On its way to where it becomes critical, an alert may be a warning."""
    return expected | {(name, "warning", version) for name, _, version in expected}


def ever_fired_but_for_load(api: Api, since: float) -> set[Alert]:
    return {alert for alert in ever_fired(api, since) if alert[0] not in DECIDED_BY_THE_MACHINE}


def predict(
    server: ServeProcess,
    version: str,
    rows: Any,
    *,
    stochastic_seed: int | None = None,
    headers: Mapping[str, str] = NO_HEADERS,
) -> Send:
    """Ask for all `rows`; with a seed, for some stochastic actions too. It says when it was sent, as proxies do."""
    bodies = [json.dumps(request_body(rows)).encode()]
    if stochastic_seed is not None:
        bodies.append(json.dumps(request_body(rows[:4], deterministic=False, seed=stochastic_seed)).encode())

    def send() -> None:
        for body in bodies:
            server.post(version, body, **{"x-request-start": f"t={time.time() * 1e3:.0f}", **headers})

    return send


def report(server: ServeProcess, version: str, value: float, length: int) -> Send:
    url = f"{server.base}/predictions/carla_policy/{version}/episodes"
    return lambda: requests.post(url, json={"return": value, "length": length}, timeout=30)


@contextmanager
def traffic(sends: list[Send]) -> Iterator[None]:
    """Each of `sends`, again and again, from a thread of its own."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(PAUSE_S):
            for send in sends:
                with suppress(requests.RequestException):
                    send()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def settle(api: Api) -> None:
    """Until everything is scraped and evaluated, for longer than a rule waits at a start."""
    deadline = time.monotonic() + 60
    while len(api.query("policy_version_declared")) < 4 or not api.query("model_version:policy_requests:increase5m"):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    time.sleep(5)
    assert {target["health"] for target in api.targets()} == {"up"}


def wait_for_rows(api: Api, version: str, rows: float) -> None:
    deadline = time.monotonic() + 120
    query = f'sum(policy_rows_total{{model_version="{version}"}})'
    while not (found := api.query(query)) or found[0].values[-1] < rows:
        assert time.monotonic() < deadline, found
        time.sleep(0.3)


def check_panels(api: Api, dashboard: dict[str, Any]) -> None:
    """Every query of every panel returns something, and so does every variable."""
    variables = {"model_version": ".*", "control": "steer", "datasource": "Prometheus"}
    empty = [
        (panel["title"], expression)
        for panel, expressions in panel_queries(dashboard, variables)
        for expression in expressions
        if not any(np.isfinite(series.values[-1]) for series in api.query(expression))
    ]
    assert not empty
    assert api.label_values("model_version", 'policy_selftest_vectors{model_name="carla_policy"}') == [
        GOOD,
        PLAIN,
        BROKEN,
        TABLE,
    ]


def kill_workers_until(api: Api, server: ServeProcess, version: str, alert: Alert) -> None:
    deadline = time.monotonic() + 120
    while alert not in firing(api):
        assert time.monotonic() < deadline, api.alerts()
        with suppress(requests.RequestException, ValueError, KeyError):
            pid = server.get(version, "metadata").json()["workerPid"]
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
