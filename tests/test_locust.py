"""Load tests with Locust, run as a user runs them: in a process of their own, headless, until so many requests."""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from benchmarks.locust_users.answers import Reply, WrongAnswer, check_array, check_refusal
from benchmarks.locust_users.faults import faults
from benchmarks.locust_users.goals import load_goals
from benchmarks.locust_users.options import by_turns, parse_shares
from benchmarks.locust_users.served import NotServed, Served, drawn, served
from carla_policy.card import ModelCard, load_card
from carla_policy.loading import load_policy
from carla_policy.openapi import error_types
from carla_policy.service import PolicyService
from carla_policy_tools.archive import unpack
from carla_policy_tools.build import build
from carla_policy_tools.paths import PROJECT, archive_name
from carla_policy_tools.ports import reserved_port
from tests.fake_policy import ACTION, FakePolicy
from tests.hostile.answering import answer_all, told
from tests.servers import ServeProcess
from tests.synthetic import make_artifact

needs_locust = pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="the extra bench has Locust")
FILES = f"{PROJECT / 'benchmarks/locustfile.py'},{PROJECT / 'tests/until_seen.py'}"
TIMEOUT_S = 300
EASY = "- {source: test, name: P99, figure: p99_ms@locust, of: Vehicle, at_most: 1e9}\n"
IMPOSSIBLE = "- {source: test, name: P50, figure: p50_ms@locust, of: Vehicle, at_most: 0}\n"
PATIENT = ("--deadline-ms", "60000")


class Run(NamedTuple):
    """What a load test came to: exit status, Locust's statistics by name, its own summary, what it told."""

    status: int
    stats: dict[str, dict[str, Any]]
    summary: dict[str, Any]
    told: str


def run(base: str, directory: Path, until: Mapping[str, int], *options: str, slo: str = EASY) -> Run:
    """Ask the server at `base` until each name in `until` has had so many requests, right or wrong."""
    (directory / "slo.yaml").write_text(slo)
    command = [sys.executable, "-m", "locust", "-f", FILES, "--headless", "--host", base, "--json"]
    command += ["--slo", str(directory / "slo.yaml"), "--summary", str(directory / "summary.json")]
    command += ["--only-summary", "--spawn-rate", "100", "--run-time", str(TIMEOUT_S), *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=PROJECT,
        env={**os.environ, "UNTIL_SEEN": json.dumps(until)},
    )
    stats = {entry["name"]: entry for entry in json.loads(done.stdout or "[]")}
    summary = directory / "summary.json"
    return Run(done.returncode, stats, json.loads(summary.read_text()) if summary.exists() else {}, done.stderr)


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    """Of a policy with 5 sensors that nobody trained."""
    return load_card(make_artifact(tmp_path_factory.mktemp("artifact"), "v1.0.0") / "model_card.yaml")


@pytest.fixture(scope="module")
def recurrent_card(tmp_path_factory: pytest.TempPathFactory) -> ModelCard:
    return load_card(make_artifact(tmp_path_factory.mktemp("artifact"), "v1.0.0", recurrent=True) / "model_card.yaml")


# Against a real server


@needs_locust
def test_every_class_of_users_finds_that_a_real_server_answers_as_documented(
    server: ServeProcess, tmp_path: Path
) -> None:
    faults = [f"FaultyClient {status} {kind}" for status, kind in REFUSALS]
    fleet = {"MixedFleet v0.1.0": 40, "MixedFleet v0.2.0": 20, "MixedFleet promoted": 20}
    arrays = [f"Evaluator {form} {rows} rows" for form in ("json", "npy") for rows in ("1", "64", "1,024", "8,192")]
    until = dict.fromkeys([*faults, "FaultyClient 413", *arrays], 1) | fleet | {"Vehicle promoted": 20}
    options = ("--users", "8", "--equal-weights", "--versions", "v0.1.0=2,v0.2.0=1,promoted=1", *PATIENT)
    done = run(server.base, tmp_path, until, *options, "--html", str(tmp_path / "report.html"))
    assert done.status == 0, done.told
    assert done.summary["failed"] == 0
    assert done.summary["problems"] == []
    assert done.stats.keys() == until.keys()
    assert "Evaluator npy 8,192 rows" in (tmp_path / "report.html").read_text()


