"""Drill `broken`: versions that cannot be served are refused in time, and nobody else notices."""

from __future__ import annotations

import time
from collections.abc import Sequence

import requests

from benchmarks.archives import FIRST, Archives
from benchmarks.drills.damage import KINDS, broken_archive
from benchmarks.drills.report import Report
from benchmarks.drills.rig import Rig
from benchmarks.load import PACE, Load, Pace, between
from benchmarks.servers import ServeProcess

STARTUP_S, RESPONSE_S = 20, 3
DEADLINE_S = 2 * STARTUP_S + 20.0
"""Verification and loading have `STARTUP_S` each; the rest is for golden requests, and for cleaning up."""
ANSWER_S = 5.0
"""Who asks a version by name while it is being refused has an answer, a refusal, by then."""
ASKING = Pace(rate=2.0, connections=64, timeout_s=30.0)
REASONS = {
    "truncated model": "model.pt",
    "golden mismatch": "golden.npz: vector 3, deterministic_actions",
    "missing file": "carla_policy.heads",
    "hangs in verification": "did not end within",
    "hangs in initialize": "not ready in time",
    "hangs in handle": "golden",
    "raises at import": "no such device",
    "exits at once": "does not load",
    "answers differently": "golden observation",
}
"""What `register` has to say about each kind."""


def run(archives: Archives, *, kinds: Sequence[str] = KINDS, pace: Pace = PACE, quiet_s: float = 5.0) -> Report:
    """One registration of each kind of broken version, beside a load on the promoted one."""
    report = Report("broken")
    with Rig(archives, [FIRST]) as rig:
        profile = str(rig.profile(startup_timeout_s=STARTUP_S, response_timeout_s=RESPONSE_S))
        with rig.serve(FIRST, "--profile", profile) as server:
            with Load(server.base, archives.questions, pace=pace) as load:
                quiet = load.rest(quiet_s)
                start = time.monotonic()
                for number, kind in enumerate(kinds):
                    _refuse(rig, server, report, archives, kind, f"v0.9.{number}")
                end = time.monotonic()
            sent = load.stop()
            declared = rig.declared()
            report.require(declared == (frozenset([FIRST]), FIRST), f"declared afterwards: {declared}")
    report.count(sent, between(sent, quiet, start), between(sent, start, end))
    return report


def _refuse(rig: Rig, server: ServeProcess, report: Report, archives: Archives, kind: str, version: str) -> None:
    """Register one broken version, while somebody asks it by name, which nobody may until it is registered."""
    broken_archive(kind, version, rig.store)
    asking = Load(server.base, archives.questions, version=version, pace=ASKING)
    with asking:
        outcome = rig.run("register", version)
    report.faults += 1
    asked = asking.stop()
    longest = max((record.latency_s for record in asked), default=0.0)
    report.facts[kind] = {
        "seconds": round(outcome.seconds, 1),
        "error": outcome.error.strip(),
        "asked by name": len(asked),
        "longest wait, s": round(longest, 2),
    }
    told = sorted({record.outcome for record in asked} - {"404"})
    report.require(not told, f"{kind}: who asked it by name got {', '.join(told)}, expected 404")
    if longest > ANSWER_S:
        report.slow.append(f"{kind}: who asked it by name waited {longest:.1f} s, expected at most {ANSWER_S:g} s")
    report.require(outcome.status == 1, f"{kind}: register ended with status {outcome.status}, expected 1")
    report.require(REASONS[kind] in outcome.error, f"{kind}: expected {REASONS[kind]!r} in the error: {outcome.error}")
    if outcome.seconds > DEADLINE_S:
        report.slow.append(f"{kind}: took {outcome.seconds:.1f} s, expected at most {DEADLINE_S:g} s")
    listed = requests.get(f"{server.ready['management']}/models/carla_policy/all", timeout=10).json()
    present = [found["modelVersion"] for found in listed]
    report.require(present == [FIRST], f"{kind}: left on the server: {present}")
