"""Results of a benchmark that never ran: every figure is what a test says it is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from benchmarks.bench.histograms import Histogram
from benchmarks.bench.results import (
    Bulk,
    FreshStart,
    Machine,
    Memory,
    Participant,
    Results,
    RuntimeSpeed,
    Slice,
    Source,
)
from benchmarks.bench.results import Sweep as SweepResult


def slice_of(contender: str, number: int = 0, **changes: Any) -> Slice:
    """1,000 requests in a second over one connection, each of a millisecond, 400 µs of frontend and 100 of worker."""
    own: dict[str, Any] = {
        "contender": contender,
        "round": number,
        "load": "closed",
        "connections": 1,
        "seconds": 1.0,
        "requests": 1000,
        "failed": 0,
        "latencies": constant(1.0),
        "cpu_seconds": {"frontend": 0.4, "worker": 0.1},
    }
    return Slice(**{**own, **changes})


def constant(milliseconds: float, count: int = 1000) -> Histogram:
    """So many requests that all took the same time."""
    return Histogram.of_counts([(milliseconds * 1e3, count)])


def rounds_of(contender: str, milliseconds: Sequence[float], **changes: Any) -> list[Slice]:
    """A slice for each latency, as rounds."""
    return [slice_of(contender, number, latencies=constant(one), **changes) for number, one in enumerate(milliseconds)]


def start_of(contender: str, repeat: int = 0, **changes: Any) -> FreshStart:
    own: dict[str, Any] = {
        "contender": contender,
        "versions": 1,
        "repeat": repeat,
        "ready_s": 1.2,
        "first_answer_s": 1.3,
        "failed": 0,
        "latencies": constant(1.0),
    }
    return FreshStart(**{**own, **changes})


def results_of(slices: Sequence[Slice] = (), **changes: Any) -> Results:
    """With everybody who has a slice among the participants."""
    names = dict.fromkeys(part.contender for part in slices)
    own: dict[str, Any] = {
        "started": datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc),
        "minutes": 1.0,
        "quick": True,
        "artifact": "v0.2.0",
        "parameters": {"generator": "wrk", "slice_s": 1.0},
        "machine": Machine(cpu="a processor", cores=2, memory_gib=4.0, kernel="6.1", load_before=0.1),
        "source": Source(commit="0123456789abcdef", dirty=False, versions={"python": "3.11.7"}),
        "participants": [Participant(name=name, title=name, largest_difference=1e-7) for name in names],
        "absent": {"wrk": "not installed"},
        "slices": slices,
    }
    return Results(**{**own, **changes})


def everything() -> Results:
    """A little of each section, of ours and of those that it is compared with."""
    names = ("ours-realtime", "ours-throughput", "noop-realtime", "noop-throughput", "fastapi-2", "handwritten")
    slices = [
        slice_of(name, number, load=load, connections=connections, requests=1000 + number)
        for name in names
        for number in range(6)
        for load, connections in (("client", 1), ("closed", 1), ("closed", 64), ("constant", 64), ("share", 64))
    ]
    return results_of(
        slices,
        memory={name: {"server": Memory(processes=2, rss_mib=300.0, pss_mib=200.0)} for name in names},
        starts=[start_of("ours-realtime"), start_of("ours-realtime", versions=2), start_of("fastapi-2")],
        bulk=[
            Bulk(subject=subject, rows=1024, round=0, seconds=seconds, peak_mib=300.0)
            for subject, seconds in (("ours-json", 0.005), ("ours-npy", 0.002), ("bare", 0.0019))
        ],
        sweeps=[SweepResult(versions=2, workers=1, load=slice_of("ours-realtime"))],
        runtimes=[
            RuntimeSpeed(runtime=runtime, tile=tile, rows=16, seconds=1e-4)
            for runtime in ("TorchScript", "ONNX")
            for tile in (1, 16)
        ],
    )