def documented_refusals() -> list[tuple[int, str]]:
    """What a client can bring about with one request to the shipped policies, whatever else happens."""
    beyond_a_client = {"OUT_OF_DISTRIBUTION", "DEADLINE_EXCEEDED", "DRAINING", "INTERNAL"}
    return [
        (status, kind.type)
        for status, kinds in error_types().items()
        for kind in kinds
        if kind.type not in beyond_a_client
    ]


REFUSALS = documented_refusals()


@needs_locust
def test_a_goal_that_is_missed_is_told_with_what_was_expected_and_measured(
    server: ServeProcess, tmp_path: Path
) -> None:
    done = run(server.base, tmp_path, {"Vehicle promoted": 5}, "Vehicle", *PATIENT, slo=EASY + IMPOSSIBLE)
    assert done.status == 1
    easy, impossible = done.summary["goals"]
    assert (easy["outcome"], impossible["outcome"]) == ("met", "missed")
    assert impossible["measured"] > 0
    (problem,) = done.summary["problems"]
    assert problem == f"Vehicle, P50: {impossible['measured']:,.3g} ms, expected ≤ 0 ms (test)"
    assert f"FAILED {problem}" in done.told


# Against a server that is wrong


@needs_locust
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"actions": [{**ACTION, "steer": float("nan")}]}, "not finite"),
        ({"actions": [{**ACTION, "brake": 1.25}]}, "out of range"),
        ({"actions": [ACTION, ACTION]}, "expected 1 actions"),
        ({"actions": [{"throttle": 0.5}]}, "expected throttle, brake and steer"),
        ({"version": "v9.9.9"}, "version"),
        ({"deterministic": False}, "deterministic"),
        ({"state": "abc"}, "state: expected none"),
        ({"interventions": [{"observation": 0, "kind": "deadline"}]}, "deadline passed"),
    ],
)
def test_a_wrong_answer_fails_the_test(
    changes: dict[str, Any], complaint: str, card: ModelCard, tmp_path: Path
) -> None:
    with FakePolicy(card, lambda _, document: (200, fake.right(document, **changes))) as fake:
        done = run(fake.base, tmp_path, {"Vehicle promoted": 3}, "Vehicle")
    assert done.status == 1
    assert done.summary["failed"] == done.summary["requests"] > 0
    assert "requests failed, 100 %, expected ≤ 0 %" in done.summary["problems"][0]
    assert complaint in done.told


@needs_locust
@pytest.mark.parametrize("status", [400, 500, 503])
def test_an_error_is_no_answer_to_a_vehicle(status: int, card: ModelCard, tmp_path: Path) -> None:
    with FakePolicy(card, lambda *_: (status, {"code": status, "type": "SOME_TYPE"})) as fake:
        done = run(fake.base, tmp_path, {"Vehicle promoted": 3}, "Vehicle")
    assert done.status == 1
    assert f"expected 200, got {status} SOME_TYPE" in done.told


@needs_locust
@pytest.mark.parametrize(
    ("status", "kind"), [(200, ""), (500, "INTERNAL"), (503, "InternalServerException"), (422, "SOMETHING")]
)
def test_a_fault_must_be_refused_with_its_own_status_and_type(
    status: int, kind: str, card: ModelCard, tmp_path: Path
) -> None:
    """The fake reads nothing and tells everybody the same."""
    answer = {"code": status, "type": kind, "message": "no", "details": [], "requestId": "1"}
    with FakePolicy(card, lambda *_: (status, answer)) as fake:
        until = {"FaultyClient 400 INVALID_JSON": 3, "FaultyClient 422 SHAPE": 2, "FaultyClient 413": 1}
        done = run(fake.base, tmp_path, until, "FaultyClient", slo="[]\n")
    assert done.status == 1
    assert all(entry["num_failures"] == entry["num_requests"] for entry in done.stats.values())
    assert f"truncated: expected 400 INVALID_JSON, got {status}" in done.told


@needs_locust
def test_some_failures_can_be_allowed(card: ModelCard, tmp_path: Path) -> None:
    def every_fourth(number: int, document: Any) -> tuple[int, Any]:
        return (500, {}) if number % 4 == 0 else (200, fake.right(document))

    with FakePolicy(card, every_fourth) as fake:
        strict = run(fake.base, tmp_path, {"Vehicle promoted": 20}, "Vehicle", "--max-failures", "10")
        fake.asked.clear()
        lenient = run(fake.base, tmp_path, {"Vehicle promoted": 20}, "Vehicle", "--max-failures", "50")
    assert (strict.status, lenient.status) == (1, 0)
    assert lenient.summary["failed"] > 0


