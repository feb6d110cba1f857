"""Hands on what a recorder has taken down, once in a while, from a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from carla_policy.metrics.recorder import Recorder, Sample

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
"""Prometheus asks every few seconds at most; each report costs a line for every series that has changed."""


class Reporter:
    """Calls `emit` with samples: with those of the start at once, then with what has changed."""

    def __init__(
        self,
        recorder: Recorder,
        emit: Callable[[Iterable[Sample]], None],
        worker: str = "0",
        interval_s: float = INTERVAL_S,
    ) -> None:
        """`worker` is the label of this worker among those of its version."""
        self._recorder = recorder
        self._emit = emit
        self._worker = worker
        self._interval_s = interval_s
        self._circuit: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self, at_start: Iterable[Sample]) -> None:
        """Report `at_start`, and from now on what changes."""
        self._emit(at_start)
        self._thread.start()

    def stop(self) -> None:
        """Report what is left, and nothing more."""
        self._stop.set()
        self._thread.join()
        self._report()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._report()

    def _report(self) -> None:
        try:
            samples = self._recorder.take()
            circuit = self._recorder.circuit_state
            if circuit != self._circuit:
                self._circuit = circuit
                samples.append(Sample("policy_circuit_state", (self._worker,), circuit))
            self._emit(samples)
        except Exception:
            logger.exception("metrics were not reported")
