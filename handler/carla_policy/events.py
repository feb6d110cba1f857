"""Log events: one JSON object a line, of bounded length, that nothing which a client sends can break or forge.

An event has `time` (UTC), `level`, `event` (a stable name), `message`, `logger`, what `context` adds to every line of
a process (version, model, pid), and fields of its own. Lines are ASCII, so that no character in them ends a line for
any reader. Exceptions are told by class and place; their words may quote a request, and are left out once requests
come in.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

LEVEL_VARIABLE = "CARLA_POLICY_LOG_LEVEL"
METRICS_LOGGER = "ts.metrics.caching_metric"
"""Its lines are for TorchServe, which takes them out of a worker's output."""
OWN_LOGGER = "carla_policy"
REQUESTS_LOGGER = f"{OWN_LOGGER}.requests"
"""Its events have rates of their own, see `request_events`."""
MAX_TEXT = 4_000
MAX_LINE = 16_000
MAX_ENTRIES, MAX_DEPTH, MAX_FRAMES = 50, 4, 20

LEVELS = {"DEBUG": 10, "INFO": 20, "WARN": 30, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
_SHORT = {"WARNING": "WARN", "CRITICAL": "ERROR"}
_FRACTION = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE][-+]?\d))([eE][-+]?\d+)?")


def tell(logger: logging.Logger, level: int, event: str, message: str, **fields: Any) -> None:
    """Log an event; fields that are `None` are left out."""
    if logger.isEnabledFor(level):
        logger.log(level, "%s", message, extra=named(event, **fields))


def named(event: str, **fields: Any) -> dict[str, Any]:
    """The `extra` of a log call that makes an event of it."""
    return {"event": event, "fields": {name: value for name, value in fields.items() if value is not None}}


class JsonFormatter(logging.Formatter):
    """Writes log records as events."""

    def __init__(self, context: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.context = dict(context or {})
        self.quotes_exceptions = True
        """Whether an exception's own words are told."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == METRICS_LOGGER:
            return record.getMessage()
        try:
            message = record.getMessage()
        except Exception:
            message = str(record.msg)
        event = {
            "time": _utc(record.created),
            "level": _SHORT.get(record.levelname, record.levelname),
            "event": getattr(record, "event", "log"),
            "message": message,
            "logger": record.name,
        }
        fields = {**self.context, **getattr(record, "fields", {})}
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = describe(record.exc_info[1], self.quotes_exceptions)
        return _line(event, {name: value for name, value in fields.items() if name not in event})


class Allowance:
    """How often something is told: `burst` times at once, `per_s` times a second in the long run.

    `suppressed` counts what was not, since the last time.
    """

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._left = float(burst)
        self._at = -math.inf
        self.suppressed = 0

    def take(self, now: float) -> bool:
        """Whether it may be told at `now`, in seconds; if not, that is counted."""
        if self.spend(now):
            return True
        self.suppressed += 1
        return False

    def spend(self, now: float) -> bool:
        """As `take`, but what may not be told is not counted."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._per_s)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    def settle(self) -> int | None:
        """How many were suppressed, if any, which thereby has been told."""
        count, self.suppressed = self.suppressed, 0
        return count or None


class FloodFilter(logging.Filter):
    """Lets `burst` records of one kind pass at once, and `per_s` a second; the next one says how many were not told.

    A kind is an event's name, or the logger and the text before anything is filled in. Metrics and events of requests
    are not held back here.
    """

    MAX_KINDS = 256

    def __init__(self, per_s: float = 5.0, burst: int = 50) -> None:
        super().__init__()
        self._per_s, self._burst = per_s, burst
        self._allowances: dict[object, Allowance] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name in (METRICS_LOGGER, REQUESTS_LOGGER):
            return True
        kind = getattr(record, "event", (record.name, str(record.msg)[:80]))
        if kind not in self._allowances and len(self._allowances) >= self.MAX_KINDS:
            kind = None
        allowance = self._allowances.setdefault(kind, Allowance(self._per_s, self._burst))
        if not allowance.take(time.monotonic()):
            return False
        suppressed = allowance.settle()
        if suppressed:
            record.fields = {"suppressed_before": suppressed, **getattr(record, "fields", {})}
        return True


def level_of(name: str | None) -> int:
    """The level of a name such as `debug` or `WARN`, of any case; info where there is none or an unknown one."""
    return LEVELS.get((name or "").strip().upper(), logging.INFO)


def configured_level() -> int:
    """What the environment asks for."""
    return level_of(os.environ.get(LEVEL_VARIABLE))


def describe(error: BaseException, quoting: bool) -> dict[str, Any]:
    """An exception for an event: its class, the places that it came through, and with `quoting` its own words."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    stack = [f"{'/'.join(PurePath(frame.filename).parts[-2:])}:{frame.lineno} {frame.name}" for frame in frames]
    return {"type": name, **({"message": str(error)} if quoting else {}), "stack": stack}


def without_values(text: str) -> str:
    """What a network says of its failure, with `#` for numbers that may be a request's; shapes, being whole, stay."""
    return _FRACTION.sub("#", text)


def _utc(seconds: float) -> str:
    whole, milliseconds = divmod(int(seconds * 1e3), 1_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"


def _line(event: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    line = _dump({**_clean(event), **_clean(fields)})
    if len(line) > MAX_LINE:
        shortened = {**event, "message": str(event["message"])[: MAX_LINE // 12], "truncated": True}
        short = {name: value for name, value in fields.items() if not isinstance(value, str | Mapping | Sequence)}
        line = _dump({**_clean(shortened), **_clean(short)})
    return line


def _dump(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))


def _clean(value: Any, depth: int = MAX_DEPTH) -> Any:
    """`value` as JSON that every reader takes: no NaN, no half of a surrogate pair, nothing deep or long."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 1 << 53 else str(value)[:MAX_TEXT]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping) and depth:
        return {_text(str(name)[:100]): _clean(own, depth - 1) for name, own in list(value.items())[:MAX_ENTRIES]}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray) and depth:
        return [_clean(own, depth - 1) for own in value[:MAX_ENTRIES]]
    text = value if isinstance(value, str) else type(value).__name__
    return _text(text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}...")


def _text(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
