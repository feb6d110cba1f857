"""A whole run: prepares the workload, measures the plan's sections one after the other, and returns the results."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from benchmarks.bench.arena import Arena, arena
from benchmarks.bench.bulk import run_bulk
from benchmarks.bench.loads import Generator
from benchmarks.bench.machine import describe_machine, describe_source
from benchmarks.bench.plan import Plan
from benchmarks.bench.results import Bulk, FreshStart, Memory, Results, RuntimeSpeed, Slice, Sweep
from benchmarks.bench.rounds import run_arrivals, run_rounds, warm_up
from benchmarks.bench.runtimes import run_runtimes
from benchmarks.bench.starting import run_starts
from benchmarks.bench.sweeping import run_sweeps
from benchmarks.bench.usage import memory
from benchmarks.bench.wrk import find_wrk
from benchmarks.contenders.base import Contender
from benchmarks.contenders.catalog import chosen
from benchmarks.contenders.workload import Workload, add_copies, prepare_workload

Step = Callable[[str], None]
Found = TypeVar("Found")
SIDE_BY_SIDE = frozenset({"rounds", "arrivals", "bulk"})
"""Sections that need all contenders at once."""


@dataclass
class _Measured:
    arena: Arena = field(default_factory=Arena)
    slices: list[Slice] = field(default_factory=list)
    memory: dict[str, dict[str, Memory]] = field(default_factory=dict)
    starts: list[FreshStart] = field(default_factory=list)
    bulk: list[Bulk] = field(default_factory=list)
    sweeps: list[Sweep] = field(default_factory=list)
    runtimes: list[RuntimeSpeed] = field(default_factory=list)
    incomplete: dict[str, str] = field(default_factory=dict)

    def section(self, name: str, plan: Plan, measure: Callable[[], list[Found]]) -> list[Found]:
        """What `measure` finds, if `plan` has the section; what goes wrong is noted and costs only its own figures."""
        try:
            return measure() if name in plan.sections else []
        except (RuntimeError, OSError) as error:
            self.incomplete[name] = f"{type(error).__name__}: {error}"
            return []


def run(plan: Plan, artifact: Path, on_step: Step = lambda _: None) -> Results:
    """Measure `plan` on the version in `artifact`; `ValueError` for what cannot be measured at all."""
    started, clock = datetime.now(timezone.utc), time.monotonic()
    kinds = chosen(list(plan.contenders))
    machine, source, generator = describe_machine(), describe_source(), Generator(find_wrk())
    measured = _Measured()
    with tempfile.TemporaryDirectory(prefix="bench-store-") as scratch:
        on_step(f"building {artifact.name}")
        workload = prepare_workload(artifact, Path(scratch))
        copies = add_copies(workload, _copies_needed(plan))
        names = [kind.name for kind in kinds]
        measured.starts = measured.section(
            "starts", plan, lambda: run_starts(plan, workload, copies[0], names, on_step)
        )
        if SIDE_BY_SIDE & set(plan.sections):
            _side_by_side(plan, kinds, workload, generator, measured, on_step)
        measured.sweeps = measured.section(
            "sweeps", plan, lambda: run_sweeps(plan, workload, copies, generator, on_step)
        )
        measured.runtimes = measured.section("runtimes", plan, lambda: run_runtimes(workload, on_step))
    return Results(
        started=started,
        minutes=(time.monotonic() - clock) / 60,
        quick=plan.quick,
        artifact=artifact.name,
        parameters={"generator": generator.name, **plan.describe()},
        machine=machine,
        source=source,
        participants=tuple(measured.arena.participants.values()),
        absent={}
        if generator.wrk
        else {"wrk": "closed loops were sent by our own slower sender; `make bench` fetches it"},
        slices=tuple(measured.slices),
        memory=measured.memory,
        starts=tuple(measured.starts),
        bulk=tuple(measured.bulk),
        sweeps=tuple(measured.sweeps),
        runtimes=tuple(measured.runtimes),
        incomplete=measured.incomplete,
    )


def _side_by_side(
    plan: Plan,
    kinds: list[type[Contender]],
    workload: Workload,
    generator: Generator,
    measured: _Measured,
    on_step: Step,
) -> None:
    with arena(kinds, workload, on_step) as found:
        measured.arena = found
        warm_up(plan, found, generator, on_step)
        measured.slices = measured.section("rounds", plan, lambda: run_rounds(plan, found, generator, on_step))
        measured.slices += measured.section(
            "arrivals", plan, lambda: run_arrivals(plan, found, generator, measured.slices, on_step)
        )
        measured.memory = {name: memory(contender) for name, contender in found.contenders.items()}
        measured.bulk = measured.section("bulk", plan, lambda: run_bulk(plan, found, workload, on_step))
        found.check_again()


def _copies_needed(plan: Plan) -> int:
    """Versions beside the workload's own."""
    most = max(plan.sweep_versions) - 1 if "sweeps" in plan.sections else 0
    return max(most, 1 if "starts" in plan.sections else 0)
