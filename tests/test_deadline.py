"""Deadlines: an answer that comes too late is the safe action, and a network that hangs holds nobody up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from carla_policy.batch import Request
from carla_policy.deadline import Late, Watch, due
from carla_policy.errors import RequestError
from carla_policy.loading import LoadedPolicy
from carla_policy.service import PolicyService
from carla_policy_tools.client import request_body
from tests.synthetic import observations

ROWS = observations(4, 5)
BODY = json.dumps(request_body(ROWS[:1])).encode()
SAFE = [{"throttle": 0.0, "brake": 1.0, "steer": 0.0}]
LONG = 30.0
"""No test waits for so long; it is for what must not be what ends a wait."""


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Lets networks that hang go on; set at the end of the test in any case."""
    event = threading.Event()
    yield event
    event.set()


def hanging(synthetic: LoadedPolicy, released: threading.Event, **inference: Any) -> LoadedPolicy:
    """The policy, whose network does not come back before `released`."""
    policy = synthetic.policy

    def runtime(features: Any) -> Any:
        released.wait(LONG)
        return policy.runtime(features)

    card = policy.card.model_copy(update={"inference": policy.card.inference.model_copy(update=inference)})
    return replace(synthetic, policy=replace(policy, runtime=runtime, card=card))  # type: ignore[arg-type]


def ask(service: PolicyService, *requests: Request) -> list[tuple[int, Any]]:
    answers = service.encode(service.infer(service.parse(requests or [Request(BODY)])))
    return [(answer.status, json.loads(answer.body)) for answer in answers]


def test_network_that_hangs_is_answered_with_the_safe_action(
    synthetic: LoadedPolicy, released: threading.Event
) -> None:
    service = PolicyService(hanging(synthetic, released, deadline_ms=20.0))
    for _ in range(3):  # also while the first pass hangs still
        ((status, answer),) = ask(service)
        assert (status, answer["actions"]) == (200, SAFE)
        assert answer["interventions"] == [{"observation": 0, "kind": "deadline"}]
    ((status, answer),) = ask(service, Request(b"", resource="healthz"))
    assert (status, answer["type"]) == (500, "INTERNAL")


def test_network_that_comes_back_answers_again(synthetic: LoadedPolicy, released: threading.Event) -> None:
    watch = Watch()
    service = PolicyService(hanging(synthetic, released, deadline_ms=50.0), watch=watch)
    assert ask(service)[0][1]["interventions"][0]["kind"] == "deadline"
    released.set()
    while watch.hangs:
        time.sleep(0.001)
    patient = PolicyService(hanging(synthetic, released, deadline_ms=LONG * 1e3), watch=watch)
    assert ask(patient)[0][1]["actions"] == ask(PolicyService(synthetic))[0][1]["actions"]


def test_card_may_prefer_an_error(synthetic: LoadedPolicy, released: threading.Event) -> None:
    service = PolicyService(hanging(synthetic, released, deadline_ms=20.0, late="reject"))
    ((status, answer),) = ask(service)
    assert (status, answer["type"]) == (504, "DEADLINE_EXCEEDED")


def test_client_s_deadline_holds_without_one_in_the_card(synthetic: LoadedPolicy, released: threading.Event) -> None:
    service = PolicyService(hanging(synthetic, released))
    ((_, answer),) = ask(service, Request(BODY, {"x-policy-deadline-ms": "20"}))
    assert answer["interventions"] == [{"observation": 0, "kind": "deadline"}]


def test_batch_mate_without_a_deadline_gets_the_policy_s_action(synthetic: LoadedPolicy) -> None:
    service = PolicyService(synthetic)
    (_, late), (_, mate) = ask(service, Request(BODY, {"x-policy-deadline-ms": "0.000001"}), Request(BODY))
    assert late["interventions"] == [{"observation": 0, "kind": "deadline"}]
    assert mate["actions"] == ask(service)[0][1]["actions"]
    assert "interventions" not in mate


