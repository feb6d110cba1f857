"""Drill `kills`: commands and servers are killed at random moments, and nothing is left half done."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import requests

from benchmarks.archives import FIRST, SECOND, Archives
from benchmarks.drills.report import Report
from benchmarks.drills.rig import Rig
from benchmarks.load import Load, Pace, Sent
from benchmarks.servers import ServeProcess
from carla_policy_tools.lifecycle.records import Registry

VERBS = ("register", "promote", "rollback", "retire")
TARGETS = ("verb", "server", "serve")
PACE = Pace(rate=100.0)
SETTLE_S = 30.0

State = tuple[frozenset[str], str | None]


@dataclass(frozen=True)
class Point:
    """One kill: which process, while which verb runs, how much of the verb's usual duration after its start."""

    target: str
    verb: str
    share: float

    def __str__(self) -> str:
        return f"kill -9 of the {self.target} at {self.share:.0%} of {self.verb}"


def points(count: int, seed: int) -> list[Point]:
    """All combinations of targets and verbs in turn, each at a random moment."""
    chance = random.Random(seed)
    combinations = [(target, verb) for target in TARGETS for verb in VERBS]
    chance.shuffle(combinations)
    return [Point(*combinations[number % len(combinations)], chance.random()) for number in range(count)]


def run(archives: Archives, *, kills: int = 30, seed: int = 0, pace: Pace = PACE) -> Report:
    """`kills` points in time; after each the server starts anew on the same registry.

    Requests are sent while a command is the target: its death must not be noticed. A server's death is, so then none.
    """
    report = Report("kills")
    sent: list[Sent] = []
    with Rig(archives, [FIRST, SECOND]) as rig, ExitStack() as servers:
        server = servers.enter_context(rig.serve(FIRST))
        usual = _usual_durations(rig)
        report.facts["usual durations, s"] = {verb: round(seconds, 2) for verb, seconds in usual.items()}
        for point in points(kills, seed):
            before = len(report.broken)
            with report.noting_failures():
                sent += _strike(rig, server, report, archives, point, usual[point.verb], pace)
            report.faults += 1
            server = _start_anew(rig, server, servers, report)
            report.broken[before:] = [f"{point}: {finding}" for finding in report.broken[before:]]
        server.stop()
        left = rig.wait_gone()
        report.require(not left, f"left behind at the end: {left}")
    report.count(sent, [], sent)
    return report


def _usual_durations(rig: Rig) -> dict[str, float]:
    """Seconds that each verb takes when nothing happens; leaves the state as it was."""
    commands = (("register", SECOND), ("promote", SECOND), ("rollback",), ("retire", SECOND))
    return {command[0]: rig.must(*command).seconds for command in commands}


def _strike(
    rig: Rig, server: ServeProcess, report: Report, archives: Archives, point: Point, usual_s: float, pace: Pace
) -> list[Sent]:
    """Prepare, kill and look; the requests that were sent meanwhile."""
    sent: list[Sent] = []
    _prepare(rig, point.verb)
    states = (rig.declared(), _after(point.verb, rig.declared()))
    if point.target == "verb":
        with Load(server.base, archives.questions, pace=pace) as load:
            _kill_during(rig, server, point, usual_s)
            _check_settles(report, rig, server, states)
        sent = load.stop()
    else:
        _kill_during(rig, server, point, usual_s)
        status, _ = server.wait()
        report.require(status != 0, "`serve` ended with 0 after a kill")
    declared = rig.declared()
    report.require(declared in states, f"declared {declared}, expected one of {states}")
    return sent


def _start_anew(rig: Rig, before: ServeProcess, servers: ExitStack, report: Report) -> ServeProcess:
    """A new server on the same registry, which must find and leave everything in order."""
    if before.process.poll() is None:
        before.stop()
    declared = rig.declared()
    started = time.monotonic()
    server = servers.enter_context(rig.serve())
    report.recovery_s.append(time.monotonic() - started)
    with report.noting_failures():
        _check_settles(report, rig, server, (declared,))
        left = rig.wait_gone(spare=[server.process.pid])
        report.require(not left, f"left behind: {left}")
    return server


def _prepare(rig: Rig, verb: str) -> None:
    """Bring versions into the state from which `verb` does something."""
    versions, promoted = rig.declared()
    if verb == "register" and SECOND in versions:
        if promoted == SECOND:
            rig.must("promote", FIRST)
        rig.must("retire", SECOND)
    elif verb != "register" and SECOND not in versions:
        rig.must("register", SECOND)
    if verb == "rollback" and promoted != SECOND:
        rig.must("promote", SECOND)
    elif verb in ("promote", "retire") and promoted == SECOND:
        rig.must("promote", FIRST)


def _after(verb: str, state: State) -> State:
    versions, promoted = state
    return {
        "register": (versions | {SECOND}, promoted),
        "promote": (versions, SECOND),
        "rollback": (versions, FIRST),
        "retire": (versions - {SECOND}, promoted),
    }[verb]


def _kill_during(rig: Rig, server: ServeProcess, point: Point, usual_s: float) -> None:
    command = rig.start(point.verb, *([] if point.verb == "rollback" else [SECOND]))
    time.sleep(point.share * usual_s)
    pid = {"verb": command.pid, "server": server.ready["server_pid"], "serve": server.process.pid}[point.target]
    os.kill(pid, signal.SIGKILL)
    command.communicate()


def _check_settles(report: Report, rig: Rig, server: ServeProcess, states: tuple[State, ...]) -> None:
    """Within a while nothing is under way, the server is what the registry declares, and that is one of `states`."""
    status = _poll(rig.status, lambda status: not status["drift"] and not status["under_way"])
    report.require(not status["drift"], f"drift: {status['drift']}")
    report.require(not status["under_way"], f"still under way: {status['under_way']}")
    declared = rig.declared()
    report.require(declared in states, f"declared {declared}, expected one of {states}")
    Registry.model_validate_json(rig.registry.read_text())
    management = f"{server.ready['management']}/models/carla_policy"
    listed = frozenset(found["modelVersion"] for found in requests.get(f"{management}/all", timeout=10).json())
    default: str | None = requests.get(management, timeout=10).json()[0]["modelVersion"]
    report.require((listed, default) == declared, f"the server has {listed}, default {default}; declared: {declared}")


def _poll(ask: Callable[[], dict[str, Any]], good: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + SETTLE_S
    while not good(answer := ask()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return answer
