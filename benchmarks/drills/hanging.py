"""Drill `hang`: under load, a network hangs again and again; everybody is answered in time, and the worker replaced."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence

import requests

from benchmarks.archives import SECOND, Archives
from benchmarks.drills.damage import hanging_archive
from benchmarks.drills.report import Report, complaints
from benchmarks.drills.rig import Rig
from benchmarks.load import Load, Pace, Sent, between
from carla_policy.deadline import HANG_S
from carla_policy_tools.lifecycle.management import POLL_S, Management, ServedVersion
from carla_policy_tools.urls import local_session, prediction_url

PACE = Pace(rate=200.0)
"""A network that hangs takes a processor."""
WORKERS = 2
DEADLINE_MS = 500
"""Of the card, for every request."""
LATE_S = 1.0
"""An answer may come so much later than its deadline."""
SAFE, DIED = "safe action", frozenset({"500", "507"})
"""What a request gets whose pass was given up, and what TorchServe answers to those that a worker had when it ended."""
READY_S = 5.0
"""After the moment at which the worker gives up: the same as after a kill."""
GIVE_UP_S = 60.0


def run(
    archives: Archives, *, hangs: int = 10, interval_s: float = 12.0, pace: Pace = PACE, quiet_s: float = 5.0
) -> Report:
    """`hangs` times a request for which the network does not come back, `interval_s` apart or once all are READY again.

    The version has two workers and a deadline in its card. Answers of the one that hangs are the safe action, until it
    is replaced; the other one goes on.
    """
    report = Report("hang")
    trapped: list[float] = []
    with Rig(archives, []) as rig:
        trap = hanging_archive(SECOND, rig.store, DEADLINE_MS)
        with (
            rig.serve(SECOND, "--profile", str(rig.profile(workers=WORKERS))) as server,
            Management(server.ready["management"]) as management,
            Load(server.base, archives.questions, pace=pace) as load,
        ):
            quiet = load.rest(quiet_s)
            start = time.monotonic()
            with report.noting_failures():
                for number in range(hangs):
                    time.sleep(max(0.0, start + number * interval_s - time.monotonic()))
                    before = _pids(management)
                    trapped.append(time.monotonic())
                    _spring(report, server.base, trap)
                    report.faults += 1
                    report.recovery_s.append(_wait_replaced(management, before) - trapped[-1])
            time.sleep(max(0.0, start + hangs * interval_s - time.monotonic()))
            end = time.monotonic()
            sent = [as_answered(record) for record in load.stop()]
    report.count(sent, between(sent, quiet, start), between(sent, start, end), excused={SAFE, *DIED})
    check_answers(report, sent, trapped)
    longest = max(report.recovery_s, default=0.0)
    if longest > HANG_S + READY_S:
        report.slow.append(f"all workers were READY again after {longest:.2f} s, expected {HANG_S + READY_S:g} s")
    return report


def _spring(report: Report, base: str, trap: bytes) -> None:
    """Ask what the network hangs on; the safe action must come, and in time."""
    started = time.monotonic()
    with local_session() as session:
        headers = {"Content-Type": "application/json"}
        answer = session.post(prediction_url(base, SECOND), data=trap, headers=headers, timeout=GIVE_UP_S)
    seconds = time.monotonic() - started
    report.require(answer.status_code == 200 and _is_safe(answer.text), f"the trap was answered {answer.text[:200]}")
    if seconds > DEADLINE_MS / 1e3 + LATE_S:
        report.slow.append(f"the trap was answered after {seconds:.2f} s, expected {DEADLINE_MS / 1e3 + LATE_S:g} s")


def _is_safe(body: str) -> bool:
    """Whether an answer, of which a load keeps no more than the beginning, says that it came of the deadline."""
    return re.search(r'"kind": ?"deadline"', body) is not None


def as_answered(record: Sent) -> Sent:
    """`record`, of which the safe action after a deadline is an outcome of its own."""
    return record._replace(outcome=SAFE) if record.wrong and _is_safe(record.note) else record


def check_answers(report: Report, sent: Sequence[Sent], trapped: Sequence[float]) -> None:
    """All in time; before the first trap nothing but the policy's own; a worker that ends costs its batch at most."""
    first = trapped[0] if trapped else float("inf")
    early = (record for record in sent if record.ended < first and record.outcome in {SAFE, *DIED})
    report.slow += complaints("no own action before the first trap", early)
    died = [record for record in sent if record.outcome in DIED]
    allowed = len(trapped) * 2
    report.require(len(died) <= allowed, f"{len(died)} requests ended with a worker, expected at most {allowed}")
    late = [record for record in sent if record.ended - record.sent > DEADLINE_MS / 1e3 + LATE_S]
    report.slow += complaints("answered late", late)
    report.facts["outcomes"] = dict(sorted(Counter(record.outcome for record in sent).items()))
    report.facts["longest answer, s"] = round(max((record.ended - record.sent for record in sent), default=0.0), 2)


def _served(management: Management) -> ServedVersion:
    served = management.version(SECOND)
    if served is None:
        raise RuntimeError(f"{SECOND}: is not on the server any more")
    return served


def _pids(management: Management) -> set[int]:
    return {worker.pid for worker in _served(management).workers}


def _wait_replaced(management: Management, before: set[int]) -> float:
    """When all workers are READY and one is not among those `before`; `TimeoutError` if that takes long."""
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        try:
            served = _served(management)
        except requests.RequestException:
            continue
        if served.ready_workers == WORKERS and {worker.pid for worker in served.workers} != before:
            return time.monotonic()
        time.sleep(POLL_S)
    raise TimeoutError(f"no worker was replaced within {GIVE_UP_S:g} s of a hang")
