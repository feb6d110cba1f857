"""Answers in time: how long a request's answer is of use, and a pass through the network that may be given up.

A deadline counts from the request's arrival at the worker, or from the `x-request-start` that a proxy in front has
noted (`t=<milliseconds since 1970>`), so that time spent in a queue counts as well. The card's deadline holds for
every request, a client's own can only be shorter. Requests of one batch leave together, so a pass is waited for until
the latest of their deadlines.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from typing import Any

from carla_policy.errors import InvalidOption

DEADLINE_HEADER, START_HEADER = "x-policy-deadline-ms", "x-request-start"
MAX_DEADLINE_MS = 60_000.0
HANG_S = 5.0
"""A pass that takes so much longer than its deadline is given up, and with it the process."""
_NUMBER = re.compile(r"[0-9]{1,5}(\.[0-9]{1,6})?")
_START = re.compile(r"t=([0-9]{13})")

_Done = SimpleQueue[tuple[Any, BaseException | None]]
"""Where the result of one piece of work, or what it raised, arrives."""


class Late(Exception):
    """The pass did not end in time."""


def due(headers: Mapping[str, str], card_deadline_ms: float | None, arrived: float) -> float | None:
    """When (`time.perf_counter()`) an answer comes too late to a request that `arrived` then; `None` for never.

    Raises `InvalidOption` for a deadline that is no number of milliseconds above 0.
    """
    text = headers.get(DEADLINE_HEADER)
    wanted = [] if card_deadline_ms is None else [card_deadline_ms]
    if text is not None:
        if not _NUMBER.fullmatch(text.strip()) or not 0.0 < float(text) <= MAX_DEADLINE_MS:
            message = f"expected milliseconds above 0 and up to {MAX_DEADLINE_MS:.0f}, got {text!a:.40}"
            raise InvalidOption.at(DEADLINE_HEADER, message, "float")
        wanted.append(float(text))
    return arrived + min(wanted) / 1e3 - age_s(headers.get(START_HEADER)) if wanted else None


def queued_s(headers: Mapping[str, str], ago_s: float) -> float | None:
    """How long a request waited that arrived at the worker `ago_s` ago; `None` where nobody has noted it."""
    age = age_s(headers.get(START_HEADER))
    return max(0.0, age - ago_s) if age else None


def age_s(start: str | None) -> float:
    """Seconds since `start`, a value of `x-request-start`; 0 if it is in the future or long ago: the clock is wrong."""
    match = _START.fullmatch(start.strip()) if start else None
    age = time.time() - int(match[1]) / 1e3 if match else 0.0
    return age if 0.0 <= age <= MAX_DEADLINE_MS / 1e3 else 0.0


class Watch:
    """Runs work that may hang in a thread of its own, one piece at a time."""

    def __init__(
        self,
        prepare: Callable[[], None] = lambda: None,
        on_hang: Callable[[], None] = lambda: None,
        hang_s: float = HANG_S,
    ) -> None:
        """`prepare` is what the thread does first; `on_hang` is called once work is `hang_s` behind its deadline."""
        self._prepare = prepare
        self._on_hang = on_hang
        self._hang_s = hang_s
        self._tasks: SimpleQueue[tuple[Callable[[], Any], _Done]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy = threading.Lock()

    @property
    def hangs(self) -> bool:
        """Whether work that was given up is still running."""
        return self._busy.locked()

    def run(self, work: Callable[[], Any], timeout_s: float) -> Any:
        """What `work` returns or raises; `Late` if it has not ended in `timeout_s`, or earlier work still runs."""
        if timeout_s <= 0.0 or not self._busy.acquire(blocking=False):
            raise Late
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="network", daemon=True)
            self._thread.start()
        done: _Done = SimpleQueue()
        self._tasks.put((work, done))
        try:
            result, error = done.get(timeout=timeout_s)
        except Empty:
            threading.Thread(target=self._wait_for, args=(done,), name="network-watch", daemon=True).start()
            raise Late from None
        if error is not None:
            raise error
        return result

    def _work(self) -> None:
        self._prepare()
        while True:
            work, done = self._tasks.get()
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:
                error = raised
            self._busy.release()
            done.put((result, error))

    def _wait_for(self, done: _Done) -> None:
        try:
            done.get(timeout=self._hang_s)
        except Empty:
            self._on_hang()
