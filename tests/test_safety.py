"""The safety envelope: whatever comes, what leaves can be driven, and whatever was changed is reported."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from carla_policy.batch import Request
from carla_policy.breaker import CircuitBreaker
from carla_policy.loading import LoadedPolicy
from carla_policy.safety import SafetyEnvelope
from carla_policy.service import PolicyService
from carla_policy.specs import CircuitBreaker as CircuitBreakerSpec
from carla_policy.specs import Controls, SafetySpec, SpeedCap, SteerLimit, SteerRate, ThrottleRate
from carla_policy_tools.client import request_body
from tests.synthetic import observations

COLUMNS = ("speed", "steering", "pedal")
ROWS = 4
KINDS = ("fallback", "ood", "bounds", "speed_cap", "pedals", "throttle_rate", "steer_limit", "steer_rate")
NUMBERS = st.floats(-1.5, 1.5, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0]) | st.floats(width=32)
SCALE = st.floats(0.015625, 100.0)
SHARE = st.floats(0.0, 1.0)
LIMITS = st.lists(st.tuples(st.floats(0.0, 60.0), SHARE), min_size=1, max_size=4, unique_by=lambda pair: pair[0])
CURVES = LIMITS.map(sorted).map(lambda pairs: dict(zip(("speeds", "limits"), zip(*pairs, strict=True), strict=True)))
RISES = st.builds(ThrottleRate, max_rise=st.floats(0.001, 1.0), observed=st.just("pedal"), full_scale=SCALE)
SPECS = st.builds(
    SafetySpec,
    fallback=st.builds(Controls, throttle=st.just(0.0), brake=SHARE, steer=st.floats(-1.0, 1.0)),
    exclusive_pedals=st.booleans(),
    steer_rate=st.none() | st.builds(SteerRate, max_change=st.floats(0.001, 2.0), full_scale=SCALE),
    throttle_rate=st.none() | RISES,
    steer_limit=st.none() | CURVES.map(SteerLimit.model_validate),
    speed_cap=st.none() | st.builds(SpeedCap, limit=st.floats(0.5, 60.0), margin=st.floats(0.0, 10.0), brake=SHARE),
)
CONTROLS = arrays(np.float32, (ROWS, 3), elements=NUMBERS)
SEEN = st.floats(-2, 2, width=32) | st.floats(-100, 100, width=32) | st.floats(-(2.0**120), 2.0**120, width=32)
OBSERVATIONS = arrays(np.float32, (ROWS, 3), elements=SEEN)
FORCED = st.just({}) | arrays(np.bool_, ROWS).map(lambda mask: {"ood": mask})
Case = tuple[SafetySpec, Any, Any, dict[str, Any]]
CASES = st.tuples(SPECS, CONTROLS, OBSERVATIONS, FORCED)
STOP = Controls(throttle=0.0, brake=1.0, steer=0.0)


def kinds_of(notes: Any) -> list[set[str]]:
    return [{note.kind for note in notes if note.observation == row} for row in range(ROWS)]


@settings(max_examples=300)
@given(case=CASES)
def test_whatever_comes_what_leaves_keeps_every_declared_limit(case: Case) -> None:
    spec, controls, seen, forced = case
    out, _ = SafetyEnvelope.of(spec, COLUMNS).apply(controls, seen, forced)
    (throttle, brake, steer), speed = out.T, np.abs(seen[:, 0])
    assert ((out >= [0.0, 0.0, -1.0]) & (out <= 1.0)).all()
    if spec.exclusive_pedals:
        assert not ((throttle > 0) & (brake > 0)).any()
    if cap := spec.speed_cap:
        assert (throttle[speed >= np.float32(cap.limit)] == 0).all()
        assert (brake[speed >= np.float32(cap.limit + cap.margin)] >= np.float32(cap.brake)).all()
    if rise := spec.throttle_rate:
        pedal = np.clip(seen[:, 2] / np.float32(rise.full_scale), 0, 1)
        assert (throttle <= pedal + np.float32(rise.max_rise)).all()
    low, high = -np.ones(ROWS, np.float32), np.ones(ROWS, np.float32)
    if rate := spec.steer_rate:
        present = np.clip(seen[:, 1] / np.float32(rate.full_scale), -1, 1)
        low, high = present - np.float32(rate.max_change), present + np.float32(rate.max_change)
        assert ((steer >= low) & (steer <= high)).all()
    if limit := spec.steer_limit:
        allowed = np.interp(speed, limit.speeds, limit.limits).astype(np.float32)
        beyond = (low > allowed) | (high < -allowed)
        assert (np.abs(steer) <= np.where(beyond, np.minimum(np.abs(low), np.abs(high)), allowed)).all()


@settings(max_examples=300)
@given(case=CASES)
def test_every_change_is_reported_and_nothing_else(case: Case) -> None:
    """A report without a change: only the fallback for one's own action, and a rate that gives back a limit's cut."""
    spec, controls, seen, forced = case
    out, notes = SafetyEnvelope.of(spec, COLUMNS).apply(controls, seen, forced)
    reported, order = kinds_of(notes), [(note.observation, KINDS.index(note.kind)) for note in notes]
    assert order == sorted(set(order))
    for row in range(ROWS):
        wanted = "ood" in forced and bool(forced["ood"][row])
        assert ("ood" in reported[row]) == wanted
        assert ("fallback" in reported[row]) == (not np.isfinite(controls[row]).all())
        changed = (out[row] != controls[row]).any()
        assert reported[row] if changed else wanted or reported[row] in (set(), {"steer_limit", "steer_rate"})


@settings(max_examples=200)
@given(case=CASES)
def test_rows_do_not_influence_each_other(case: Case) -> None:
    spec, controls, seen, forced = case
    envelope = SafetyEnvelope.of(spec, COLUMNS)
    out, notes = envelope.apply(controls, seen, forced)
    for row in range(ROWS):
        mask = {kind: flags[row : row + 1] for kind, flags in forced.items()}
        alone, own = envelope.apply(controls[row : row + 1], seen[row : row + 1], mask)
        assert alone.tobytes() == out[row].tobytes()
        assert {note.kind for note in own} == kinds_of(notes)[row]


@settings(max_examples=200)
@given(case=CASES)
def test_the_fallback_action_is_subject_to_the_limits_too(case: Case) -> None:
    spec, controls, seen, _ = case
    envelope = SafetyEnvelope.of(spec, COLUMNS)
    own = np.tile(envelope.fallback, (ROWS, 1))
    expected, notes = envelope.apply(own, seen)
    for unwanted, forced in ((np.full_like(own, np.nan), {}), (controls, {"ood": np.ones(ROWS, np.bool_)})):
        out, reasons = envelope.apply(unwanted, seen, forced)
        assert out.tobytes() == expected.tobytes()
        assert [kinds - {"fallback", "ood"} for kinds in kinds_of(reasons)] == kinds_of(notes)


CAP = SpeedCap(limit=9.0, margin=1.0, brake=0.5)
RISE = ThrottleRate(max_rise=0.25, observed="pedal", full_scale=4.0)
CURVE, RATE = SteerLimit(speeds=(0.0, 10.0), limits=(1.0, 0.5)), SteerRate(max_change=0.25, full_scale=2.0)


@pytest.mark.parametrize(
    ("limits", "controls", "seen", "expected", "kinds"),
    [
        ({}, [0.5, 0.0, -0.5], [9, 0, 0], [0.5, 0.0, -0.5], []),
        ({}, [np.nan, 0.0, 0.0], [9, 0, 0], [0.0, 1.0, 0.0], ["fallback"]),
        ({}, [1.5, -0.5, 0.0], [9, 0, 0], [1.0, 0.0, 0.0], ["bounds"]),
        ({}, [0.5, 0.25, 0.0], [9, 0, 0], [0.0, 0.25, 0.0], ["pedals"]),
        ({"speed_cap": CAP}, [0.5, 0.0, 0.0], [-9, 0, 0], [0.0, 0.0, 0.0], ["speed_cap"]),
        ({"speed_cap": CAP}, [0.0, 0.75, 0.0], [10, 0, 0], [0.0, 0.75, 0.0], []),
        ({"speed_cap": CAP}, [0.0, 0.25, 0.0], [10, 0, 0], [0.0, 0.5, 0.0], ["speed_cap"]),
        ({"throttle_rate": RISE}, [1.0, 0.0, 0.0], [9, 0, 2], [0.75, 0.0, 0.0], ["throttle_rate"]),
        ({"steer_limit": CURVE}, [0.0, 0.0, -1.0], [5, 0, 0], [0.0, 0.0, -0.75], ["steer_limit"]),
        ({"steer_rate": RATE}, [0.0, 0.0, -1.0], [9, 1, 0], [0.0, 0.0, 0.25], ["steer_rate"]),
    ],
)
def test_each_step_changes_what_it_says(
    limits: dict[str, Any], controls: list[float], seen: list[float], expected: list[float], kinds: list[str]
) -> None:
    envelope = SafetyEnvelope.of(SafetySpec(fallback=STOP, **limits), COLUMNS)
    out, notes = envelope.apply(np.array([controls], np.float32), np.array([seen], np.float32))
    assert (out.tolist(), [note.kind for note in notes]) == ([expected], kinds)


BREAKER = CircuitBreakerSpec(failures=3, recovery_s=10.0)


@pytest.mark.parametrize(("failed", "after"), [(False, "closed"), (True, "open")])
def test_breaker_opens_after_failures_in_a_row_and_one_more_request_decides(failed: bool, after: str) -> None:
    now = [100.0]
    breaker = CircuitBreaker(BREAKER, clock=lambda: now[0])
    for unusable in (True, True, False, True, True):
        breaker.record(unusable)
        assert (breaker.state, breaker.allows(already_asked=True)) == ("closed", True)
    breaker.record(failed=True)
    now[0] += 9.75
    assert (breaker.state, breaker.allows(already_asked=False)) == ("open", False)
    now[0] += 0.25
    assert (breaker.state, breaker.allows(False), breaker.allows(True)) == ("half_open", True, False)
    assert CircuitBreaker(None).state == "off"
    breaker.record(failed)
    now[0] += 9.75
    assert breaker.state == after


class Network:
    def __init__(self, loaded: LoadedPolicy) -> None:
        self.runtime, self.fails, self.calls = loaded.policy.runtime, "", 0

    def __call__(self, features: Any) -> Any:
        self.calls += 1
        if self.fails == "raises":
            raise RuntimeError("CUDA error")
        return {name: values * (np.nan if self.fails else 1) for name, values in self.runtime(features).items()}


def service_of(loaded: LoadedPolicy, network: Network, breaker: CircuitBreakerSpec | None) -> PolicyService:
    card = loaded.policy.card
    card = card.model_copy(update={"safety": card.safety.model_copy(update={"circuit_breaker": breaker})})
    return PolicyService(replace(loaded, policy=replace(loaded.policy, card=card, runtime=network)))


def answers(service: PolicyService, requests: int = 1, rows: int = 1) -> list[list[str]]:
    """The `circuit_open` or `fallback` of each of some requests, `[]` where the policy itself answered."""
    body = json.dumps(request_body(observations(rows, 5))).encode()
    done = service.encode(service.infer(service.parse([Request(body)] * requests)))
    assert [answer.status for answer in done] == [200] * requests
    contents = [json.loads(answer.body) for answer in done]
    assert all((c["actions"] == [STOP.model_dump()] * rows) == ("interventions" in c) for c in contents)
    return [[note["kind"] for note in content.get("interventions", ())] for content in contents]


@pytest.mark.parametrize("fails", ["nan", "raises"])
def test_failing_network_is_given_a_rest_and_another_chance(
    synthetic: LoadedPolicy, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    now, network = [100.0], Network(synthetic)
    monkeypatch.setattr("carla_policy.service.CircuitBreaker", partial(CircuitBreaker, clock=lambda: now[0]))
    service = service_of(synthetic, network, BREAKER)
    for network.fails, rows, requests in ((fails, 2, 1), ("", 1, 1), (fails, 1, 3)):
        assert answers(service, requests, rows) == [["fallback"] * rows if network.fails else []] * requests
    for _ in range(2):
        network.calls = 0
        assert answers(service, requests=2, rows=2) == [["circuit_open"] * 2] * 2
        assert network.calls == 0
        now[0] += 10.0
        assert answers(service, requests=2) == [["fallback"], ["circuit_open"]]
    now[0], network.fails = now[0] + 10.0, ""
    assert answers(service, requests=2) == [[], ["circuit_open"]]
    assert answers(service, requests=2) == [[], []]
    unguarded = service_of(synthetic, network, None)
    for network.fails in (fails, ""):
        assert answers(unguarded, 20, 2) == [["fallback"] * 2 if network.fails else []] * 20
