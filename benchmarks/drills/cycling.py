"""Drill `cycles`: versions come and go under load, and every request is answered by a version promoted at that time."""

from __future__ import annotations

import statistics
import time

from benchmarks.archives import FIRST, SECOND, Archives
from benchmarks.drills.promotions import Promotions
from benchmarks.drills.readiness import Readiness
from benchmarks.drills.report import Report, complaints
from benchmarks.drills.rig import Outcome, Rig
from benchmarks.load import PACE, Load, Pace, between

WARM_UP_S = 3.0
P99_FACTOR = 3.0


def run(archives: Archives, *, cycles: int = 100, pace: Pace = PACE, quiet_s: float = 15.0) -> Report:
    """`cycles` times register, promote, rollback and retire of a second version, as an operator types them.

    Latencies undisturbed are those of `quiet_s` before and `quiet_s` after.
    """
    report = Report("cycles")
    promotions = Promotions(FIRST)
    outcomes: list[Outcome] = []
    with Rig(archives, [FIRST, SECOND]) as rig, rig.serve(FIRST) as server:
        readiness = Readiness(f"{server.ready['health']}/readyz")
        with readiness, Load(server.base, archives.questions, pace=pace) as load:
            quiet = load.rest(quiet_s, WARM_UP_S)
            start = time.monotonic()
            with report.noting_failures():
                for _ in range(cycles):
                    outcomes.append(rig.must("register", SECOND))
                    outcomes.append(rig.must("promote", SECOND))
                    promotions.add(SECOND, outcomes[-1])
                    outcomes.append(rig.must("rollback"))
                    promotions.add(FIRST, outcomes[-1])
                    outcomes.append(rig.must("retire", SECOND))
                    report.faults += 1
            end = time.monotonic()
            time.sleep(quiet_s)
        sent = load.stop()
        with report.noting_failures():
            report.require_state(rig, {FIRST}, FIRST)
    undisturbed = [*between(sent, quiet, start), *between(sent, end)]
    report.count(sent, undisturbed, between(sent, start, end))
    report.forbid_red(readiness, start, end)
    report.broken += complaints("answered by a version that was not promoted then", promotions.strangers(sent))
    answered = {version: sum(record.version == version for record in sent) for version in (FIRST, SECOND)}
    report.facts["answers by version"] = answered
    report.require(all(answered.values()) or not cycles, f"a version never answered: {answered}")
    for verb in ("register", "promote", "rollback", "retire"):
        seconds = [outcome.seconds for outcome in outcomes if outcome.arguments[0] == verb]
        if seconds:
            report.facts[f"{verb}, s"] = f"median {statistics.median(seconds):.2f}, longest {max(seconds):.2f}"
    report.limit_p99(P99_FACTOR)
    return report
