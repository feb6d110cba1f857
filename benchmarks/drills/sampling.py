"""What a server holds: memory and open files of each of its processes, bytes of its logs and on its disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from benchmarks.drills.report import Report

WARM_UP = 0.4
"""This share of the samples is of the warm-up: imports, caches, and the heap and the compiled code of the JVM."""
GROWTH_MB = 5.0
"""Of a process after its warm-up, however many requests that were."""
SPARE_FILES = 4
LOGS_MB = 65.0
"""A log file of 10 MB, five older ones, and what was not yet moved."""
DISK_MB = 5.0
"""On top of the logs."""
JVM = "JVM"


@dataclass(frozen=True)
class Sample:
    """What a server holds at one moment; processes are named by what they are and by their pid."""

    resident_mb: dict[str, float]
    files: dict[str, int]
    logs_mb: float
    disk_mb: float


def sample(serve: psutil.Process, root: Path, logs: Path) -> Sample:
    """Of the command `serve` and of all that it started; `root` is the directory of all its files, `logs` one in it."""
    names = {process: _name(process, serve) for process in (serve, *serve.children(recursive=True))}
    return Sample(
        resident_mb={name: process.memory_info().rss / 2**20 for process, name in names.items()},
        files={name: process.num_fds() for process, name in names.items()},
        logs_mb=_size_mb(logs),
        disk_mb=_size_mb(root),
    )


def _name(process: psutil.Process, serve: psutil.Process) -> str:
    kind = "command" if process == serve else JVM if process.name() == "java" else "worker"
    return f"{kind} {process.pid}"


def _size_mb(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 2**20


def check_growth(report: Report, samples: Sequence[Sample]) -> None:
    """Compare the last third of the samples after the warm-up with the first third of them.

    A process may grow by `GROWTH_MB`. The JVM takes memory from the system until its collector finds that it is
    worth its while, which depends on the machine: its growth is a limit like one on time.
    """
    warm = samples[int(len(samples) * WARM_UP) :]
    third = max(1, len(warm) // 3)
    first, last = warm[:third], warm[-third:]
    names = set(warm[0].resident_mb)
    changed = set().union(*(set(one.resident_mb) ^ names for one in warm))
    report.require(not changed, f"processes came or went: {', '.join(sorted(changed))}")
    for name in sorted(names - changed):
        before, after = (median(one.resident_mb[name] for one in part) for part in (first, last))
        report.facts[f"{name}, MB"] = [round(one.resident_mb[name], 1) for one in samples]
        if after - before > GROWTH_MB:
            problems = report.slow if name.startswith(JVM) else report.broken
            problems.append(f"{name}: grew from {before:.1f} to {after:.1f} MB, expected at most {GROWTH_MB:g} MB more")
        files = [one.files[name] for one in warm]
        report.facts[f"{name}, open files"] = f"{min(files)} to {max(files)}"
        report.require(
            last[-1].files[name] <= first[0].files[name] + SPARE_FILES,
            f"{name}: {last[-1].files[name]} open files, {first[0].files[name]} after the warm-up",
        )
    logs, disk = samples[-1].logs_mb, samples[-1].disk_mb - samples[0].disk_mb
    report.facts["logs, MB"] = [round(samples[0].logs_mb, 3), round(logs, 3)]
    report.facts["disk, MB"] = [round(samples[0].disk_mb, 2), round(samples[-1].disk_mb, 2)]
    report.require(logs <= LOGS_MB, f"the logs have {logs:.1f} MB, expected at most {LOGS_MB:g} MB")
    others = disk - (logs - samples[0].logs_mb)
    report.require(others <= DISK_MB, f"the disk holds {others:.1f} MB more beside the logs, expected {DISK_MB:g} MB")