def test_request_that_became_late_beside_a_batch_mate_without_a_deadline_gets_the_safe_action(
    synthetic: LoadedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, ahead = synthetic.policy, [0.0]
    monkeypatch.setattr(
        "carla_policy.service.time", SimpleNamespace(perf_counter=lambda: time.perf_counter() + ahead[0])
    )

    def runtime(features: Any) -> Any:
        ahead[0] = 2 * LONG
        return policy.runtime(features)

    service = PolicyService(replace(synthetic, policy=replace(policy, runtime=runtime)))  # type: ignore[arg-type]
    (_, late), (_, mate) = ask(service, Request(BODY, {"x-policy-deadline-ms": "30000"}), Request(BODY))
    assert late["interventions"] == [{"observation": 0, "kind": "deadline"}]
    assert "interventions" not in mate


def test_network_that_fails_on_a_batch_and_hangs_on_its_requests_is_answered_with_the_safe_action(
    synthetic: LoadedPolicy, released: threading.Event
) -> None:
    def runtime(features: Any) -> Any:
        if len(features) > 1:
            raise RuntimeError("CUDA error")
        released.wait(LONG)
        return synthetic.policy.runtime(features)

    loaded = hanging(synthetic, released, deadline_ms=500.0)
    service = PolicyService(replace(loaded, policy=replace(loaded.policy, runtime=runtime)))  # type: ignore[arg-type]
    for _, answer in ask(service, Request(BODY), Request(BODY)):
        assert answer["interventions"] == [{"observation": 0, "kind": "deadline"}]


def test_deadline_that_is_kept_changes_nothing(synthetic: LoadedPolicy) -> None:
    service = PolicyService(synthetic)
    ((_, answer),) = ask(service, Request(BODY, {"x-policy-deadline-ms": "60000"}))
    assert answer["actions"] == ask(service)[0][1]["actions"]


def test_time_in_the_queue_counts(synthetic: LoadedPolicy) -> None:
    old = f"t={int(time.time() * 1e3) - 5_000}"
    ((_, answer),) = ask(
        PolicyService(synthetic), Request(BODY, {"x-policy-deadline-ms": "4000", "x-request-start": old})
    )
    assert answer["interventions"] == [{"observation": 0, "kind": "deadline"}]


@pytest.mark.parametrize("start", ["", "t=x", "t=9999999999999", "t=1000000000000", "1700000000000", "t=-1"])
def test_start_that_cannot_be_is_not_believed(start: str) -> None:
    assert due({"x-policy-deadline-ms": "100", "x-request-start": start}, None, 5.0) == pytest.approx(5.1)


def test_shorter_of_card_s_and_client_s_deadline_holds() -> None:
    assert due({}, None, 5.0) is None
    assert due({}, 200.0, 5.0) == pytest.approx(5.2)
    assert due({"x-policy-deadline-ms": "100"}, 200.0, 5.0) == pytest.approx(5.1)
    assert due({"x-policy-deadline-ms": "300"}, 200.0, 5.0) == pytest.approx(5.2)


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "1e3", "60001", "0x10", "1_0", "\u0661", "0" * 5000])
def test_deadline_that_is_none_is_named(text: str) -> None:
    with pytest.raises(RequestError, match="x-policy-deadline-ms: expected milliseconds") as caught:
        due({"x-policy-deadline-ms": text}, None, 0.0)
    assert caught.value.type == "INVALID_OPTION"
    assert len(str(caught.value)) < 200


def test_work_that_hangs_for_good_is_reported_once(released: threading.Event) -> None:
    reported = threading.Event()
    watch = Watch(on_hang=reported.set, hang_s=0.01)
    with pytest.raises(Late):
        watch.run(lambda: released.wait(LONG), 0.01)
    assert reported.wait(LONG)
    with pytest.raises(Late):
        watch.run(lambda: None, LONG)


def test_work_that_is_only_slow_is_not_reported(released: threading.Event) -> None:
    reported = threading.Event()
    watch = Watch(on_hang=reported.set, hang_s=LONG)
    with pytest.raises(Late):
        watch.run(lambda: released.wait(LONG), 0.01)
    released.set()
    while watch.hangs:
        time.sleep(0.001)
    assert watch.run(lambda: 7, LONG) == 7
    assert not reported.is_set()


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
def test_work_that_has_no_time_left_is_not_begun(timeout_s: float) -> None:
    watch = Watch()
    with pytest.raises(Late):
        watch.run(lambda: None, timeout_s)
    assert not watch.hangs


def test_what_work_raises_is_raised() -> None:
    watch = Watch()
    with pytest.raises(ZeroDivisionError):
        watch.run(lambda: 1 / 0, LONG)
    assert watch.run(lambda: 7, LONG) == 7
