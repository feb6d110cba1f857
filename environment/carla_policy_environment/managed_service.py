"""One service as a process of this machine: started, watched, and started again with growing pauses when it fails."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carla_policy_environment.allocation import Slot
from carla_policy_environment.child_process import ChildProcess
from carla_policy_environment.probing import Probe, State, WatchSettings
from carla_policy_environment.resources import MemoryWatch, memory_mb

POLL_S = 0.05
END_GRACE_S = 10.0
MEASUREMENT_INTERVAL_S = 5.0


@dataclass(frozen=True)
class Programs:
    """What is run for one service. The `companion`, such as a CARLA simulator, is started first and ended last."""

    service: Sequence[str]
    companion: Sequence[str] | None = None
    companion_port: int | None = None
    """The service is started when something listens there."""


class ManagedService:
    """The service in `slot`, watched by a thread of its own from `start` to `stop`."""

    def __init__(self, slot: Slot, programs: Programs, *, host: str, log_dir: Path, settings: WatchSettings) -> None:
        self.slot = slot
        self.url = f"http://{host}:{slot.port}"
        self.log = log_dir / f"service-{slot.index}.log"
        self.state = State.STARTING
        self.reason: str | None = None
        """Why it is not ready, or was started again the last time."""
        self.restarts = 0
        self.pid: int | None = None
        self._memory = MemoryWatch()
        self._programs, self._settings = programs, settings
        self._companion_log = log_dir / f"simulator-{slot.index}.log"
        self._ready_at: float | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"service-{slot.index}", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Begin to end it; `join` waits until it has ended."""
        self._stopping.set()

    def join(self) -> None:
        """Return when nothing of it runs any more."""
        self._thread.join()

    def report(self) -> dict[str, Any]:
        """What there is to say of it, as JSON; memory in MiB, its growth since it had settled."""
        memory, slot = self._memory, self.slot
        return {
            "index": slot.index,
            "url": self.url,
            "state": self.state.value,
            "reason": self.reason,
            "pid": self.pid,
            "gpu": slot.gpu,
            "carla_port": slot.carla_port,
            "carla_traffic_port": slot.carla_traffic_port,
            "restarts": self.restarts,
            "memory_mb": _rounded(memory.last_mb),
            "memory_growth_mb": _rounded(memory.growth_mb),
            "memory_growth_mb_per_hour": _rounded(memory.growth_mb_per_hour),
            "log": str(self.log),
        }

    def _run(self) -> None:
        try:
            self._keep_alive()
        except BaseException as error:
            self.state, self.reason = State.FAILED, f"it is not watched any more: {error!r}"
            raise

    def _keep_alive(self) -> None:
        # A child gets SIGTERM when the thread that made it ends, so this one makes it and waits for its end.
        settings, in_a_row, was_ready = self._settings, 0, False
        while True:
            failure = self._attempt()
            self.pid = None
            if failure is None:
                self.state, self.reason = State.STOPPED, None
                return
            was_ready = was_ready or self._ready_at is not None
            if self._ready_at is not None and time.monotonic() - self._ready_at >= settings.stable_s:
                in_a_row = 0
            if in_a_row >= (settings.max_restarts if was_ready or settings.retry_first_start else 0):
                again = f"; started again {in_a_row} times in a row, which is the limit" if in_a_row else ""
                self.state, self.reason = State.FAILED, failure + again
                return
            self.state, self.reason = State.WAITING, failure
            self._stopping.wait(min(settings.first_pause_s * 2**in_a_row, settings.longest_pause_s))
            in_a_row += 1
            self.restarts += 1

    def _attempt(self) -> str | None:
        """Run the programs once, until they fail, and say how; `None` if they were to stop."""
        if self._stopping.is_set():
            return None
        self.state, self._ready_at, self._memory = State.STARTING, None, MemoryWatch()
        variables = {} if self.slot.gpu is None else {"CUDA_VISIBLE_DEVICES": self.slot.gpu}
        running: list[ChildProcess] = []
        try:
            if self._programs.companion:
                running.append(ChildProcess(self._programs.companion, self._companion_log, variables, group=True))
                failure = self._wait_for_companion(running[0])
                if failure or self._stopping.is_set():
                    return failure
            running.append(ChildProcess(self._programs.service, self.log, variables))
            self.pid = running[-1].pid
            return self._watch(running)
        except OSError as error:
            return f"cannot be started: {error}"
        finally:
            for process in reversed(running):
                # One that is frozen heeds no SIGTERM.
                process.end(0 if self.state is State.SILENT else END_GRACE_S)

    def _wait_for_companion(self, companion: ChildProcess) -> str | None:
        port, deadline = self._programs.companion_port, time.monotonic() + self._settings.start_timeout_s
        while not self._stopping.wait(POLL_S):
            if companion.ended:
                return f"its simulator {companion.ended}"
            if port is None or _listens(port):
                return None
            if time.monotonic() > deadline:
                return f"its simulator did not listen at port {port} in {self._settings.start_timeout_s:g} s"
        return None

    def _watch(self, running: Sequence[ChildProcess]) -> str | None:
        with closing(Probe(self.url, self._settings)) as probe:
            return self._watch_by(probe, running)

    def _watch_by(self, probe: Probe, running: Sequence[ChildProcess]) -> str | None:
        next_probe = next_measurement = 0.0
        while not self._stopping.wait(POLL_S):
            for process, name in zip(reversed(running), ("it", "its simulator"), strict=False):
                if process.ended:
                    return f"{name} {process.ended}"
            now = time.monotonic()
            if now >= next_probe:
                failure = probe.ask()
                self.state = probe.state
                if failure:
                    return failure
                if probe.state is State.READY:
                    self._ready_at = self._ready_at or now
                next_probe = now + (self._settings.probe_interval_s if self._ready_at else 0)
            if self._ready_at and now >= next_measurement:
                next_measurement = now + MEASUREMENT_INTERVAL_S
                if failure := self._measure(running):
                    return failure
        return None

    def _measure(self, running: Sequence[ChildProcess]) -> str | None:
        measured = [memory_mb(process.pid) for process in running]
        total = sum(megabytes for megabytes in measured if megabytes is not None)
        self._memory.note(total or None)
        limit = self._settings.max_memory_mb
        if limit is not None and total > limit:
            return f"its memory grew to {total:.0f} MiB, more than the {limit:g} it may take"
        return None


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 1)
