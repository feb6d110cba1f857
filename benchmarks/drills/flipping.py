"""Drill `flips`: the promoted version changes a thousand times under load; each change takes effect at once."""

from __future__ import annotations

import http.client
import json
import time
from urllib.parse import urlsplit

from benchmarks.archives import FIRST, SECOND, Archives
from benchmarks.drills.promotions import Promotions
from benchmarks.drills.readiness import Readiness
from benchmarks.drills.report import Report, complaints
from benchmarks.drills.rig import Outcome, Rig
from benchmarks.load import PACE, Load, Pace, between, percentile
from carla_policy_tools.lifecycle.promoting import promote
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.urls import prediction_url

EFFECT_S = 0.1
"""So long after a promotion the new version must answer."""
GIVE_UP_S = 2.0


def run(
    archives: Archives, *, flips: int = 1000, commands: int = 50, pace: Pace = PACE, quiet_s: float = 5.0
) -> Report:
    """`flips` promotions, turn by turn of two versions; the first `commands` of them as an operator types them.

    The others call what the command calls, without the half second that Python takes to start.
    """
    report = Report("flips")
    promotions = Promotions(SECOND)
    effects: list[float] = []
    with Rig(archives, [FIRST, SECOND]) as rig, rig.serve("--promote", SECOND) as server:
        registry_file = RegistryFile.of(rig.store)
        readiness = Readiness(f"{server.ready['health']}/readyz")
        with readiness, Load(server.base, archives.questions, pace=pace) as load:
            quiet = load.rest(quiet_s)
            start = time.monotonic()
            with report.noting_failures():
                for number in range(flips):
                    target = FIRST if promotions.promoted == SECOND else SECOND
                    outcome = rig.must("promote", target) if number < commands else _call(registry_file, target)
                    promotions.add(target, outcome)
                    effects.append(_seconds_until(server.base, archives.questions.bodies[0], target))
                    report.faults += 1
            end = time.monotonic()
        sent = load.stop()
        with report.noting_failures():
            report.require_state(rig, {FIRST, SECOND}, promotions.promoted)
    report.count(sent, between(sent, quiet, start), between(sent, start, end))
    report.forbid_red(readiness, start, end)
    report.broken += complaints("answered by a version that was not promoted then", promotions.strangers(sent))
    effects.sort()
    report.facts["ms until the new version answers"] = (
        f"median {percentile(effects, 0.5) * 1000:.1f}, longest {percentile(effects, 1.0) * 1000:.1f}"
    )
    late = [seconds for seconds in effects if seconds >= GIVE_UP_S]
    report.require(not late, f"{len(late)} promotions had no effect within {GIVE_UP_S:g} s")
    if effects and effects[-1] > EFFECT_S:
        report.slow.append(f"a promotion took effect after {effects[-1]:.3f} s, expected {EFFECT_S:g} s")
    return report


def _call(registry_file: RegistryFile, version: str) -> Outcome:
    started = time.monotonic()
    promote(registry_file, version)
    return Outcome(("promote", version), 0, "", "", started, time.monotonic())


def _seconds_until(base: str, body: str, version: str) -> float:
    """Seconds from now until `version` answers where none is named, at most `GIVE_UP_S`."""
    url = urlsplit(prediction_url(base, None))
    started = time.monotonic()
    while time.monotonic() - started < GIVE_UP_S:
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=GIVE_UP_S)
        try:
            connection.request("POST", url.path, body, {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if answer.get("version") == version:
            return time.monotonic() - started
    return GIVE_UP_S
