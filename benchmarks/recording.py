"""What its metrics cost a worker: `python -m benchmarks.recording --rounds 20`.

Answers the same requests in process, from bytes to bytes, with the metrics taken down and without, in turns, and prints
the ratio of the medians. Then what a report costs, which a worker makes once a second: taking what has changed, and
printing a line for each series as TorchServe's metrics API does.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

from ts.metrics.caching_metric import CachingMetric
from ts.metrics.metric_type_enum import MetricTypes

from carla_policy.batch import Request
from carla_policy.loading import load_policy
from carla_policy.metrics.catalog import COMMON_LABELS, METRICS
from carla_policy.metrics.emitter import Emitter
from carla_policy.service import PolicyService
from carla_policy_tools.archive import unpack
from carla_policy_tools.client import golden_observations, request_body
from carla_policy_tools.paths import MODEL_STORE, archive_name

SIZES = (1, 2, 64)
_BATCHES = 300
_REPORTS = 20


def answer(service: PolicyService, requests: list[Request]) -> None:
    service.encode(service.infer(service.parse(requests)))


def seconds_per_batch(service: PolicyService, requests: list[Request]) -> float:
    """Processor time from bytes to bytes."""
    batches = max(_BATCHES // len(requests), 20)
    began = time.process_time()
    for _ in range(batches):
        answer(service, requests)
    return (time.process_time() - began) / batches


def compare(service: PolicyService, requests: list[Request], rounds: int) -> tuple[float, float]:
    """Medians with and without metrics, in seconds a batch."""
    record = service.recorder.record
    found: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds):
        for with_metrics in (True, False) if number % 2 else (False, True):
            service.recorder.record = record if with_metrics else lambda *_: None  # type: ignore[method-assign]
            found[with_metrics].append(seconds_per_batch(service, requests))
        service.recorder.take()
    service.recorder.record = record  # type: ignore[method-assign]
    return statistics.median(found[True]), statistics.median(found[False])


def report_seconds(service: PolicyService, requests: list[Request]) -> tuple[float, int]:
    """Processor time of a report after one second's worth of requests, and how many lines it has."""
    emitter = Emitter(
        lambda name, kind: CachingMetric(name, "Count", [*COMMON_LABELS, *METRICS[name].labels], MetricTypes(kind)),
        ("carla_policy", service.loaded.policy.card.version),
    )
    lines, spent = [], []
    for _ in range(_REPORTS):
        for _ in range(_BATCHES):
            answer(service, requests)
        began = time.process_time()
        samples = service.recorder.take()
        emitter(samples)
        spent.append(time.process_time() - began)
        lines.append(len(samples))
    return statistics.median(spent), int(statistics.median(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--store", type=Path, default=MODEL_STORE)
    parser.add_argument("--version", default="v0.2.0")
    arguments = parser.parse_args()
    archive = arguments.store / archive_name(arguments.version)
    rows, _ = golden_observations(archive)
    requests = [Request(json.dumps(request_body(rows[n : n + 1])).encode()) for n in range(max(SIZES))]
    with tempfile.TemporaryDirectory() as scratch, Path(os.devnull).open("w") as nowhere:
        logging.basicConfig(stream=nowhere, level=logging.INFO)
        unpack(archive, Path(scratch))
        service = PolicyService(load_policy(Path(scratch)))
        for size in SIZES:
            with_metrics, without = compare(service, requests[:size], arguments.rounds)
            print(
                f"a batch of {size:<3} with metrics: {with_metrics / without:.3f} times the processor time without "
                f"({(with_metrics - without) * 1e6:+.1f} us of {without * 1e6:.0f} us)"
            )
        spent, lines = report_seconds(service, requests[:1])
        print(f"a report of {lines} lines, once a second: {spent * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
