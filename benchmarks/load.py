"""A steady load on a running server, from a process of its own, and what became of each request."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from typing_extensions import Self

from carla_policy_tools.urls import prediction_url

STOP_TIMEOUT_S = 5.0
WARM_UP_TIMEOUT_S = 60.0
_SENDER = Path(__file__).with_name("sender.py")


class Sent(NamedTuple):
    """A request and what became of it. Times are of `time.monotonic()`, which all processes of a machine share."""

    row: int
    due: float
    sent: float
    ended: float
    outcome: str
    """The status, or `refused` (no connection), `closed` (before an answer began), `cut` (closed within the answer),
    `timeout` (no answer in time), `unsent` (all connections waited for answers until it was too late)."""
    version: str
    """The version that answered."""
    right: bool
    """The action is the one that this version gives to this observation, bit for bit unless a tolerance was given."""
    note: str
    """What the server said, or what went wrong."""

    @property
    def latency_s(self) -> float:
        """From when the request was due, not from when a connection was free."""
        return self.ended - self.due

    @property
    def lost(self) -> bool:
        return self.outcome != "200"

    @property
    def wrong(self) -> bool:
        return self.outcome == "200" and not self.right


@dataclass(frozen=True)
class Questions:
    """Observations to ask, as request bodies, and the action that each version gives to each of them.

    Where `expected` is empty, every answer of status 200 is right. An action may differ by `tolerance`.
    """

    bodies: Sequence[str]
    expected: dict[str, list[Any]]
    tolerance: float = 0.0


@dataclass(frozen=True)
class Pace:
    """How a load is sent: requests a second, over how many connections, and when an answer comes too late to count.

    At a rate of 0 every connection sends its next request when it has the answer to the last one.
    """

    rate: float = 400.0
    connections: int = 8
    timeout_s: float = 5.0


PACE = Pace()


class Load:
    """A context manager: requests leave at `pace` from entering until leaving.

    Asks `version`, or the promoted one for `None`, or another server's `path`. `sent` may be read meanwhile; it is
    complete after `stop`.
    """

    def __init__(
        self,
        base: str,
        questions: Questions,
        *,
        pace: Pace = PACE,
        version: str | None = None,
        path: str | None = None,
    ) -> None:
        url = urlsplit(prediction_url(base, version) if path is None else base + path)
        self._plan = {
            "host": url.hostname,
            "port": url.port,
            "path": url.path,
            "bodies": list(questions.bodies),
            "expected": questions.expected,
            "tolerance": questions.tolerance,
            **asdict(pace),
        }
        self.sent: list[Sent] = []
        self._timeout_s = pace.timeout_s
        self._rate = pace.rate
        self._process: subprocess.Popen[str]
        self._reader: threading.Thread

    def __enter__(self) -> Self:
        command = [sys.executable, "-I", "-S", str(_SENDER)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._plan) + "\n")
        self._process.stdin.flush()
        self._reader = threading.Thread(target=self._read, name="load", daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.sent.append(Sent(*json.loads(line)))

    @property
    def pid(self) -> int:
        """Of the sending process."""
        return self._process.pid

    def stop(self) -> list[Sent]:
        """Send no more, wait for the answers that are due, and return what became of all; may be called again.

        Raises `RuntimeError` if the sender itself has failed.
        """
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            status = self._process.wait(self._timeout_s + STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._reader.join()
        if self._process.stdout:
            self._process.stdout.close()
        if status:
            raise RuntimeError(f"the process that sends the load ended with status {status}")
        return self.sent

    def rest(self, quiet_s: float, warm_up_s: float = 1.0) -> float:
        """Return `quiet_s` after the server has answered the requests of `warm_up_s`; when that was.

        What is sent from then until the return is undisturbed.
        """
        self.wait_answered(round(self._rate * warm_up_s), timeout_s=WARM_UP_TIMEOUT_S)
        quiet = time.monotonic()
        time.sleep(quiet_s)
        return quiet

    def wait_answered(self, count: int, timeout_s: float) -> None:
        """Return when `count` more requests have been answered with 200; `TimeoutError` otherwise."""
        deadline, seen, missing = time.monotonic() + timeout_s, len(self.sent), count
        while missing > 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{missing} of {count} requests were not answered within {timeout_s:g} s")
            time.sleep(0.01)
            new = self.sent[seen:]
            seen += len(new)
            missing -= sum(not record.lost for record in new)


@dataclass(frozen=True)
class Figures:
    """Requests over a span of time."""

    requests: int
    rate: float
    """Requests due a second, also where `sent` is of several loads one after the other."""
    excused: int
    """Not answered with 200, but with what was to be expected of the fault."""
    lost: int
    """Not answered with 200 otherwise."""
    wrong: int
    p50_ms: float
    p99_ms: float
    longest_ms: float


def between(sent: Iterable[Sent], start: float, end: float = math.inf) -> list[Sent]:
    """Those that were due from `start` until before `end`."""
    return [record for record in sent if start <= record.due < end]


def figures(sent: Sequence[Sent], excused: Collection[str] = ()) -> Figures:
    """What the requests `sent` came to; latencies are of all of them, answered or not, NaN where there are none.

    Those whose outcome is one of `excused` are not lost.
    """
    missing = [record.outcome in excused for record in sent if record.lost]
    latencies = sorted(record.latency_s * 1000 for record in sent)
    gaps = [later - earlier for earlier, later in itertools.pairwise(sorted(record.due for record in sent))]
    return Figures(
        requests=len(sent),
        rate=1 / (statistics.median(gaps) or math.inf) if gaps else 0.0,
        excused=sum(missing),
        lost=len(missing) - sum(missing),
        wrong=sum(record.wrong for record in sent),
        p50_ms=percentile(latencies, 0.50),
        p99_ms=percentile(latencies, 0.99),
        longest_ms=latencies[-1] if latencies else math.nan,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of the `ordered` ones do not exceed (nearest rank); NaN of nothing."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
