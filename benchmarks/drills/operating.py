"""Drill `operators`: many of them change the same versions at once, and what is left is what the history says."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.archives import SOURCES, Archives
from benchmarks.drills.report import Report
from benchmarks.drills.rig import Outcome, Rig
from benchmarks.load import Load, Pace, between

VERSIONS = tuple(SOURCES)
PACE = Pace(rate=50.0, timeout_s=30.0)
"""Sixteen Pythons that start at once take the processor away from the server: slow is no loss here, and what the
server can no longer do in time must not pile up."""
LONGEST_PAUSE_S = 4.0
NICENESS = 10
"""Of the commands: operators sit at machines of their own."""
WEIGHTS = {"register": 3, "promote": 4, "rollback": 2, "retire": 3, "status": 2}
EXPECTED_STATUS = (0, 1)
TRACEBACK = "Traceback"


def run(
    archives: Archives,
    *,
    versions: Sequence[str] = VERSIONS,
    operators: int = 16,
    seconds: float = 60.0,
    seed: int = 0,
    pace: Pace = PACE,
    quiet_s: float = 5.0,
) -> Report:
    """Random verbs on random versions from a seed, for about `seconds`; each command is a fault to the others.

    All `versions` are registered at first, the first of them promoted.
    """
    report = Report("operators")
    outcomes: list[Outcome] = []
    with Rig(archives, versions, niceness=NICENESS) as rig, rig.serve("--promote", versions[0]) as server:
        with Load(server.base, archives.questions, pace=pace) as load:
            quiet = load.rest(quiet_s)
            start = time.monotonic()

            def operate(number: int) -> None:
                choice = random.Random(f"{seed}-{number}")
                while time.monotonic() < start + seconds:
                    time.sleep(choice.uniform(0, LONGEST_PAUSE_S))
                    outcomes.append(rig.run(*_command(choice, versions)))

            threads = [threading.Thread(target=operate, args=(number,)) for number in range(operators)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            end = time.monotonic()
        sent = load.stop()
        report.faults = len(outcomes)
        with report.noting_failures():
            content = json.loads(rig.registry.read_text())
            registered, promoted = fold(content["history"])
            report.require_state(rig, registered, promoted or "")
            _check_history(report, content["history"], outcomes, versions)
            report.require(server.process.poll() is None, "the server has ended")
            status = rig.status()
            report.require(status["default"] == promoted, f"{status['default']} is the default, promoted: {promoted}")
            report.require(not status["under_way"], f"still under way: {status['under_way']}")
    report.count(sent, between(sent, quiet, start), between(sent, start, end))
    report.facts["commands by verb and exit status"] = dict(
        sorted(Counter(f"{outcome.arguments[0]} {outcome.status}" for outcome in outcomes).items())
    )
    for outcome in outcomes:
        sane = outcome.status in EXPECTED_STATUS and TRACEBACK not in outcome.error
        report.require(sane, f"not an answer to an operator: {outcome}")
    return report


def _command(choice: random.Random, versions: Sequence[str]) -> tuple[str, ...]:
    (verb,) = choice.choices(list(WEIGHTS), list(WEIGHTS.values()))
    return (verb,) if verb in ("rollback", "status") else (verb, choice.choice(versions))


def fold(history: Iterable[Mapping[str, Any]]) -> tuple[set[str], str | None]:
    """The versions and the promoted one that the events of a registry lead to."""
    versions: set[str] = set()
    promoted: str | None = None
    for event in history:
        if event["verb"] == "register":
            versions.add(event["version"])
        elif event["verb"] == "retire":
            versions.remove(event["version"])
        elif event["verb"] in ("promote", "rollback"):
            promoted = event["version"]
    return versions, promoted


def _check_history(
    report: Report, history: list[Mapping[str, Any]], outcomes: Iterable[Outcome], declared: Iterable[str]
) -> None:
    """Each register and retire that succeeded is in the history, and no other but those `declared` by the start."""
    counted = ("register", "retire")
    told: Counter[tuple[str, ...]] = Counter(
        (event["verb"], event["version"]) for event in history if event["verb"] in counted
    )
    told.subtract(("register", version) for version in declared)
    done = Counter(outcome.arguments for outcome in outcomes if outcome.ok and outcome.arguments[0] in counted)
    differing = {key: (told[key], done[key]) for key in told | done if told[key] != done[key]}
    report.require(not differing, f"in the history and done by commands: {differing}")
    sequence = [event["sequence"] for event in history]
    report.require(sequence == list(range(1, len(history) + 1)), "the history's numbers have gaps")
