"""A whole run: prepares the workload, measures the plan's sections one after the other, and returns the results."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.bench.arena import Arena, arena
from benchmarks.bench.loads import Generator
from benchmarks.bench.machine import describe_machine, describe_source
from benchmarks.bench.plan import Plan
from benchmarks.bench.results import Memory, Results, Slice
from benchmarks.bench.rounds import run_arrivals, run_rounds, warm_up
from benchmarks.bench.usage import memory
from benchmarks.bench.wrk import find_wrk
from benchmarks.contenders.catalog import OPTIONAL, chosen
from benchmarks.contenders.workload import Workload, prepare_workload

Step = Callable[[str], None]


def run(plan: Plan, artifact: Path, on_step: Step = lambda _: None) -> Results:
    """Measure `plan` on the version in `artifact`; `ValueError` for what cannot be measured at all."""
    started, clock = datetime.now(UTC), time.monotonic()
    kinds = chosen(list(plan.contenders))
    machine, generator = describe_machine(), Generator(find_wrk())
    found = Arena()
    slices: list[Slice] = []
    memories: dict[str, dict[str, Memory]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-store-") as scratch:
        on_step(f"building {artifact.name}")
        workload = prepare_workload(artifact, Path(scratch))
        if {"rounds", "arrivals"} & set(plan.sections):
            with arena(kinds, workload, on_step) as found:
                warm_up(plan, found, generator, on_step)
                if "rounds" in plan.sections:
                    slices += run_rounds(plan, found, generator, on_step)
                if "arrivals" in plan.sections:
                    slices += run_arrivals(plan, found, generator, slices, on_step)
                memories = {name: memory(contender) for name, contender in found.contenders.items()}
                found.check_again()
    return Results(
        started=started,
        minutes=(time.monotonic() - clock) / 60,
        quick=plan.quick,
        artifact=artifact.name,
        parameters={"generator": generator.name, **plan.describe()},
        machine=machine,
        source=describe_source(),
        participants=tuple(found.participants.values()),
        absent=_absent(generator),
        slices=tuple(slices),
        memory=memories,
    )


def _absent(generator: Generator) -> dict[str, str]:
    absent = {} if generator.wrk else {"wrk": "closed loops were sent by our own slower sender: `make bench` fetches it"}
    for package, title in OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            absent[title] = "not installed, not measured"
    return absent
