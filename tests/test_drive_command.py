"""`carla-policy drive`: a served version drives through the vehicle's client, over good and bad networks."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.archives import FIRST, Archives
from benchmarks.drills import driving
from benchmarks.drills.drive_report import DriveReport, Felt
from benchmarks.load import Questions
from carla_policy.loading import LoadedPolicy
from carla_policy_tools.build import build
from carla_policy_tools.console import err
from carla_policy_tools.driving.link import JUNK, Conditions, Link
from carla_policy_tools.driving.loop import Pace, drive_episodes
from carla_policy_tools.driving.pilots import PolicyPilot
from carla_policy_tools.driving.records import Drive, Episode
from carla_policy_tools.driving.session import Plan, Session
from carla_policy_tools.driving.simulation import simulation_of
from carla_policy_tools.paths import ARTIFACTS
from tests.commands import run_here
from tests.lane_policies import LANE_ARGUMENTS, LANE_ENV, lane_policy
from tests.policy_server import PolicyServer

LANE = ("--env", LANE_ENV, "--env-arguments", LANE_ARGUMENTS)
PATIENT = ("--deadline", "30000")
"""A slow machine is no fault here."""
PLAN = Plan("", "v1.0.0", None, LANE_ENV, LANE_ARGUMENTS, episodes=2, max_steps=20, deadline_s=30.0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedPolicy:
    return lane_policy(tmp_path_factory.mktemp("lane"))


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> LoadedPolicy:
    return lane_policy(tmp_path_factory.mktemp("recurrent"), "v1.1.0", recurrent=True)


@pytest.fixture
def served(loaded: LoadedPolicy, recurrent: LoadedPolicy) -> Iterator[PolicyServer]:
    with PolicyServer(loaded, recurrent) as server:
        yield server


@pytest.fixture
def drive(served: PolicyServer, tmp_path: Path) -> Any:
    """Runs the verb against the server; what it prints, and the drive that it wrote."""

    def run(*arguments: object, status: int = 0) -> tuple[str, Drive]:
        where = ("--url", served.url, "--store", tmp_path, "--out", tmp_path / "out")
        said = run_here("drive", *arguments, *LANE, *where, status=status)
        return said, Drive.from_json(json.loads((tmp_path / "out" / "drive.json").read_text()))

    return run


def driven(plan: Plan) -> Drive:
    with Session(plan) as session:
        return session.run()


def in_process(loaded: LoadedPolicy, episodes: list[Episode], max_steps: int | None = None) -> list[Episode]:
    with simulation_of(loaded.policy.card, LANE_ENV, LANE_ARGUMENTS) as simulation:
        seeds = [episode.seed for episode in episodes]
        return list(drive_episodes(simulation, PolicyPilot(loaded.policy), seeds, Pace(), max_steps))


@pytest.mark.parametrize("version", ["v1.0.0", "v1.1.0"])
def test_served_version_drives_as_in_process_also_a_recurrent_one(
    drive: Any, served: PolicyServer, loaded: LoadedPolicy, recurrent: LoadedPolicy, version: str
) -> None:
    said, kept = drive(version, "--episodes", 3, *PATIENT)
    own = in_process({"v1.0.0": loaded, "v1.1.0": recurrent}[version], kept.episodes)
    for one, other in zip(kept.episodes, own, strict=True):
        assert one.controls.tobytes() == other.controls.tobytes()
        assert [step.row.tobytes() for step in one.steps] == [step.row.tobytes() for step in other.steps]
        assert (one.total_return, one.ending) == (other.total_return, other.ending)
    assert kept.summary["versions"] == {version: sum(len(episode.steps) for episode in own)}
    assert kept.settings.card_hash.startswith("sha256:")
    assert "3 of 3 episodes from seed 10000" in said
    assert [json.loads(told) for told in served.reports] == [
        {"return": pytest.approx(episode.total_return), "length": len(episode.steps)} for episode in own
    ]


def test_recurrent_version_begins_each_episode_anew_also_after_one_that_was_cut(
    served: PolicyServer, recurrent: LoadedPolicy
) -> None:
    drive = driven(replace(PLAN, url=served.url, version="v1.1.0", max_steps=6))
    own = in_process(recurrent, drive.episodes, 6)
    assert [one.controls.tobytes() for one in drive.episodes] == [one.controls.tobytes() for one in own]


def test_returns_stay_untold_where_that_is_asked_for_or_an_episode_was_cut(served: PolicyServer) -> None:
    driven(replace(PLAN, url=served.url, episodes=1, max_steps=None, reports_returns=False))
    driven(replace(PLAN, url=served.url, max_steps=2))
    assert served.reports == []


def test_promoted_version_drives_and_the_figures_are_json(drive: Any, tmp_path: Path) -> None:
    said, kept = drive("--episodes", 2, "--max-steps", 5, "--json", *PATIENT)
    told = json.loads(said)
    assert told["settings"]["version"] == "v1.0.0"
    assert told["summary"] == json.loads(json.dumps(kept.summary))
    assert [(one["seed"], one["length"], one["ending"]) for one in told["episodes"]] == [
        (10_000, 5, "max_steps"),
        (10_001, 5, "max_steps"),
    ]
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")


def test_sampled_actions_can_be_drawn_again(served: PolicyServer) -> None:
    first, again, other = (
        driven(replace(PLAN, url=served.url, max_steps=5, deterministic=False, seed=seed)) for seed in (3, 3, 4)
    )
    drawn = [[[step.answer.seed for step in one.steps] for one in each.episodes] for each in (first, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({seed for episode in drawn[0] for seed in episode}) == 10
    assert first.episodes[1].controls.tobytes() == again.episodes[1].controls.tobytes()


def test_environment_that_does_not_render_is_driven_and_reported_all_the_same(drive: Any, tmp_path: Path) -> None:
    said, kept = drive("--episodes", 1, "--max-steps", 2, "--filmstrip", *PATIENT, status=1)
    assert "no pictures: --env tests.lane_env:LaneEnv" in said
    assert len(kept.episodes[0].steps) == 2
    assert (tmp_path / "out" / "report.html").exists()


def test_lost_answers_are_fallbacks_and_told(drive: Any) -> None:
    said, kept = drive("--episodes", 1, "--max-steps", 4, "--loss", 100, "--deadline", 20, "--fallback", "hold")
    assert kept.summary["sources"] == {"policy": 0, "fallback": 4, "override": 0}
    assert kept.episodes[0].controls.tolist() == [[0, 1, 0]] * 4
    assert kept.link["lost"] >= 1
    assert "fallback: late" in said


def test_server_that_goes_away_in_the_middle_leaves_a_drive_with_fallbacks(drive: Any, served: PolicyServer) -> None:
    served.last_prediction = 5
    _, kept = drive("--episodes", 1, "--max-steps", 15, "--deadline", 500)
    sources = [step.answer.source for step in kept.episodes[0].steps]
    assert sources == ["policy"] * 5 + ["fallback"] * 10
    assert {step.answer.reason for step in kept.episodes[0].steps[5:]} <= {"disconnected", "circuit_open", "late"}


def test_deadline_longer_than_the_period_is_warned_of(drive: Any) -> None:
    with err.capture() as said:
        drive("--hz", 50, "--deadline", 21, "--episodes", 1, "--max-steps", 2)
    assert "--deadline 21 ms is longer than the period of 20 ms" in said.get()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--loss", "120"), 2, "percent from 0 to 100, got 120"),
        (("--latency", "40:10"), 2, "such as 20 or 10:40, got '40:10'"),
        (("--latency", "soon"), 2, "got 'soon'"),
        (("--deadline", "0"), 2, "above 0"),
        (("--hz", "0"), 2, "0.1 to 1000"),
        (("--fallback", "pray"), 2, "expected brake, hold"),
        (("v9.9.9",), 1, "404 ModelVersionNotFoundException"),
        (("--env-arguments", "{}"), 1, "v1.0.0 wants 7 numbers"),
        (("--env-arguments", "[]"), 1, "expected a JSON object"),
        (("--env", "no.such:Thing"), 1, "cannot be imported"),
        (("--realtime",), 1, "name the loop's frequency with --hz"),
        (("--url", "http://127.0.0.1:9"), 1, "no server answers at http://127.0.0.1:9"),
    ],
)
def test_wrong_input_is_told_in_a_line(
    served: PolicyServer, tmp_path: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    where = ("--url", served.url, "--store", tmp_path, "--out", tmp_path / "out")
    told = run_here("drive", *where, *LANE, *arguments, status=status)
    assert said in " ".join(told.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("fault", "said"), [("raises", "RuntimeError: flat tyre"), ("nan", "reward nan")])
def test_error_of_the_environment_leaves_what_was_driven(
    served: PolicyServer, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    from tests.lane_env import LaneEnv

    step, calls = LaneEnv.step, itertools.count()

    def failing(self: LaneEnv, action: Any) -> Any:
        if next(calls) != 3:
            return step(self, action)
        if fault == "raises":
            raise RuntimeError("flat tyre")
        return (step(self, action)[0], float("nan"), False, False, {})

    monkeypatch.setattr(LaneEnv, "step", failing)
    with Session(replace(PLAN, url=served.url)) as session:
        with pytest.raises(ValueError, match=f"step 4: {said}"):
            session.run()
        assert [len(episode.steps) for episode in session.drive.episodes] == [3]
        assert session.drive.stopped


def test_stopped_drive_keeps_what_it_has_and_says_so(served: PolicyServer) -> None:
    with Session(replace(PLAN, url=served.url)) as session:
        steps = itertools.count(1)
        taken = 0

        def count(_: Episode) -> None:
            nonlocal taken
            taken = next(steps)

        drive = session.run(count, lambda: taken == 7)
    assert (drive.stopped, [len(episode.steps) for episode in drive.episodes]) == (True, [7])
    assert Drive.from_json(json.loads(json.dumps(drive.to_json()))).stopped


def vehicle(link: Link) -> socket.socket:
    """A connection to the link."""
    host, port = link.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), 10)


def asked_through(link: Link, times: int) -> list[bytes]:
    """What comes back for each of so many predictions, each over a connection of its own, `b""` for nothing."""
    found = []
    for _ in range(times):
        with vehicle(link) as connection:
            connection.settimeout(0.2 if link.conditions.loss else 10)
            connection.sendall(b"POST /predictions/carla_policy HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}")
            try:
                found.append(connection.recv(1 << 20))
            except OSError:
                found.append(b"")
    return found


def test_link_loses_the_same_answers_for_the_same_seed(served: PolicyServer) -> None:
    lost = []
    for seed in (1, 1, 2):
        with Link(served.url, Conditions(loss=0.5), seed) as link:
            lost.append([not answer for answer in asked_through(link, 6)])
            assert link.counts["lost"] == sum(lost[-1])
            assert link.counts["predictions"] == 6
    assert lost[0] == lost[1] != lost[2]


def test_link_garbles_and_cuts_where_it_is_told(served: PolicyServer) -> None:
    with Link(served.url) as link:
        assert asked_through(link, 1)[0].startswith(b"HTTP/1.1 422")
        link.conditions = Conditions(junk=True)
        assert asked_through(link, len(JUNK)) == list(JUNK)
        link.conditions = Conditions(cut=True)
        assert asked_through(link, 2) == [b"", b""]
        link.conditions = Conditions()
        assert asked_through(link, 1)[0].startswith(b"HTTP/1.1 422")
        with vehicle(link) as connection:
            connection.sendall(b"GET /predictions/carla_policy HTTP/1.1\r\n\r\n")
            assert connection.recv(4)
            link.conditions = Conditions(cut=True)
            assert link.counts["cut"] >= 1
            with suppress(ConnectionError):
                while connection.recv(1 << 20):
                    pass


def test_link_needs_to_see_what_it_passes_on() -> None:
    with pytest.raises(ValueError, match="expected http://"):
        Link("https://127.0.0.1:8443")


def test_vehicle_drives_on_whatever_becomes_of_its_server(tmp_path: Path) -> None:
    build(ARTIFACTS / FIRST, tmp_path)
    plan = Plan("", period_s=0.0, deadline_s=0.08, fallback="decay:0.5")
    report = driving.run(Archives(tmp_path, Questions([], {})), plan, seconds=0.5, version=FIRST)
    assert report.broken == []
    assert report.faults == len(report.felt) == 7
    assert all(np.isfinite(one.resumed_s) and one.steps > 0 for one in report.felt)


def test_drill_fails_for_a_fault_that_was_not_felt_or_not_over_and_for_an_unfit_action(served: PolicyServer) -> None:
    drive = driven(replace(PLAN, url=served.url, episodes=1, max_steps=3))
    report = DriveReport("drive")
    report.judge(drive, [Felt("nothing", 0.0, 1e9)])
    assert [line.split(": ")[1] for line in report.broken] == [
        "was not felt",
        "the policy has not driven since",
        "no event tells of it",
    ]
    drive.episodes[0].steps[1].answer.controls[0] = np.nan
    drive.episodes[0].steps[2] = replace(drive.episodes[0].steps[2], late_s=31.0)
    report = DriveReport("drive")
    report.judge(drive, [])
    assert report.broken == ["1 actions are not fit to drive"]
    assert len(report.slow) == 1
