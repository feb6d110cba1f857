"""One contender under one load for a moment: requests, failures, latencies, processor time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from benchmarks.bench.client import Client, closed_loop
from benchmarks.bench.correctness import TOLERANCE
from benchmarks.bench.histograms import Histogram
from benchmarks.bench.results import Slice
from benchmarks.bench.usage import cpu_between, cpu_seconds
from benchmarks.bench.wrk import run_wrk
from benchmarks.contenders.base import Contender
from benchmarks.load import Load, Pace, Questions, Sent
from carla_policy.actions import CONTROLS
from carla_policy_tools.debian import Program

ARRIVAL_CONNECTIONS = 64
ANSWER_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Generator:
    """Sends loads by wrk where there is one, else by our own sender, which is slower and says so in the results."""

    wrk: Program | None

    @property
    def name(self) -> str:
        return "wrk" if self.wrk else "sender"

    def closed(self, contender: Contender, *, connections: int, seconds: float, number: int = 0) -> Slice:
        """Each of `connections` sends its next request when it has the answer to the last."""
        if self.wrk is None:
            return _sent(contender, Pace(0, connections, ANSWER_TIMEOUT_S), seconds, number, "closed")
        before = cpu_seconds(contender)
        bodies = contender.workload.bodies
        run = run_wrk(self.wrk, contender.url, bodies, connections=connections, seconds=max(1, round(seconds)))
        return Slice(
            contender=contender.name,
            round=number,
            load="closed",
            connections=connections,
            seconds=run.seconds,
            requests=max(0, run.requests - run.refused),
            failed=run.refused + run.broken,
            latencies=run.latencies,
            cpu_seconds=cpu_between(before, cpu_seconds(contender)),
        )


def one_client(contender: Contender, *, seconds: float, number: int = 0) -> Slice:
    """The closed loop of a single client in this process, which sees each latency by itself."""
    before = cpu_seconds(contender)
    with Client(contender.url) as client:
        requests = [client.request(body.encode()) for body in contender.workload.bodies]
        started = time.perf_counter()
        latencies, failed = closed_loop(client, requests, seconds=seconds)
        elapsed = time.perf_counter() - started
    return Slice(
        contender=contender.name,
        round=number,
        load="client",
        connections=1,
        seconds=elapsed,
        requests=len(latencies),
        failed=failed,
        latencies=Histogram.of_seconds(latencies),
        cpu_seconds=cpu_between(before, cpu_seconds(contender)),
    )


def arrivals(
    contender: Contender, *, load: Literal["constant", "share"], rate: float, seconds: float, number: int = 0
) -> Slice:
    """Requests at a constant `rate` whatever the answers; latencies count from when a request was due."""
    return _sent(contender, Pace(rate, ARRIVAL_CONNECTIONS, ANSWER_TIMEOUT_S), seconds, number, load)


def _sent(
    contender: Contender, pace: Pace, seconds: float, number: int, load: Literal["closed", "constant", "share"]
) -> Slice:
    url = urlsplit(contender.url)
    before = cpu_seconds(contender)
    sending = Load(f"http://{url.netloc}", _questions(contender), pace=pace, path=url.path)
    with sending:
        time.sleep(seconds)
    sent = sending.sent
    right = [record for record in sent if not record.lost and not record.wrong]
    return Slice(
        contender=contender.name,
        round=number,
        load=load,
        connections=pace.connections,
        rate=pace.rate,
        seconds=_span(sent),
        requests=len(right),
        failed=len(sent) - len(right),
        latencies=Histogram.of_seconds(record.latency_s for record in right),
        cpu_seconds=cpu_between(before, cpu_seconds(contender)),
    )


def _questions(contender: Contender) -> Questions:
    workload = contender.workload
    if not contender.acts:
        return Questions(workload.bodies, {})
    actions = [dict(zip(CONTROLS, row, strict=True)) for row in workload.controls.tolist()]
    return Questions(workload.bodies, {workload.version: actions}, TOLERANCE)


def _span(sent: list[Sent]) -> float:
    """From the first request to the last answer; never 0."""
    return max((max(record.ended for record in sent) - min(record.due for record in sent)) if sent else 0.0, 1e-6)
