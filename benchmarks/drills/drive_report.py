"""What the drill `drive` found: each fault as the vehicle felt it, and whether the loop kept its promises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.drills.report import Report
from carla_policy_tools.console import out
from carla_policy_tools.driving.records import Drive, Step


@dataclass
class Felt:
    """One fault as the vehicle felt it, times from the start of its drive.

    `steps` went without the policy from `began_s` until `resumed_s`, which is the policy's first answer after the end.
    """

    fault: str
    began_s: float
    ended_s: float
    resumed_s: float = math.inf
    steps: int = 0
    reasons: tuple[str, ...] = ()

    def look_up(self, steps: Sequence[Step]) -> None:
        """Find the rest in what was driven."""
        after = [step.time_s for step in steps if step.answer.source == "policy" and step.time_s >= self.ended_s]
        self.resumed_s = min(after, default=math.inf)
        without = [step for step in steps if self.began_s <= step.time_s < self.resumed_s]
        without = [step for step in without if step.answer.source != "policy"]
        self.steps, self.reasons = len(without), tuple(sorted({step.answer.reason for step in without}))


@dataclass
class DriveReport(Report):
    """`felt` are the faults; figures of the load, which is one vehicle, are those of its answers."""

    felt: list[Felt] = field(default_factory=list)

    def judge(self, drive: Drive, felt: Sequence[Felt]) -> None:
        """Take over a drive: always an action, no period missed by more than the deadline, each fault over and told."""
        steps = [step for episode in drive.episodes for step in episode.steps]
        deadline_s = drive.settings.deadline_s or 0.0
        controls = np.array([step.answer.controls for step in steps]).reshape(-1, 3)
        low, high = np.array([0, 0, -1]), np.array([1, 1, 1])
        fit = np.isfinite(controls) & (controls >= low) & (controls <= high)
        self.require(len(steps) > 0 and bool(fit.all()), f"{(~fit).any(axis=1).sum()} actions are not fit to drive")
        fallbacks = [event for event in drive.events if event.kind == "fallback"]
        for one in felt:
            one.look_up(steps)
            self.require(one.steps > 0, f"{one.fault}: was not felt")
            self.require(math.isfinite(one.resumed_s), f"{one.fault}: the policy has not driven since")
            spans = ((event.time_s, event.time_s + event.duration_s) for event in fallbacks)
            told = any(one.began_s <= end and start <= one.resumed_s for start, end in spans)
            self.require(told, f"{one.fault}: no event tells of it")
        missed = [step for step in steps if step.late_s > deadline_s]
        if missed:
            worst = max(missed, key=lambda step: step.late_s)
            self.slow.append(
                f"{len(missed)} of {len(steps)} periods were missed by more than the deadline, worst at "
                f"{worst.time_s:.3f} s by {worst.late_s * 1e3:.1f} ms, the simulator took {worst.simulated_s * 1e3:.1f}"
            )
        self.felt += felt
        self.faults += len(felt)
        self.recovery_s += [one.resumed_s - one.ended_s for one in felt]
        self.facts |= _figures(drive)

    def print(self) -> None:
        """For people."""
        out.print(f"{self.drill}: {self.faults} faults")
        table = Table("fault", "for s", "steps without", "resumed after s", "reasons", box=None)
        for one in self.felt:
            seconds = (f"{one.ended_s - one.began_s:.2f}", f"{one.resumed_s - one.ended_s:.2f}")
            table.add_row(one.fault, seconds[0], str(one.steps), seconds[1], ", ".join(one.reasons))
        out.print(table)
        self.print_rest()


def _figures(drive: Drive) -> dict[str, Any]:
    """For the report's facts: the whole drive, faults included."""
    summary = drive.summary
    way = "through a link" if drive.link else "directly"
    lengths = {name: round(summary[name]["max"] * 1e3, 2) for name in ("waited_s", "late_s")}
    return {
        f"asking {way}: steps, of them fallbacks": f"{summary['steps']}, {summary['sources']['fallback']}",
        f"asking {way}: longest wait for an action, ms": lengths["waited_s"],
        f"asking {way}: periods overrun": (
            f"{summary['overruns']}, {summary['overruns_by_simulator']} of them by what the simulator took; "
            f"longest {lengths['late_s']} ms"
        ),
    }
