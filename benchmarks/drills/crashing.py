"""Drill `workers`: workers are killed under load, one after the other, and take no more than their batch with them."""

from __future__ import annotations

import itertools
import math
import os
import random
import signal
import time
from collections import Counter

import requests

from benchmarks.archives import FIRST, Archives
from benchmarks.drills.report import Report, complaints
from benchmarks.drills.rig import Rig
from benchmarks.load import PACE, Load, Pace, Sent, between
from carla_policy_tools.configuration import load_profile
from carla_policy_tools.lifecycle.management import POLL_S, Management, ServedVersion

WORKERS = 2
DIED = frozenset({"500", "507"})
"""What TorchServe answers to the batch of a worker that died."""
READY_S = 5.0
GIVE_UP_S = 60.0


def run(
    archives: Archives,
    *,
    kills: int = 20,
    interval_s: float = 10.0,
    seed: int = 0,
    pace: Pace = PACE,
    quiet_s: float = 5.0,
) -> Report:
    """`kills` times `kill -9` of one of the promoted version's workers, `interval_s` apart or once all are READY again.

    The moment within an interval, and the worker, are random. Another kill of a worker that is still loading would
    show nothing new: TorchServe restarts it after a longer pause.
    """
    report = Report("workers")
    chance = random.Random(seed)
    killed: list[float] = []
    with (
        Rig(archives, [FIRST]) as rig,
        rig.serve(FIRST, "--profile", str(rig.profile(workers=WORKERS))) as server,
        Management(server.ready["management"]) as management,
    ):
        with Load(server.base, archives.questions, pace=pace) as load:
            quiet = load.rest(quiet_s)
            start = time.monotonic()
            with report.noting_failures():
                for number in range(kills):
                    due = start + (number + chance.random() / 2) * interval_s
                    time.sleep(max(0.0, due - time.monotonic()))
                    pid = chance.choice([worker.pid for worker in _served(management).workers])
                    killed.append(time.monotonic())  # before it, since who waits may be told at once
                    os.kill(pid, signal.SIGKILL)
                    report.faults += 1
                    report.recovery_s.append(_wait_ready(management, pid) - killed[-1])
            time.sleep(max(0.0, start + kills * interval_s - time.monotonic()))
            end = time.monotonic()
        sent = load.stop()
    report.count(sent, between(sent, quiet, start), between(sent, start, end), excused=DIED)
    check_losses(report, sent, killed, load_profile("realtime").batch_size)
    longest = max(report.recovery_s, default=0.0)
    if longest > READY_S:
        report.slow.append(f"all workers were READY again after {longest:.2f} s, expected {READY_S:g} s")
    return report


def _served(management: Management) -> ServedVersion:
    served = management.version(FIRST)
    if served is None:
        raise RuntimeError(f"{FIRST}: is not on the server any more")
    return served


def _wait_ready(management: Management, killed: int) -> float:
    """When all workers are READY, and none of them is the one that was `killed`; `TimeoutError` if that takes long."""
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        try:
            served = _served(management)
        except requests.RequestException:
            continue
        if served.ready_workers == WORKERS and killed not in [worker.pid for worker in served.workers]:
            return time.monotonic()
        time.sleep(POLL_S)
    raise TimeoutError(f"not all workers were READY again {GIVE_UP_S:g} s after a kill")


def check_losses(report: Report, sent: list[Sent], killed: list[float], batch_size: int) -> None:
    """Each kill may cost the batch that the worker had; before the first one nobody may have lost anything."""
    died = [record for record in sent if record.outcome in DIED]
    first = killed[0] if killed else math.inf
    report.broken += complaints("lost before the first kill", (record for record in died if record.ended < first))
    costs = [
        sum(since <= record.ended < until for record in died)
        for since, until in itertools.pairwise([*killed, math.inf])
    ]
    for number, cost in enumerate(costs, start=1):
        report.require(cost <= batch_size, f"kill {number} cost {cost} requests, expected at most {batch_size}")
    report.facts["requests lost by kill"] = dict(sorted(Counter(costs).items()))
    report.facts["their status"] = dict(sorted(Counter(record.outcome for record in died).items()))
