"""Time that a request waited in the server's queue counts for its deadline, where a proxy in front has noted it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import requests

from carla_policy_tools.build import build
from carla_policy_tools.client import request_body
from carla_policy_tools.routing.haproxy import ProxyError, find_haproxy
from carla_policy_tools.routing.proxy import Proxy
from carla_policy_tools.routing.routes import Routes
from carla_policy_tools.urls import prediction_url
from tests.servers import ServeProcess
from tests.synthetic import make_artifact, observations

try:
    find_haproxy()
except ProxyError as error:
    pytest.skip(str(error), allow_module_level=True)

SAFE, STRICT = "v1.0.0", "v1.1.0"
"""What answers late requests with the safe action, and what refuses them."""
BODY = request_body(observations(1, 5))
WAIT_S = 1.2
SHORT, LONG = "1000", "60000"
"""Deadlines of milliseconds that waiting exceeds, however slow the machine, and that it cannot."""
LATE = [{"observation": 0, "kind": "deadline"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    root = tmp_path_factory.mktemp("queued")
    build(make_artifact(root, SAFE), root / "store")
    build(make_artifact(root, STRICT, card={"inference": {"late": "reject"}}), root / "store")
    with ServeProcess(root / "store") as process:
        yield process


@pytest.fixture(scope="module")
def url(served: ServeProcess) -> Iterator[str]:
    """The real proxy's."""
    with Proxy(served.base, Routes(STRICT)) as proxy:
        yield proxy.url


def ask_after_waiting(
    served: ServeProcess, url: str, version: str, *headers: dict[str, str]
) -> list[tuple[int, dict[str, Any]]]:
    """Answers to one request with each of `headers`, all of which wait while the version's only worker is stopped."""
    worker = psutil.Process(served.get(version, "metadata").json()["workerPid"])

    def ask(own: dict[str, str]) -> tuple[int, dict[str, Any]]:
        data, named = json.dumps(BODY).encode(), {"Content-Type": "application/json", **own}
        answer = requests.post(prediction_url(url, version), data=data, headers=named, timeout=30)
        return answer.status_code, answer.json()

    worker.suspend()
    try:
        with ThreadPoolExecutor(len(headers)) as pool:
            asked = [pool.submit(ask, own) for own in headers]
            time.sleep(WAIT_S)
            worker.resume()
            return [answer.result() for answer in asked]
    finally:
        worker.resume()


def test_request_that_waited_too_long_gets_the_safe_action_and_one_in_time_does_not(
    served: ServeProcess, url: str
) -> None:
    short, long, none = ask_after_waiting(
        served, url, SAFE, {"x-policy-deadline-ms": SHORT}, {"x-policy-deadline-ms": LONG}, {}
    )
    assert (short[0], short[1]["interventions"]) == (200, LATE)
    assert short[1]["actions"] == [{"throttle": 0.0, "brake": 1.0, "steer": 0.0}]
    for status, answer in (long, none):
        assert (status, answer.get("interventions")) == (200, None)


def test_request_that_waited_too_long_is_refused_where_the_card_says_so(served: ServeProcess, url: str) -> None:
    short, long = ask_after_waiting(
        served, url, STRICT, {"x-policy-deadline-ms": SHORT}, {"x-policy-deadline-ms": LONG}
    )
    assert (short[0], short[1]["type"]) == (504, "DEADLINE_EXCEEDED")
    assert long[0] == 200


def test_client_s_own_start_is_not_believed_through_the_proxy(served: ServeProcess, url: str) -> None:
    """Neither one in the past, which costs it the answer, nor one in the future, which keeps waiting from counting."""
    now = time.time()
    past, future = ({"x-request-start": f"t={int((now + shift) * 1e3)}"} for shift in (-50, 50))
    old, early = ask_after_waiting(
        served, url, SAFE, {"x-policy-deadline-ms": "40000", **past}, {"x-policy-deadline-ms": SHORT, **future}
    )
    assert old[1].get("interventions") is None
    assert early[1]["interventions"] == LATE
