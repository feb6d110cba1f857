"""Drill `overload`: many times the load that a version can carry, for a while; what is refused is refused at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from benchmarks.archives import SECOND, Archives
from benchmarks.drills.damage import burdened_archive
from benchmarks.drills.report import Report, complaints
from benchmarks.drills.rig import Rig
from benchmarks.load import Load, Pace, Sent, figures, percentile
from benchmarks.servers import ServeProcess
from carla_policy_tools.configuration import load_profile, read_properties
from carla_policy_tools.lifecycle.management import Management
from carla_policy_tools.paths import CONFIG_PROPERTIES

SERVICE_MS = 5.0
"""What a row costs a worker. The shipped queue must be worked off within `RECOVERY_S`, which bounds it."""
REFUSED = frozenset({"503"})
REFUSAL_S = 0.25
RECOVERY_S = 2.0
GIVE_UP_S = 20.0
MEASURING = Pace(rate=0, connections=8, timeout_s=30.0)
PROBE = Pace(rate=20.0, connections=64, timeout_s=30.0)
"""A client that asks all the time; when it is well again, so is the server."""
FLOOD_CONNECTIONS = 600
"""More than the queue holds: each request that is accepted keeps one until it is answered."""
SLACK = 1.5
WELL = 10
"""So many answers one after the other, as fast as before, are the baseline again."""


def run(
    archives: Archives, *, factor: float = 10.0, seconds: float = 60.0, quiet_s: float = 5.0, timeout_s: float = 30.0
) -> Report:
    """Measure what a version that takes `SERVICE_MS` for a row can carry, then send `factor` times that."""
    report = Report("overload", faults=1)
    with Rig(archives, []) as rig:
        burdened_archive(f"__import__('time').sleep({SERVICE_MS / 1000} * len(data))", SECOND, rig.store)
        with rig.serve(SECOND) as server, Management(server.ready["management"]) as management:
            workers = _workers(management)
            capacity = _capacity(server, archives, quiet_s)
            with Load(server.base, archives.questions, pace=PROBE) as probe:
                probe.rest(quiet_s)
                flood_pace = Pace(factor * capacity, FLOOD_CONNECTIONS, timeout_s)
                with Load(server.base, archives.questions, pace=flood_pace) as load:
                    time.sleep(seconds)
                flood = load.stop()
                start, end = flood[0].due, max(record.due for record in flood)
                undisturbed = [record for record in probe.sent if record.ended < start]
                try:
                    report.recovery_s.append(_wait_well(probe, end, undisturbed) - end)
                except TimeoutError as error:
                    report.slow.append(str(error))
            report.require(_workers(management) == workers, "a worker was started anew")
    report.count([*probe.sent, *flood], undisturbed, flood, excused=REFUSED)
    report.broken += complaints("refused before the overload", (record for record in undisturbed if record.lost))
    report.facts["it can carry, requests/s"] = round(capacity)
    check_flood(report, flood, capacity)
    if report.recovery_s and report.recovery_s[0] > RECOVERY_S:
        report.slow.append(f"as before {report.recovery_s[0]:.2f} s after the overload, expected {RECOVERY_S:g} s")
    return report


def _capacity(server: ServeProcess, archives: Archives, seconds: float) -> float:
    """Requests a second that are answered where each client waits for its answer."""
    with Load(server.base, archives.questions, pace=MEASURING) as load:
        load.wait_answered(MEASURING.connections * 10, timeout_s=60)
        start, before = time.monotonic(), len(load.sent)
        time.sleep(max(seconds, 1.0))
        return (len(load.sent) - before) / (time.monotonic() - start)


def _workers(management: Management) -> set[int]:
    served = management.version(SECOND)
    return {worker.pid for worker in served.workers} if served else set()


def _wait_well(probe: Load, end: float, undisturbed: Sequence[Sent]) -> float:
    """When `WELL` requests one after the other were answered as before; the first of them was due then."""
    limit = 2 * figures(undisturbed).p99_ms / 1000
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        row: list[Sent] = []
        for record in sorted(record for record in probe.sent if record.due > end):
            row = [*row, record] if not record.lost and record.latency_s <= limit else []
            if len(row) == WELL:
                return row[0].due
        time.sleep(0.05)
    raise TimeoutError(f"not as before {GIVE_UP_S:g} s after the overload: {WELL} answers within {limit * 1000:.0f} ms")


def check_flood(report: Report, flood: Sequence[Sent], capacity: float) -> None:
    """Some must be refused, and at once; who is accepted waits for the queue and no longer."""
    refused = sorted(record.latency_s for record in flood if record.outcome in REFUSED)
    accepted = sorted(record.latency_s for record in flood if not record.lost)
    report.require(bool(refused), "nothing was refused: this was no overload")
    report.require(bool(accepted), "nothing was accepted")
    queue = int(read_properties(CONFIG_PROPERTIES)["job_queue_size"]) + 2 * load_profile("realtime").batch_size
    bound = queue / capacity * SLACK
    refusal, acceptance = percentile(refused, 0.99), percentile(accepted, 0.99)
    report.facts["refused"] = f"{len(refused)}, P99 {refusal * 1000:.0f} ms"
    report.facts["accepted"] = f"{len(accepted)}, P99 {acceptance * 1000:.0f} ms, bound {bound * 1000:.0f} ms"
    report.facts["what the refused were told"] = dict(Counter(r.note for r in flood if r.outcome in REFUSED))
    if refusal > REFUSAL_S:
        report.slow.append(f"P99 of refusals is {refusal:.3f} s, expected at most {REFUSAL_S:g} s")
    if acceptance > bound:
        report.slow.append(f"P99 of the accepted is {acceptance:.2f} s, expected at most {bound:.2f} s")