@needs_locust
def test_a_server_that_nobody_reaches_fails_the_test_and_says_so(tmp_path: Path) -> None:
    done = run("http://127.0.0.1:1", tmp_path, {"Vehicle promoted": 1}, "Vehicle")
    assert done.status == 1
    assert done.summary["problems"] == ["no request was answered"]
    assert "http://127.0.0.1:1: no version answers where none is named" in done.told


# How vehicles ask


@needs_locust
def test_vehicles_keep_their_names_and_their_connections(card: ModelCard, tmp_path: Path) -> None:
    with FakePolicy(card) as fake:
        done = run(fake.base, tmp_path, {"Vehicle promoted": 60}, "Vehicle", "--users", "3", "--deadline-ms", "750")
    assert done.status == 0, done.told
    vehicles = {asked.headers["x-vehicle-id"]: asked.connection for asked in fake.asked}
    assert len(vehicles) == 3
    assert len(set(vehicles.values())) == 3
    assert all(asked.connection == vehicles[asked.headers["x-vehicle-id"]] for asked in fake.asked)
    assert len({asked.headers["x-episode-id"] for asked in fake.asked}) == 3
    assert {asked.headers["x-policy-deadline-ms"] for asked in fake.asked} == {"750"}


@needs_locust
def test_a_request_that_another_has_held_up_counts_from_when_it_was_due(card: ModelCard, tmp_path: Path) -> None:
    """After a stall of a second, the nine requests that were due in the first half of it are late by more than half."""

    def stalled(number: int, document: Any) -> tuple[int, Any]:
        time.sleep(1.0 if number == 0 else 0.0)
        return 200, fake.right(document)

    with FakePolicy(card, stalled) as fake:
        done = run(fake.base, tmp_path, {"Vehicle promoted": 20}, "Vehicle")
    latencies = Counter({float(ms): count for ms, count in done.stats["Vehicle promoted"]["response_times"].items()})
    assert sum(count for ms, count in latencies.items() if ms >= 500) >= 10


@needs_locust
def test_the_state_of_a_recurrent_policy_travels_with_the_vehicle(recurrent_card: ModelCard, tmp_path: Path) -> None:
    with FakePolicy(recurrent_card) as fake:
        done = run(fake.base, tmp_path, {"Vehicle promoted": 10}, "Vehicle")
    assert done.status == 0, done.told
    first, *later = [asked.document for asked in fake.asked]
    assert (first["episode_start"], "state" in first) == (True, False)
    assert [document["state"] for document in later] == [str(number + 1) for number in range(len(later))]


@needs_locust
def test_two_processes_share_the_load_and_are_judged_together(card: ModelCard, tmp_path: Path) -> None:
    with FakePolicy(card) as fake:
        port = str(reserved_port())
        options = ("--processes", "2", "--master-bind-host", "127.0.0.1", "--master-bind-port", port)
        options += ("--master-port", port, "--users", "4")
        done = run(fake.base, tmp_path, {"Vehicle promoted": 80}, "Vehicle", *options, slo=EASY + IMPOSSIBLE)
    assert done.status == 1
    assert len({asked.headers["x-vehicle-id"] for asked in fake.asked}) == 4
    assert done.summary["requests"] >= 80
    assert [goal["outcome"] for goal in done.summary["goals"]] == ["met", "missed"]


# What is sent


@pytest.mark.parametrize("kind", [{}, {"recurrent": True}, {"head": "categorical", "sensors": 0}])
def test_every_fault_is_refused_by_any_policy_as_it_must_be(kind: dict[str, Any], tmp_path: Path) -> None:
    build(make_artifact(tmp_path, "v1.0.0", **kind), tmp_path / "store")
    unpack(tmp_path / "store" / archive_name("v1.0.0"), tmp_path / "unpacked")
    loaded = load_policy(tmp_path / "unpacked")
    service, card = PolicyService(loaded), loaded.policy.card
    sent = [fault for fault in faults(Served(card, drawn(card))) if not fault.resource]
    for fault in sent:
        (answer,) = answer_all(service, [fault.body], {key.lower(): value for key, value in fault.headers.items()})
        assert told(answer) == (fault.status, fault.kind), fault.name
    assert len({fault.name for fault in sent}) == len(sent)


