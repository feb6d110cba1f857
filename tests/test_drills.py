"""The fault drills in short: all that they ask for but the times, which depend on the machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.archives import FIRST, SECOND, Archives, ask_policies
from benchmarks.drills import ailing, breaking, crashing, cycling, flipping, killing, operating, stopping
from benchmarks.drills.damage import KINDS
from benchmarks.drills.operating import fold
from benchmarks.drills.promotions import Promotions
from benchmarks.drills.report import Report
from benchmarks.drills.rig import Outcome
from benchmarks.load import Pace, Sent
from carla_policy_tools.paths import PROJECT
from tests.conftest import SHIPPED

PACE = Pace(rate=100.0, timeout_s=60.0)
"""A slow answer is no loss here."""
SEED = 3
"""Its first kills are of a command and of a server."""


@pytest.fixture(scope="module")
def archives(store: Path) -> Archives:
    return Archives(store, ask_policies(store, SHIPPED))


def check(report: Report, faults: int | None = None) -> None:
    """Nothing that must always hold was broken; what may be slow is not asked."""
    assert report.broken == []
    assert report.load.lost == report.load.wrong == 0
    assert report.faults == faults or faults is None


def test_versions_come_and_go_without_a_loss(archives: Archives) -> None:
    report = cycling.run(archives, cycles=1, pace=PACE, quiet_s=0)
    check(report, 1)
    assert report.load.requests > 100


def test_promotions_take_effect_and_lose_nothing(archives: Archives) -> None:
    check(flipping.run(archives, flips=10, commands=2, pace=PACE, quiet_s=0), 10)


def test_stop_answers_what_was_sent_and_refuses_what_comes_later(archives: Archives) -> None:
    check(stopping.run(archives, signals=[signal.SIGTERM], pace=PACE, quiet_s=0), 1)


def test_operators_at_once_leave_what_the_history_says(archives: Archives) -> None:
    report = operating.run(archives, versions=SHIPPED, operators=4, seconds=5, pace=PACE, quiet_s=0)
    check(report)
    assert report.faults >= 4


def test_kills_leave_nothing_half_done(archives: Archives) -> None:
    check(killing.run(archives, kills=2, seed=SEED, pace=PACE), 2)


def test_killed_worker_takes_no_more_than_its_batch_with_it(archives: Archives) -> None:
    report = crashing.run(archives, kills=2, interval_s=2, pace=PACE, quiet_s=0)
    check(report, 2)
    assert len(report.recovery_s) == 2


def test_kill_that_costs_more_than_a_batch_is_told() -> None:
    report = Report("workers")
    died = [sent(9.9, 10.1, "", "507"), sent(10, 10.2, "", "507"), sent(20, 20.1, "", "500")]
    crashing.check_losses(report, died, [10.0, 20.0], batch_size=2)
    assert report.broken == []
    crashing.check_losses(report, [*died, sent(20, 20.2, "", "507"), sent(20, 20.3, "", "507")], [10.0, 20.0], 2)
    assert report.broken == ["kill 2 cost 3 requests, expected at most 2"]
    early = Report("workers")
    crashing.check_losses(early, [sent(8, 9, "", "507")], [10.0], 2)
    assert [problem.partition(":")[0] for problem in early.broken] == ["lost before the first kill"]


def test_health_tells_failures_and_is_never_green_too_early(archives: Archives) -> None:
    check(ailing.run(archives, stopped_s=2.5), 4)


def test_kill_points_cover_every_target_during_every_verb_and_repeat_by_seed() -> None:
    found = killing.points(12, seed=3)
    assert {(point.target, point.verb) for point in found} == {
        (target, verb) for target in killing.TARGETS for verb in killing.VERBS
    }
    assert found == killing.points(12, seed=3) != killing.points(12, seed=4)
    assert all(0 <= point.share < 1 for point in found)


def test_a_drill_as_a_command_reports_in_json_and_by_its_exit_status() -> None:
    """Here: a version that passes all checks and answers differently on the server is refused, unnoticed."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.drills"]
    options = ["broken", "--kind", "answers differently", "--rate", "50", "--quiet", "0", "--timeout", "60", "--json"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False, cwd=PROJECT)
    report = json.loads(result.stdout)
    assert (report["drill"], report["faults"], report["broken"]) == ("broken", 1, [])
    assert result.returncode == (0 if report["passed"] else 1), result.stderr
    unknown = subprocess.run([*command, "nothing"], capture_output=True, timeout=60, check=False, cwd=PROJECT)
    assert unknown.returncode == 2


def test_every_kind_of_damage_has_a_reason_that_register_must_tell() -> None:
    assert set(KINDS) == set(breaking.REASONS)


def sent(start: float, end: float, version: str, outcome: str = "200", right: bool = True) -> Sent:
    return Sent(0, start, start, end, outcome, version, right, "")


def test_answer_counts_as_the_promoted_version_s_only_if_that_was_promoted_while_the_request_was_under_way() -> None:
    promotions = Promotions(FIRST)
    promotions.add(SECOND, Outcome(("promote", SECOND), 0, "", "", started=10.0, ended=11.0))
    promotions.add(FIRST, Outcome(("rollback",), 0, "", "", started=20.0, ended=21.0))
    good = [sent(9, 9.5, FIRST), sent(10.2, 10.4, SECOND), sent(10.2, 10.4, FIRST), sent(20.5, 20.6, SECOND)]
    early, late, between = sent(9, 9.9, SECOND), sent(21.1, 21.2, SECOND), sent(11.1, 19.9, FIRST)
    assert promotions.strangers([*good, early, late, between]) == [early, late, between]
    assert promotions.promoted == FIRST


def test_report_fails_for_what_was_lost_or_wrong_and_for_what_was_slow() -> None:
    fine, lost, wrong = sent(0, 0.001, FIRST), sent(1, 6, "", "timeout"), sent(2, 2.5, FIRST, right=False)
    report = Report("some")
    report.count([fine], [fine], [fine])
    assert report.passed
    report.count([fine, lost, wrong], [fine], [lost, wrong])
    assert [problem.partition(":")[0] for problem in report.broken] == ["request lost", "wrong answer"]
    slow = Report("some")
    slow.count([fine, sent(1, 1.5, FIRST)], [fine], [sent(1, 1.5, FIRST)])
    slow.limit_p99(3.0)
    assert (slow.broken, len(slow.slow), slow.passed) == ([], 1, False)
    assert slow.to_json()["passed"] is False


def test_history_is_folded_by_its_events_alone() -> None:
    events = [("register", FIRST), ("promote", FIRST), ("register", SECOND), ("promote", SECOND), ("rollback", FIRST)]
    history = [{"verb": verb, "version": version} for verb, version in events]
    assert fold(history) == ({FIRST, SECOND}, FIRST)
    assert fold([*history, {"verb": "retire", "version": SECOND}]) == ({FIRST}, FIRST)
