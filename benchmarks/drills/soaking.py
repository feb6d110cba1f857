"""Drill `soak`: very many requests; the server's memory, open files, logs and disk must not grow with their number."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import psutil

from benchmarks.archives import SECOND, Archives
from benchmarks.drills.damage import burdened_archive
from benchmarks.drills.growth_plot import draw_growth
from benchmarks.drills.report import Report, complaints
from benchmarks.drills.rig import Rig
from benchmarks.drills.sampling import Sample, check_growth, sample
from benchmarks.load import Load, Pace, Questions, Sent, figures

ROUNDS = 20
PACE = Pace(rate=0, connections=8, timeout_s=30.0)
REST_S = 0.5
"""Between the end of a round and its sample: connections are being closed."""
ROUND_TIMEOUT_S = 1800.0
POLL_S = 0.05
KEPT = 5000
"""Of each round's requests so many are kept for the latencies."""
LEAK_MB = 100
CYCLE = 1000
BAD = ("", '{"observations": [', "null", '{"observations": [{"speed": "fast"}]}', "[" * 5000, "\x00")
"""Requests that anybody may send by mistake; the policy refuses them."""
REFUSALS = frozenset({"400", "422"})


def run(
    archives: Archives,
    *,
    requests: int = 1_000_000,
    bad_share: float = 0.0,
    leak: bool = False,
    plot: Path | None = None,
) -> Report:
    """`requests` in `ROUNDS` rounds, a sample after each; `bad_share` of them are malformed, and must be refused.

    With `leak` the worker has a leak, of `LEAK_MB` over the whole drill, and the drill must fail. `plot` is the file
    that the samples are drawn to.
    """
    report = Report("soak", faults=int(leak))
    questions, bad = mix(archives.questions, bad_share)
    samples: list[Sample] = []
    kept: list[Sent] = []
    outcomes: Counter[str] = Counter()
    seconds, wrong = 0.0, 0
    with Rig(archives, [SECOND]) as rig:
        if leak:
            kept_bytes = f"bytearray(b'x') * ({LEAK_MB * 2**20 // requests} * len(data))"
            burdened_archive(f"self.__dict__.setdefault('leak', []).append({kept_bytes})", SECOND, rig.store)
        with rig.serve(SECOND) as server, report.noting_failures():
            for _ in range(ROUNDS):
                sent, took = _round(server.base, questions, requests // ROUNDS)
                seconds += took
                outcomes.update(record.outcome for record in sent)
                wrong += sum(record.wrong for record in sent)
                judge(report, sent, bad)
                kept += sent[:: max(1, len(sent) // KEPT)]
                time.sleep(REST_S)
                samples.append(sample(psutil.Process(server.process.pid), rig.root, rig.root / "run" / "logs"))
    total, excused = outcomes.total(), sum(outcomes[status] for status in REFUSALS)
    report.load = replace(
        figures(kept),
        requests=total,
        rate=total / max(seconds, POLL_S),
        excused=excused,
        lost=total - outcomes["200"] - excused,
        wrong=wrong,
    )
    report.facts["requests by status"] = dict(sorted(outcomes.items()))
    if len(samples) == ROUNDS:
        check_growth(report, samples)
    if plot and samples:
        draw_growth(samples, requests // ROUNDS, plot)
        report.facts["drawn to"] = str(plot)
    return report


def mix(questions: Questions, bad_share: float) -> tuple[Questions, frozenset[int]]:
    """`CYCLE` requests of which `bad_share`, evenly spread, are malformed; and which rows those are."""
    counts = [int(count) for count in accumulate([bad_share] * CYCLE, initial=1e-9)]
    bad = frozenset(row for row in range(CYCLE) if counts[row] != counts[row + 1])
    rows = [row % len(questions.bodies) for row in range(CYCLE)]
    bodies = [BAD[counts[row] % len(BAD)] if row in bad else questions.bodies[rows[row]] for row in range(CYCLE)]
    expected = {version: [actions[row] for row in rows] for version, actions in questions.expected.items()}
    return Questions(bodies, expected), bad


def judge(report: Report, sent: Sequence[Sent], bad: frozenset[int]) -> None:
    """Malformed requests are refused, all others answered, and rightly."""
    good = [record for record in sent if record.row not in bad]
    report.broken += complaints("request lost", (record for record in good if record.lost))
    report.broken += complaints("wrong answer", (record for record in good if record.wrong))
    accepted = (record for record in sent if record.row in bad and record.outcome not in REFUSALS)
    report.broken += complaints("malformed request not refused", accepted)


def _round(base: str, questions: Questions, count: int) -> tuple[list[Sent], float]:
    start = time.monotonic()
    with Load(base, questions, pace=PACE) as load:
        while len(load.sent) < count:
            if time.monotonic() > start + ROUND_TIMEOUT_S:
                raise TimeoutError(f"{count} requests were not answered within {ROUND_TIMEOUT_S:g} s")
            time.sleep(POLL_S)
    return load.sent, time.monotonic() - start
