"""Processor time and memory of a contender's processes, by role."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil

from benchmarks.bench.results import Memory
from benchmarks.contenders.base import Contender

MIB = 1 << 20


def cpu_seconds(contender: Contender) -> dict[str, float]:
    """User and system time so far, by role; in steps of 10 ms, as the kernel counts."""
    return {role: sum(_cpu(process) for process in members) for role, members in contender.processes().items()}


def cpu_between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Seconds by role between two calls of `cpu_seconds`."""
    return {role: max(0.0, seconds - before.get(role, 0.0)) for role, seconds in after.items()}


def memory(contender: Contender) -> dict[str, Memory]:
    """Resident and proportional memory of each role's processes together, in MiB."""
    found = {}
    for role, members in contender.processes().items():
        infos = [info for member in members if (info := _memory(member)) is not None]
        found[role] = Memory(
            processes=len(infos),
            rss_mib=sum(info.rss for info in infos) / MIB,
            pss_mib=sum(info.pss for info in infos) / MIB,
        )
    return found


def reset_peak(process: psutil.Process) -> None:
    """Let the kernel's record of the largest resident set begin anew; nothing where it does not let us."""
    try:
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    except OSError:
        return


def peak_mib(process: psutil.Process) -> float:
    """The largest resident set since the last reset, in MiB."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _memory(process: psutil.Process) -> psutil._pslinux.pfullmem | None:
    try:
        return process.memory_full_info()
    except psutil.Error:
        return None
