"""Is what `/readyz` says true? Asked again and again, beside what TorchServe itself says of its workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import requests
from typing_extensions import Self

from carla_policy_tools.urls import local_session

INTERVAL_S = 0.05
TIMEOUT_S = 5.0
POLL_S = 0.02


@dataclass(frozen=True)
class Sample:
    """One answer of the probe, and whether all was well just before or just after it."""

    asked: float
    answered: float
    green: bool
    well: bool
    found: str


class Readiness:
    """A context manager that keeps asking `url`, and `well` whether all is well at this moment."""

    def __init__(self, url: str, well: Callable[[], bool] = lambda: True) -> None:
        self._url = url
        self._well = well
        self.samples: list[Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="readiness", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with local_session() as session:
            while not self._stop.wait(INTERVAL_S):
                before = self._well()
                asked = time.monotonic()
                try:
                    answer = session.get(self._url, timeout=TIMEOUT_S)
                    green, found = answer.ok, answer.text.strip()
                except requests.RequestException as error:
                    green, found = False, type(error).__name__
                answered = time.monotonic()
                self.samples.append(Sample(asked, answered, green, before or self._well(), found))

    def wait(self, green: bool, since: float, timeout_s: float) -> float:
        """When the probe first said so after `since`; `TimeoutError` if it does not."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for sample in [sample for sample in self.samples if sample.asked >= since]:
                if sample.green == green:
                    return sample.answered
            time.sleep(POLL_S)
        raise TimeoutError(f"{self._url}: was not {'green' if green else 'red'} within {timeout_s:g} s")

    def red(self, start: float, end: float) -> list[Sample]:
        """Answers between two moments that said that something is wrong."""
        return [
            sample for sample in self.samples if start <= sample.asked and sample.answered <= end and not sample.green
        ]


def all_workers_ready(management: str, versions: set[str]) -> bool:
    """TorchServe has just these versions, and each of their workers is READY."""
    try:
        answer = requests.get(f"{management}/models/carla_policy/all", timeout=TIMEOUT_S)
        listed = {found["modelVersion"]: found["workers"] for found in answer.json()} if answer.ok else {}
    except (requests.RequestException, ValueError):
        return False
    workers = [worker["status"] == "READY" for found in listed.values() for worker in found]
    return set(listed) == versions and all(workers) and len(workers) >= len(versions)
