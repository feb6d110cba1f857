"""Everything that a run has measured, as it is written to JSON: raw figures by round, and where they come from."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, ValidationError

from benchmarks.bench.histograms import Histogram

FORMAT = 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Model):
    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    load_before: float
    """The load average of the last minute before the run: other work on the machine is part of the figures."""
    handover_us: float | None = None
    """How long a byte takes to a process that sleeps, and back: a request crosses several such borders."""


class Source(_Model):
    """What was measured: the commit, whether files differed from it, and the versions of everything."""

    commit: str
    dirty: bool
    versions: dict[str, str]


class Participant(_Model):
    name: str
    title: str
    refused: str | None = None
    """Why it was not measured."""
    largest_difference: float | None = None
    """Of its actions from the policy's own."""


class Slice(_Model):
    """One contender under one load, for a moment."""

    contender: str
    round: NonNegativeInt
    load: Literal["closed", "client", "constant", "share"]
    """`closed` (wrk) and `client` (our own) wait for answers; `constant` and `share` are arrivals at a fixed rate."""
    connections: int
    rate: NonNegativeFloat = 0.0
    """Requests due a second; 0 in a closed loop."""
    seconds: float
    requests: NonNegativeInt
    """Answered with 200."""
    failed: NonNegativeInt
    """Answered otherwise, not answered, or answered with a wrong action: any of them makes the slice invalid."""
    latencies: Histogram
    cpu_seconds: dict[str, float]

    @property
    def valid(self) -> bool:
        return self.failed == 0 and self.requests > 0

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    def cpu_us(self, role: str | None = None) -> float:
        """Processor microseconds per request, of one role or of all."""
        seconds = sum(self.cpu_seconds.values()) if role is None else self.cpu_seconds.get(role, 0.0)
        return seconds * 1e6 / self.requests


class Memory(_Model):
    processes: int
    rss_mib: float
    pss_mib: float
    """Shared pages are divided among those who share them."""


class FreshStart(_Model):
    """A start with nothing warm, and the requests right after it."""

    contender: str
    versions: int
    repeat: int
    ready_s: float
    first_answer_s: float
    """Both from the launch."""
    failed: int
    latencies: Histogram
    """Of the requests from the first one on."""


class Bulk(_Model):
    """One request of many rows, several times."""

    subject: str
    rows: int
    round: int
    seconds: float
    """The median of its requests."""
    peak_mib: float | None = None
    """The largest resident set of the process that computes."""


class Sweep(_Model):
    versions: int
    workers: int
    load: Slice


class RuntimeSpeed(_Model):
    runtime: str
    tile: int
    rows: int
    seconds: float
    """The median of a call."""


class Results(_Model):
    format: Literal[1] = 1
    started: datetime
    minutes: float
    quick: bool
    artifact: str
    parameters: dict[str, float | int | str | bool]
    machine: Machine
    source: Source
    participants: tuple[Participant, ...]
    absent: dict[str, str]
    """Tools that are not installed, and what that means."""
    incomplete: dict[str, str] = {}
    """Sections that ended early, and why."""
    slices: tuple[Slice, ...] = ()
    memory: dict[str, dict[str, Memory]] = {}
    starts: tuple[FreshStart, ...] = ()
    bulk: tuple[Bulk, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    runtimes: tuple[RuntimeSpeed, ...] = ()

    @property
    def invalid(self) -> list[str]:
        """Slices and starts with an answer that was not right."""
        slices = [part for part in (*self.slices, *(sweep.load for sweep in self.sweeps)) if not part.valid]
        return [
            *(
                f"{part.contender}, {part.load}, round {part.round}: {part.failed} of {part.requests + part.failed}"
                for part in slices
            ),
            *(f"{start.contender}, fresh start: {start.failed}" for start in self.starts if start.failed),
        ]


def load_results(path: Path) -> Results:
    """Results from a file; `ValueError` says what does not fit."""
    try:
        return Results.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: not the results of a benchmark: {where}: {first['msg']}") from None
