"""Deciding for a whole batch in one go is a shortcut: it must give, bit for bit, what each request gets by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carla_policy.batch import Request
from carla_policy.deciding import Decider
from carla_policy.loading import LoadedPolicy
from carla_policy.service import PolicyService
from carla_policy_tools.artifact import load_artifact
from carla_policy_tools.client import request_body
from tests.synthetic import HEADS, make_artifact, observations

ROWS = observations(40, 5, seed=9)
STOP = {"fallback": {"throttle": 0.0, "brake": 1.0, "steer": 0.0}}
ENVELOPES: dict[str, dict[str, Any]] = {
    "plain": STOP,
    "strict": {
        **STOP,
        "speed_cap": {"limit": 20.0, "margin": 5.0, "brake": 0.3},
        "steer_limit": {"speeds": [0.0, 30.0], "limits": [0.5, 0.1]},
        "steer_rate": {"observed": "steering", "full_scale": 1.0, "max_change": 0.2},
        "circuit_breaker": {"failures": 3, "recovery_s": 60.0},
    },
}


@pytest.fixture(scope="module", params=[(head, envelope) for head in HEADS for envelope in ENVELOPES], ids=str)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedPolicy:
    head, envelope = request.param
    artifact = make_artifact(
        tmp_path_factory.mktemp("deciding"), "v1.0.0", head=head, card={"safety": ENVELOPES[envelope]}
    )
    return load_artifact(artifact)


def bodies(service: PolicyService, requests: list[Request]) -> list[dict[str, Any]]:
    answers = service.encode(service.infer(service.parse(requests)))
    return [{**json.loads(answer.body), "timingMs": 0.0, "status": answer.status} for answer in answers]


OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "seed": {"deterministic": False, "seed": 7},
    "log_prob": {"log_prob": True},
}


@settings(max_examples=40)
@given(
    wanted=st.sampled_from([[""], list(OPTIONS)]).flatmap(
        lambda kinds: st.lists(
            st.tuples(st.integers(0, 35), st.integers(1, 4), st.sampled_from(kinds)), min_size=1, max_size=9
        )
    )
)
def test_a_request_is_answered_alike_alone_and_among_others(
    loaded: LoadedPolicy, wanted: list[tuple[int, int, str]]
) -> None:
    requests = [
        Request(json.dumps(request_body(ROWS[start : start + rows]) | OPTIONS[kind]).encode())
        for start, rows, kind in wanted
    ]
    alone = [bodies(PolicyService(loaded), [request])[0] for request in requests]
    assert bodies(PolicyService(loaded), requests) == alone


def test_plain_requests_are_decided_together(loaded: LoadedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above would compare the slow way with itself."""
    expected = bodies(PolicyService(loaded), [Request(json.dumps(request_body(ROWS)).encode())])

    def fail(*_: object) -> None:
        raise AssertionError("decided by itself")

    monkeypatch.setattr(Decider, "decide", fail)
    requests = [Request(json.dumps(request_body(row[None])).encode()) for row in ROWS]
    together = bodies(PolicyService(loaded), requests)
    assert [answer["actions"][0] for answer in together] == expected[0]["actions"]
    noted = [
        (number, note["kind"]) for number, answer in enumerate(together) for note in answer.get("interventions", [])
    ]
    assert noted == [(note["observation"], note["kind"]) for note in expected[0].get("interventions", [])]


def test_what_fails_together_is_tried_by_itself(
    loaded: LoadedPolicy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [Request(json.dumps(request_body(ROWS[:2])).encode())] * 2
    expected = bodies(PolicyService(loaded), requests)
    monkeypatch.setattr("carla_policy.deciding._shared_out", lambda *_: 1 / 0)
    assert bodies(PolicyService(loaded), requests) == expected
    assert "trying each by itself" in caplog.text
