"""What a worker tells of the requests of a batch, and how often."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from carla_policy.batch import Request
from carla_policy.breaker import CircuitBreaker
from carla_policy.events import JsonFormatter
from carla_policy.loading import LoadedPolicy
from carla_policy.request_events import ACCESS_VARIABLE, RequestEvents, access_rate
from carla_policy.service import PolicyService
from carla_policy.specs import CircuitBreaker as CircuitBreakerSpec
from carla_policy.wire import JsonReader
from carla_policy_tools.client import request_body
from tests.synthetic import observations

GOOD = json.dumps(request_body(observations(2, 5, seed=5))).encode()


class Told(logging.Handler):
    """The events of the service's own loggers."""

    def __init__(self) -> None:
        super().__init__()
        self.formatter = JsonFormatter()
        self.formatter.quotes_exceptions = False
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def __call__(self, name: str) -> list[dict[str, Any]]:
        return [event for event in map(json.loads, self.lines) if event["event"] == name]


@pytest.fixture
def told() -> Iterator[Told]:
    handler, logger = Told(), logging.getLogger("carla_policy")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


class Worker:
    """A service whose requests are told of, by a clock that a test sets."""

    def __init__(self, loaded: LoadedPolicy, access_per_s: float = 0.0) -> None:
        self.now = 1e9
        self.service = PolicyService(loaded)
        self.events = RequestEvents(access_per_s, clock=lambda: self.now)

    def ask(self, *bodies: bytes, headers: Mapping[str, str] | None = None) -> None:
        requests = [Request(body, headers or {}, request_id=f"id-{index}") for index, body in enumerate(bodies)]
        batch = self.service.infer(self.service.parse(requests))
        answers = self.service.encode(batch)
        self.events.note(replace(batch, started=self.now), answers)


def broken(loaded: LoadedPolicy, raised: Exception | None = None) -> LoadedPolicy:
    """The policy with a network that yields NaN, or raises."""

    class Network:
        device = "cpu"

        def __call__(self, features: Any) -> Any:
            if raised:
                raise raised
            return {name: values * np.nan for name, values in loaded.policy.runtime(features).items()}

    return replace(loaded, policy=replace(loaded.policy, runtime=Network()))


def test_plain_answer_is_told_only_when_an_access_event_is_due(synthetic: LoadedPolicy, told: Told) -> None:
    worker = Worker(synthetic, access_per_s=0.5)
    for _ in range(10):
        worker.ask(GOOD, GOOD)
        worker.now += 0.5
    accesses = told("access")
    assert [event["answered"] for event in accesses] == [2, 8, 8]
    assert [event["batch"] for event in accesses] == [2, 2, 2]
    assert len(told.lines) == 3


def test_without_a_rate_no_access_is_told(synthetic: LoadedPolicy, told: Told) -> None:
    worker = Worker(synthetic, access_per_s=0.0)
    worker.ask(GOOD)
    assert told.lines == []


def test_access_event_is_of_a_prediction_and_not_of_a_probe(synthetic: LoadedPolicy, told: Told) -> None:
    worker = Worker(synthetic, access_per_s=1.0)
    request = Request(b"", resource="healthz", request_id="probe")
    batch = worker.service.infer(worker.service.parse([request]))
    worker.events.note(replace(batch, started=worker.now), worker.service.encode(batch))
    worker.ask(GOOD)
    assert [event["request_id"] for event in told("access")] == ["id-0"]


def test_refused_request_is_told_by_its_kind_and_not_by_what_it_said(synthetic: LoadedPolicy, told: Told) -> None:
    Worker(synthetic).ask(GOOD, b'{"canary": 1}', headers={"authorization": "canary"})
    (event,) = told("request_error")
    assert (event["request_id"], event["status"], event["error_type"]) == ("id-1", 422, "SCHEMA")
    assert set(event["findings"]) <= {"extra_forbidden", "missing"}
    assert "canary" not in "".join(told.lines)


def test_refusals_beyond_the_rate_are_counted_and_told_later(synthetic: LoadedPolicy, told: Told) -> None:
    worker = Worker(synthetic)
    for _ in range(100):
        worker.ask(b"{")
    assert len(told("request_error")) == 10
    worker.now += 2.0
    worker.ask(GOOD)
    (summary,) = told("suppressed")
    assert summary["suppressed_before"] == 90


def test_fault_of_the_service_is_told_with_its_place_and_the_request_s_id(
    synthetic: LoadedPolicy, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("canary")

    monkeypatch.setattr(JsonReader, "draft", fail)
    worker = Worker(synthetic)
    for _ in range(30):
        worker.ask(GOOD)
    assert len(told("request_error")) == 30
    event = told("request_error")[0]
    assert (event["level"], event["status"], event["error_type"]) == ("ERROR", 500, "INTERNAL")
    assert (event["request_id"], event["error"]["type"]) == ("id-0", "KeyError")
    assert event["error"]["stack"][-1].startswith("tests/test_request_events.py:")
    assert "canary" not in "".join(told.lines)


def test_request_that_cannot_be_told_of_is_answered_all_the_same(
    synthetic: LoadedPolicy, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RequestEvents, "_tell_error", lambda *_: 1 / 0)
    Worker(synthetic).ask(b"{")
    assert json.loads(told.lines[0])["error"]["type"] == "ZeroDivisionError"


def test_interventions_are_added_up_between_events(synthetic: LoadedPolicy, told: Told) -> None:
    worker = Worker(broken(synthetic))
    for _ in range(10):
        worker.ask(GOOD)
    worker.now += 5.0
    worker.ask(GOOD)
    events = told("intervention")
    assert [event["kinds"] for event in events] == [{"fallback": 2}] * 3 + [{"fallback": 16}]
    assert events[0]["request_id"] == "id-0"


def test_network_s_failure_is_told_without_a_request_s_values(synthetic: LoadedPolicy, told: Told) -> None:
    Worker(broken(synthetic, RuntimeError("shapes (1x7 and 5x2), row [0.25, 1e-3]"))).ask(GOOD)
    events = told("network_failed")
    assert {event["error"]["message"] for event in events} == {"shapes (1x7 and 5x2), row [#, #]"}
    assert told("intervention")[0]["kinds"] == {"fallback": 2}


def test_breaker_tells_of_each_change_and_of_nothing_else() -> None:
    now, changes = [0.0], []
    breaker = CircuitBreaker(
        CircuitBreakerSpec(failures=2, recovery_s=10.0), lambda: now[0], lambda *states: changes.append(states)
    )
    for failed in (False, True, False, True, True, True):
        breaker.record(failed)
    now[0] = 10.0
    breaker.record(failed=True)
    now[0] = 20.0
    breaker.record(failed=False)
    breaker.record(failed=False)
    assert changes == [("closed", "open"), ("half_open", "open"), ("half_open", "closed")]


@pytest.mark.parametrize(
    ("text", "rate"), [(None, 1.0), ("0", 0.0), ("0.1", 0.1), ("1e9", 1000.0), ("-1", 1.0), ("nan", 1.0), ("x", 1.0)]
)
def test_rate_of_access_events_is_the_environment_s_if_it_is_one(
    monkeypatch: pytest.MonkeyPatch, text: str | None, rate: float
) -> None:
    monkeypatch.delenv(ACCESS_VARIABLE, raising=False)
    if text is not None:
        monkeypatch.setenv(ACCESS_VARIABLE, text)
    assert access_rate() == rate
