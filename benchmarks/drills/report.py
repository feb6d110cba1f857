"""What a drill found: the figures, the conditions that failed, and whether it passed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
from rich.table import Table

from benchmarks.drills.readiness import Readiness
from benchmarks.drills.rig import Rig
from benchmarks.load import Figures, Sent, figures
from carla_policy.errors import ArtifactError
from carla_policy_tools.console import out

LONGEST_LIST = 10


@dataclass
class Report:
    """One drill's outcome. `broken` are conditions that must always hold, `slow` are limits on time that did not.

    The two are apart because a busy machine may break the latter only.
    """

    drill: str
    faults: int = 0
    load: Figures = field(default_factory=lambda: figures([]))
    undisturbed: Figures = field(default_factory=lambda: figures([]))
    during: Figures = field(default_factory=lambda: figures([]))
    recovery_s: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.broken and not self.slow

    def require(self, condition: bool, otherwise: str) -> None:
        """Note `otherwise` as broken unless `condition` holds."""
        if not condition:
            self.broken.append(otherwise)

    @contextmanager
    def noting_failures(self) -> Iterator[None]:
        """What fails in the block ends the block, not the drill: it is noted as broken."""
        try:
            yield
        except (RuntimeError, OSError, ValueError, ArtifactError, psutil.Error) as error:
            self.broken.append(f"{type(error).__name__}: {error}")

    def require_state(self, rig: Rig, versions: set[str], promoted: str) -> None:
        """The registry declares just that, and the server is what the registry declares."""
        declared = rig.declared()
        expected = (frozenset(versions), promoted)
        self.require(declared == expected, f"declared: {declared}, expected {expected}")
        status = rig.status()
        self.require(not status["drift"], f"drift: {status['drift']}")

    def count(
        self,
        sent: Sequence[Sent],
        undisturbed: Sequence[Sent],
        during: Sequence[Sent],
        excused: Collection[str] = (),
    ) -> None:
        """Take over the figures of a load; every request must be answered, and rightly.

        Outcomes that the drill itself brings about, such as a refusal in an overload, are `excused`: the drill says
        how many of them there may be.
        """
        spans = (sent, undisturbed, during)
        self.load, self.undisturbed, self.during = (figures(span, excused) for span in spans)
        lost = (record for record in sent if record.lost and record.outcome not in excused)
        self.broken += complaints("request lost", lost)
        self.broken += complaints("wrong answer", (record for record in sent if record.wrong))

    def forbid_red(self, readiness: Readiness, start: float, end: float) -> None:
        """Nothing failed between the two moments, so `/readyz` may not have said so."""
        red = readiness.red(start, end)
        self.require(
            not red, f"/readyz was red {len(red)} times though all was well, first: {red[0].found if red else ''}"
        )

    def limit_p99(self, factor: float) -> None:
        """P99 during the faults is to be at most `factor` times the undisturbed one."""
        if not self.during.p99_ms <= factor * self.undisturbed.p99_ms:
            self.slow.append(
                f"P99 during faults {self.during.p99_ms:.2f} ms, expected at most {factor:g} x "
                f"{self.undisturbed.p99_ms:.2f} ms"
            )

    def to_json(self) -> dict[str, Any]:
        """For `--json`; a figure of no requests is null."""
        return {**_plain(asdict(self)), "passed": self.passed}

    def print(self) -> None:
        """For people."""
        table = Table("", "requests", "per s", "excused", "lost", "wrong", "P50 ms", "P99 ms", "longest ms", box=None)
        spans = {"all": self.load, "undisturbed": self.undisturbed, "during faults": self.during}
        for name, span in spans.items():
            numbers = (f"{value:.2f}" for value in (span.p50_ms, span.p99_ms, span.longest_ms))
            counts = (str(count) for count in (span.excused, span.lost, span.wrong))
            table.add_row(name, str(span.requests), f"{span.rate:.0f}", *counts, *numbers)
        out.print(f"{self.drill}: {self.faults} faults")
        out.print(table)
        self.print_rest()

    def print_rest(self) -> None:
        """What follows the table: recovery, facts, and what went wrong."""
        if self.recovery_s:
            out.print(f"seconds to recover: median {_median(self.recovery_s):.2f}, longest {max(self.recovery_s):.2f}")
        for name, value in self.facts.items():
            out.print(f"{name}: {value}", markup=False)
        for problem in (*self.broken, *self.slow):
            out.print(f"  FAILED {problem}", markup=False)
        out.print("PASS" if self.passed else "FAIL")


def complaints(kind: str, records: Iterable[Sent]) -> list[str]:
    """A line for each of the first requests that went wrong, and one that counts the others."""
    lines = [f"{kind}: row {r.row}, {r.outcome} {r.version}, sent at {r.sent:.3f}: {r.note}" for r in records]
    more = [f"{kind}: {len(lines) - LONGEST_LIST} more"] if len(lines) > LONGEST_LIST else []
    return lines[:LONGEST_LIST] + more


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
