"""Reads the log of a server: its files in the order of time, which of their events somebody asks for, and new ones."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from carla_policy.events import level_of
from carla_policy_tools.worker_log import read_event, version_of

FILES = ("torchserve", "serve", "requests")
"""Stems of names: TorchServe's log with its workers', that of `carla-policy serve`, and failures of the front end."""
POLL_S = 0.2
MAX_LINE = 1 << 20
IDS = ("request_id", "client_request_id", "trace_id")
_HEAD = frozenset({"time", "level", "event", "message", "logger", "model", "version", "thread", "error", "exception"})


@dataclass(frozen=True)
class Filter:
    """Which events are asked for; what is `None` lets all pass."""

    level: str | None = None
    """And those above."""
    event: str | None = None
    request_id: str | None = None
    """The server's own, the client's, or a trace's."""
    version: str | None = None

    def __call__(self, event: Mapping[str, Any]) -> bool:
        if self.level is not None and level_of(str(event.get("level"))) < level_of(self.level):
            return False
        if self.event is not None and event.get("event") != self.event:
            return False
        if self.version is not None and self.version not in (event.get("version"), version_of(event)):
            return False
        return self.request_id is None or self.request_id in [event.get(name) for name in IDS]


def past_events(directory: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> list[Mapping[str, Any]]:
    """The events in the files below `directory`, also the older ones of each log, by time."""
    events = []
    for stem in FILES:
        for path in sorted(directory.glob(f"{stem}*.log"), key=_age):
            try:
                with path.open("rb") as file:
                    events += [event for event in _events(file) if wanted(event)]
            except FileNotFoundError:
                continue
    return sorted(events, key=_time)


def new_events(directory: Path) -> Generator[Mapping[str, Any] | None, None, None]:
    """The events that come from now on; `None` where there is none for a moment. Begins with what is new at `next`."""
    tails = [_Tail(directory / f"{stem}.log") for stem in FILES]
    try:
        while True:
            came = [event for tail in tails for event in tail.read()]
            yield from sorted(came, key=_time)
            if not came:
                yield None
                time.sleep(POLL_S)
    finally:
        for tail in tails:
            tail.close()


def as_text(event: Mapping[str, Any]) -> str:
    """An event for people: one line, and those of an exception below it; nothing in it steers a terminal."""
    version = event.get("version") or version_of(event) or "-"
    head = f"{_moment(event)} {event.get('level', ''):<5} {event.get('event', ''):<20} {version}  {event['message']}"
    rest = [f"{name}={_brief(value)}" for name, value in event.items() if name not in _HEAD]
    lines = [printable("  ".join([head, *rest]))]
    error = event.get("error")
    if isinstance(error, dict):
        lines.append(printable(f"    {error.get('type')}: {error.get('message', '')}".rstrip(": ")))
        stack = error.get("stack")
        lines += [printable(f"      {frame}") for frame in stack] if isinstance(stack, list) else []
    lines += [printable(f"    {line}") for line in str(event.get("exception", "")).splitlines()]
    return "\n".join(lines)


def printable(text: str) -> str:
    """`text` with escapes for what a terminal would obey or not show."""
    return "".join(part if part.isprintable() else ascii(part)[1:-1] for part in text)


class _Tail:
    """The end of one file, which is begun anew under the same name when it has grown too large."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rest = b""
        self._file = self._open()
        if self._file:
            self._file.seek(0, os.SEEK_END)

    def read(self) -> Iterator[Mapping[str, Any]]:
        """What has come since."""
        yield from self._read()
        try:
            present = self._path.stat()
        except FileNotFoundError:
            return
        if self._file is None or (present.st_ino, present.st_dev) != _identity(self._file):
            yield from self._read()
            self.close()
            self._file, self._rest = self._open(), b""
            yield from self._read()

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _open(self) -> BinaryIO | None:
        try:
            return self._path.open("rb")
        except FileNotFoundError:
            return None

    def _read(self) -> Iterator[Mapping[str, Any]]:
        if self._file is None:
            return
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            event = read_event(line.decode("utf-8", "replace"))
            if event:
                yield event


def _identity(file: BinaryIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_ino, found.st_dev


def _events(file: Iterable[bytes]) -> Iterator[Mapping[str, Any]]:
    for line in file:
        event = read_event(line.decode("utf-8", "replace")) if len(line) < MAX_LINE else None
        if event:
            yield event


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _time(event: Mapping[str, Any]) -> str:
    return str(event.get("time", ""))


def _moment(event: Mapping[str, Any]) -> str:
    return _time(event).replace("T", " ").removesuffix("Z")


def _brief(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
