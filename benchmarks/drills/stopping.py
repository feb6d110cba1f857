"""Drill `stop`: the server is told to stop under load, and nobody is left without an answer."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Sequence

from benchmarks.archives import FIRST, SECOND, Archives
from benchmarks.drills.report import Report, complaints
from benchmarks.drills.rig import Rig
from benchmarks.load import PACE, Load, Pace, Sent

SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_S = 10.0
AFTERWARDS_S = 0.5
REFUSALS = ("200", "refused")


def run(
    archives: Archives,
    *,
    signals: Sequence[signal.Signals] = SIGNALS,
    pace: Pace = PACE,
    quiet_s: float = 5.0,
) -> Report:
    """Each of `signals` to a server of its own; each is a fault."""
    report = Report("stop")
    before: list[Sent] = []
    after: list[Sent] = []
    for number in signals:
        earlier, later = _stop_once(archives, report, number, pace, quiet_s)
        before += earlier
        after += later
    report.faults = len(signals)
    report.count(before, before, [record for record in after if record.outcome == "200"])
    return report


def _stop_once(
    archives: Archives, report: Report, number: signal.Signals, pace: Pace, quiet_s: float
) -> tuple[list[Sent], list[Sent]]:
    """The requests that were sent before the signal, and those after it."""
    with (
        Rig(archives, [FIRST, SECOND]) as rig,
        rig.serve() as server,
        Load(server.base, archives.questions, pace=pace) as load,
    ):
        load.rest(quiet_s)
        told = time.monotonic()
        status, error = server.stop(number)
        exited = time.monotonic()
        time.sleep(AFTERWARDS_S)
        sent = load.stop()
        left = rig.wait_gone()
    after = [record for record in sent if record.sent >= told]
    report.broken += complaints(
        f"{number.name}: neither answered nor refused",
        (r for r in after if r.outcome not in REFUSALS and not (r.outcome == "503" and r.note)),
    )
    report.require((status, error) == (0, ""), f"{number.name}: ended with status {status}: {error}")
    report.require(not left, f"{number.name}: left behind {left}")
    report.recovery_s.append(exited - told)
    if exited - told > EXIT_S:
        report.slow.append(f"{number.name}: exit took {exited - told:.1f} s, expected at most {EXIT_S:g} s")
    report.facts[f"{number.name}, what became of later requests"] = dict(Counter(record.outcome for record in after))
    return [record for record in sent if record.sent < told], after
