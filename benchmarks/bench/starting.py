"""Starts with nothing warm: how long to the first answer, and the latencies from the first request on."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from benchmarks.bench.client import Client, closed_loop
from benchmarks.bench.histograms import Histogram
from benchmarks.bench.plan import Plan
from benchmarks.bench.results import FreshStart
from benchmarks.contenders.base import Contender, started
from benchmarks.contenders.ours import Ours, OursRealtime
from benchmarks.contenders.services import FastAPI2, HandWritten
from benchmarks.contenders.workload import Workload
from benchmarks.first_answer import FirstAnswer

KINDS: tuple[type[Contender], ...] = (OursRealtime, FastAPI2, HandWritten)


def run_starts(
    plan: Plan, workload: Workload, second: str, names: list[str], on_step: Callable[[str], None]
) -> list[FreshStart]:
    """Start those of `KINDS` that are among `names` alone, one after the other; ours also beside version `second`."""
    tries: dict[str, tuple[Callable[[], Contender], int]] = {}
    for kind in KINDS:
        if kind.name in names and not kind.missing():
            tries[kind.name] = partial(kind, workload), 1
            if issubclass(kind, Ours):
                tries[f"{kind.name} with two versions"] = partial(kind, workload, beside=(second,)), 2
    starts = []
    for repeat, order in plan.shuffled(list(tries), plan.starts):
        for name in order:
            on_step(f"start {repeat + 1} of {plan.starts}: {name}")
            starts.append(_start(plan, *tries[name], repeat))
    return starts


def _start(plan: Plan, make: Callable[[], Contender], versions: int, repeat: int) -> FreshStart:
    asking: list[FirstAnswer] = []

    def launch() -> Contender:
        for earlier in asking:
            earlier.stop.set()
        contender = make()
        asking.append(FirstAnswer(contender.url, contender.workload.bodies[0].encode()))
        asking[-1].start()
        return contender

    try:
        with started(launch) as contender, Client(contender.url) as client:
            first = asking[-1]
            ready_s = time.perf_counter() - first.launched
            first.join()
            requests = [client.request(body.encode()) for body in contender.workload.bodies]
            latencies, failed = closed_loop(client, requests, seconds=plan.start_s, limit=plan.start_requests)
    finally:
        asking[-1].stop.set()
    return FreshStart(
        contender=contender.name,
        versions=versions,
        repeat=repeat,
        ready_s=ready_s,
        first_answer_s=first.answered - first.launched,
        failed=failed,
        latencies=Histogram.of_seconds(latencies),
    )