def test_observations_are_drawn_from_what_training_saw_within_the_bounds(card: ModelCard) -> None:
    speed, *others = card.observation.fields
    seen = [speed.model_copy(update={"seen": (3.0, 4.0)}), *others]
    layout = card.observation.model_copy(update={"fields": tuple(seen)})
    pool = drawn(card.model_copy(update={"observation": layout}))
    low, high = card.observation.bounds
    assert ((pool >= low) & (pool <= high)).all()
    assert ((pool[:, 0] >= 3.0) & (pool[:, 0] <= 4.0)).all()
    assert pool[:, 1].min() < -0.5 < 0.5 < pool[:, 1].max()


def test_a_store_gives_the_golden_observations(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, "v1.0.0")
    build(artifact, tmp_path / "store")
    with FakePolicy(load_card(artifact / "model_card.yaml")) as fake:
        pool = served(fake.base, "v1.0.0", str(tmp_path / "store")).pool
        with pytest.raises(NotServed, match="no archive"):
            served(fake.base, "v2.0.0", str(tmp_path / "store"))
    np.testing.assert_array_equal(pool, np.load(artifact / "golden.npz")["observations"])


# What is made of the answers


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.zeros((2, 3), np.float64), "float32"),
        (np.zeros((1, 3), np.float32), "expected 2 actions"),
        (np.full((2, 3), np.nan, np.float32), "not finite"),
        (np.full((2, 3), -0.5, np.float32), "out of range"),
    ],
)
def test_a_wrong_array_is_no_answer(array: Any, complaint: str) -> None:
    file = io.BytesIO()
    np.save(file, array)
    with pytest.raises(WrongAnswer, match=complaint):
        check_array(Reply(200, {"x-policy-version": "v1.0.0"}, file.getvalue()), rows=2, versions={"v1.0.0"})
    with pytest.raises(WrongAnswer, match="version"):
        check_array(Reply(200, {"x-policy-version": "v1.0.0"}, file.getvalue()), rows=2, versions={"v2.0.0"})
    with pytest.raises(WrongAnswer, match=r"expected a \.npy file"):
        check_array(Reply(200, {"x-policy-version": "v1.0.0"}, b"{}"), rows=2, versions={"v1.0.0"})


@pytest.mark.parametrize("missing", ["code", "type", "message", "details", "requestId"])
def test_a_refusal_says_all_that_is_documented(missing: str) -> None:
    whole = {"code": 422, "type": "SHAPE", "message": "no", "details": [], "requestId": "1"}
    check_refusal(Reply(422, {}, json.dumps(whole).encode()), 422, "SHAPE")
    del whole[missing]
    with pytest.raises(WrongAnswer, match="expected"):
        check_refusal(Reply(422, {}, json.dumps(whole).encode()), 422, "SHAPE")


# Options and goals


def test_versions_are_asked_in_their_shares_from_the_first_request_on() -> None:
    turns = list(itertools.islice(by_turns(parse_shares("v0.2.0=60,v0.3.0=30,promoted=10")), 100))
    assert Counter(turns) == {"v0.2.0": 60, "v0.3.0": 30, "promoted": 10}
    assert set(turns[:10]) == {"v0.2.0", "v0.3.0", "promoted"}


@pytest.mark.parametrize(
    "text", ["v0.2.0", "v0.2.0=x", "v0.2.0=0", "v0.2.0=-1", "v0.2.0=nan", "latest=3", "v1.0.0=1,v1.0.0=2"]
)
def test_shares_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition("=")[0]):
        parse_shares(text)


@pytest.mark.parametrize(
    "line",
    [
        "{source: a, name: b, figure: p97_ms@locust, of: Vehicle, at_most: 1}",
        "{source: a, name: b, figure: p99_ms@closed-1, of: Vehicle, at_most: 1}",
        "{source: a, name: b, figure: p99_ms@locust, of: Vehicle, against: other, at_most: 1}",
    ],
)
def test_a_goal_that_a_load_test_cannot_judge_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "slo.yaml").write_text(f"- {line}\n")
    with pytest.raises(ValueError, match=r"slo\.yaml"):
        load_goals(tmp_path / "slo.yaml")


def test_the_shipped_goals_can_be_judged() -> None:
    assert {goal.of for goal in load_goals(PROJECT / "benchmarks/slo-locust.yaml")} == {
        "Vehicle",
        "MixedFleet",
        "Evaluator",
        "FaultyClient",
    }
