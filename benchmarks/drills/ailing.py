"""Drill `health`: `/readyz` and `carla-policy health` tell a failure soon, and are green only when all is well."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial

from benchmarks.archives import FIRST, SECOND, Archives
from benchmarks.drills.readiness import Readiness, all_workers_ready
from benchmarks.drills.report import Report
from benchmarks.drills.rig import Rig
from benchmarks.servers import ServeProcess
from carla_policy_tools.ports import choose_ports

RED_S = 2.0
GREEN_S = 60.0
VERSIONS = {FIRST, SECOND}


def run(archives: Archives, *, rounds: int = 1, stopped_s: float = 5.0) -> Report:
    """`rounds` times: kill -9 of a worker of each version, SIGSTOP of one for `stopped_s`, and a new start."""
    report = Report("health")
    with Rig(archives, sorted(VERSIONS)) as rig, report.noting_failures():
        ports = choose_ports(0)
        fixed = {
            "--port": ports.inference,
            "--management-port": ports.management,
            "--metrics-port": ports.metrics,
            "--health-port": ports.health,
        }
        options = [str(part) for pair in fixed.items() for part in pair]
        url = f"{ports.url('health')}/readyz"
        well = partial(all_workers_ready, ports.url("management"), VERSIONS)
        for _ in range(rounds):
            with Readiness(url, well) as readiness, rig.serve("--promote", SECOND, *options) as server:
                _check_start(report, readiness, server)
                for version in (SECOND, FIRST):
                    _check_fault(report, rig, readiness, f"kill -9 of {version}'s worker", partial(_kill, rig, version))
            _check_truth(report, readiness)
            with rig.serve(*options):
                _check_stopped_worker(report, rig, url, stopped_s)
    return report


def _kill(rig: Rig, version: str) -> None:
    os.kill(_worker(rig, version), signal.SIGKILL)


def _worker(rig: Rig, version: str) -> int:
    return int(rig.status()["versions"][version]["workers"][0]["pid"])


def _check_start(report: Report, readiness: Readiness, server: ServeProcess) -> None:
    """While it starts, the server must not be green; `_check_truth` looks at what was said meanwhile."""
    ready = time.monotonic()
    green = readiness.wait(True, ready, RED_S + GREEN_S)
    report.faults += 1
    report.facts["green after the server was ready, s"] = round(green - ready, 2)
    report.require(server.process.poll() is None, "the server has ended")


def _check_fault(report: Report, rig: Rig, readiness: Readiness, name: str, fault: Callable[[], None]) -> None:
    start = time.monotonic()
    fault()
    happened = time.monotonic()
    red = readiness.wait(False, start, 2 * RED_S)
    verdict = rig.run("health")
    report.facts[f"{name}: red after, s"] = round(red - happened, 2)
    if red - happened > RED_S:
        report.slow.append(f"{name}: red after {red - happened:.2f} s, expected {RED_S:g} s")
    green = readiness.wait(True, red, GREEN_S)
    if verdict.ended < green:
        report.require(verdict.status == 1, f"{name}: `health` ended with {verdict.status} while it was red")
    report.recovery_s.append(green - happened)
    report.require(rig.run("health").ok, f"{name}: `health` does not end with 0 once /readyz is green")
    report.faults += 1


def _check_truth(report: Report, readiness: Readiness) -> None:
    """Green while workers were missing is a lie, but for the two seconds that a failure may stay unnoticed."""
    samples = readiness.samples
    for position, sample in enumerate(samples):
        recently_well = any(s.well for s in samples[:position] if sample.asked - s.answered <= RED_S)
        report.require(not sample.green or sample.well or recently_well, f"green while workers were missing: {sample}")


def _check_stopped_worker(report: Report, rig: Rig, url: str, stopped_s: float) -> None:
    """A worker that is stopped is READY to TorchServe; only a question to it can tell."""
    pid = _worker(rig, SECOND)
    with Readiness(url) as readiness:
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            red = readiness.wait(False, stopped, 2 * RED_S)
            verdict = rig.run("health")
            time.sleep(max(0.0, stopped + stopped_s - time.monotonic()))
        finally:
            os.kill(pid, signal.SIGCONT)
        continued = time.monotonic()
        lies = [s for s in readiness.samples if s.green and red < s.asked and s.answered < continued]
        green = readiness.wait(True, continued, GREEN_S)
    report.require(verdict.status == 1, f"stopped worker: `health` ended with {verdict.status}")
    report.require(not lies, f"green while the worker was stopped: {lies[:3]}")
    report.facts["stopped worker: red after, s"] = round(red - stopped, 2)
    if red - stopped > RED_S:
        report.slow.append(f"stopped worker: red after {red - stopped:.2f} s, expected {RED_S:g} s")
    report.recovery_s.append(green - continued)
    report.faults += 1
