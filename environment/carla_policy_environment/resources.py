"""What a service's processes take of the machine, and whether their memory grows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

try:
    import psutil
except ImportError:
    psutil = None

MIB = 1024 * 1024


def memory_mb(pid: int) -> float | None:
    """Resident memory in MiB of a process and all its descendants.

    Without psutil it is that of the process alone, on Linux, else unknown; unknown too once the process has ended.
    """
    if psutil is None:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return None
        resident = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(resident[0]) / 1024 if resident else None
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return None
    total = 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.Error:
            continue
    return float(total) / MIB


@dataclass
class MemoryWatch:
    """Memory of one run of a service, measured from a while after it was ready: loading is no growth."""

    settle_s: float = 60.0
    first_mb: float | None = None
    last_mb: float | None = None
    _began: float | None = None
    _first_at: float = 0.0
    _last_at: float = 0.0

    def note(self, megabytes: float | None, now: float | None = None) -> None:
        """Take a measurement."""
        if megabytes is None:
            return
        at = time.monotonic() if now is None else now
        self._began = at if self._began is None else self._began
        self.last_mb, self._last_at = megabytes, at
        if at - self._began <= self.settle_s or self.first_mb is None:
            self.first_mb, self._first_at = megabytes, at

    @property
    def growth_mb(self) -> float:
        """By how much it has grown since it had settled, MiB."""
        return 0.0 if self.first_mb is None or self.last_mb is None else self.last_mb - self.first_mb

    @property
    def growth_mb_per_hour(self) -> float | None:
        """The same per hour; `None` before there is a minute to judge by."""
        seconds = self._last_at - self._first_at
        return self.growth_mb / seconds * 3600 if seconds >= 60 else None
