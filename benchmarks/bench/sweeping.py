"""What it costs to have more versions loaded, or more workers: one version under load beside idle ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.bench.loads import Generator
from benchmarks.bench.plan import Plan
from benchmarks.bench.results import Sweep
from benchmarks.contenders.base import started
from benchmarks.contenders.ours import OursRealtime
from benchmarks.contenders.workload import Workload


def run_sweeps(
    plan: Plan, workload: Workload, copies: Sequence[str], generator: Generator, on_step: Callable[[str], None]
) -> list[Sweep]:
    """A fresh server for each number of versions and of workers a version, in the realtime profile."""
    sweeps = []
    for versions in plan.sweep_versions:
        for workers in plan.sweep_workers:
            on_step(f"{versions} version(s) with {workers} worker(s) each")
            beside = tuple(copies[: versions - 1])
            with started(partial(OursRealtime, workload, beside=beside, workers=workers)) as server:
                generator.closed(server, connections=max(plan.connections), seconds=plan.warm_up_s)
                load = generator.closed(server, connections=max(plan.connections), seconds=plan.sweep_s)
            sweeps.append(Sweep(versions=versions, workers=workers, load=load))
    return sweeps
