"""The fault drills in short: all that they ask for but the times, which depend on the machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.archives import FIRST, SECOND, Archives, ask_policies
from benchmarks.drills import (
    ailing,
    breaking,
    crashing,
    cycling,
    flipping,
    hanging,
    killing,
    operating,
    overloading,
    soaking,
    stopping,
)
from benchmarks.drills.damage import KINDS
from benchmarks.drills.operating import fold
from benchmarks.drills.promotions import Promotions
from benchmarks.drills.report import Report
from benchmarks.drills.rig import Outcome
from benchmarks.drills.sampling import JVM, Sample, check_growth
from benchmarks.load import Pace, Questions, Sent
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


def test_network_that_hangs_is_answered_in_time_and_its_worker_replaced(archives: Archives) -> None:
    report = hanging.run(archives, hangs=1, interval_s=0, pace=Pace(rate=40.0, timeout_s=60.0), quiet_s=1)
    check(report, 1)
    assert len(report.recovery_s) == 1
    assert report.facts["outcomes"]["200"] > 0


def test_hang_that_is_answered_late_or_costs_more_than_a_batch_is_told() -> None:
    note = '{"actions": [], "interventions": [{"observation": 0, "kind": "deadline"}]}'
    wrong = sent(10, 10.5, SECOND, right=False)
    safe, died = hanging.as_answered(wrong._replace(note=note)), sent(10, 10.4, "", "500")
    assert (safe.outcome, safe.wrong) == (hanging.SAFE, False)
    assert hanging.as_answered(wrong._replace(note=note.replace("deadline", "bounds"))).wrong
    report = Report("hang")
    hanging.check_answers(report, [sent(9, 9.1, SECOND), safe, died, died], [9.9])
    assert report.passed
    hanging.check_answers(report, [safe, died, died, died, sent(10, 12, SECOND)], [9.9])
    assert report.broken == ["3 requests ended with a worker, expected at most 2"]
    assert [problem.partition(":")[0] for problem in report.slow] == ["answered late"]
    early = Report("hang")
    hanging.check_answers(early, [safe], [11.0])
    assert [problem.partition(":")[0] for problem in early.slow] == ["no own action before the first trap"]


def test_overload_is_refused_and_leaves_nothing_behind(archives: Archives) -> None:
    report = overloading.run(archives, seconds=3, quiet_s=2)
    check(report, 1)
    assert report.load.excused > 0


def test_flood_must_be_an_overload_whose_refusals_are_fast_and_whose_accepted_wait_no_longer_than_the_queue() -> None:
    accepted, refused = sent(0, 1.0, SECOND), sent(0, 0.1, "", "503")
    report = Report("overload")
    overloading.check_flood(report, [accepted, refused], capacity=200)
    assert report.passed
    overloading.check_flood(report, [sent(0, 9, SECOND), sent(0, 0.3, "", "503")], capacity=200)
    assert [problem.partition(" is ")[0] for problem in report.slow] == ["P99 of refusals", "P99 of the accepted"]
    overloading.check_flood(report, [accepted], capacity=200)
    overloading.check_flood(report, [refused], capacity=200)
    assert report.broken == ["nothing was refused: this was no overload", "nothing was accepted"]


def test_soak_finds_neither_growth_nor_a_wrong_answer_among_malformed_requests(
    archives: Archives, tmp_path: Path
) -> None:
    plot = tmp_path / "soak.svg"
    report = soaking.run(archives, requests=3000, bad_share=0.1, plot=plot)
    check(report, 0)
    assert all(text in plot.read_text() for text in ("JVM", "worker", "open files", "logs"))
    assert report.load.requests >= 3000
    assert report.load.excused == pytest.approx(report.load.requests / 10, rel=0.1)


def test_soak_fails_for_a_version_that_leaks(archives: Archives) -> None:
    report = soaking.run(archives, requests=3000, leak=True)
    assert [problem.partition(" ")[0] for problem in report.broken] == ["worker"]
    assert "expected at most 5 MB more" in report.broken[0]


def test_malformed_requests_are_spread_evenly_and_keep_the_others_answers() -> None:
    questions = Questions(["a", "b", "c"], {FIRST: [1, 2, 3]})
    mixed, bad = soaking.mix(questions, 0.25)
    assert len(bad) == len(mixed.bodies) / 4
    assert {row % 4 for row in bad} == {3}
    answers = dict(zip(questions.bodies, questions.expected[FIRST], strict=True))
    for row, body in enumerate(mixed.bodies):
        assert body in soaking.BAD if row in bad else answers[body] == mixed.expected[FIRST][row]
    assert soaking.mix(questions, 0)[1] == frozenset()
    assert len(soaking.mix(questions, 1)[1]) == len(mixed.bodies)


def test_soak_takes_no_malformed_request_accepted_nor_a_good_one_refused() -> None:
    report = Report("soak")
    soaking.judge(report, [sent(0, 1, FIRST), sent(0, 1, "", "400")._replace(row=1)], frozenset([1]))
    assert report.broken == []
    swapped = [sent(0, 1, "", "422"), sent(0, 1, FIRST)._replace(row=1), sent(0, 1, "", "500")._replace(row=1)]
    soaking.judge(report, [*swapped, sent(0, 1, FIRST, right=False)], frozenset([1]))
    kinds = ["request lost", "wrong answer", "malformed request not refused", "malformed request not refused"]
    assert [problem.partition(":")[0] for problem in report.broken] == kinds


@pytest.mark.parametrize(
    ("later", "complaint"),
    [
        ({"resident_mb": {"worker 1": 106.0}}, "worker 1: grew from 100.0 to 106.0 MB"),
        ({"files": {"worker 1": 20}}, "worker 1: 20 open files, 8 after the warm-up"),
        ({"resident_mb": {"worker 2": 100.0}, "files": {"worker 2": 8}}, "processes came or went"),
        ({"logs_mb": 70.0, "disk_mb": 71.0}, "the logs have 70.0 MB"),
        ({"disk_mb": 8.0}, "the disk holds 7.0 MB more beside the logs"),
    ],
)
def test_what_a_server_holds_may_not_grow_after_the_warm_up(later: dict[str, Any], complaint: str) -> None:
    steady = Sample(resident_mb={"worker 1": 100.0}, files={"worker 1": 8}, logs_mb=0.0, disk_mb=1.0)
    early = replace(steady, resident_mb={"worker 1": 50.0}, files={"worker 1": 3})
    report = Report("soak")
    check_growth(report, [early] * 4 + [steady] * 6)
    assert report.passed
    check_growth(report, [early] * 4 + [steady] * 3 + [replace(steady, **later)] * 3)
    assert len(report.broken) == 1
    assert report.broken[0].startswith(complaint)


def test_growth_of_the_jvm_is_a_limit_that_depends_on_the_machine() -> None:
    samples = [Sample({f"{JVM} 1": 100.0 + 10 * number}, {f"{JVM} 1": 8}, 0.0, 1.0) for number in range(10)]
    report = Report("soak")
    check_growth(report, samples)
    assert (report.broken, len(report.slow)) == ([], 1)


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
