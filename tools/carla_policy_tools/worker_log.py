"""What workers say in TorchServe's log, by version: the server itself keeps the reason of a failed load to itself.

Each line is an event, see `carla_policy.events`. Its thread names the version: `W-9000-carla_policy_v1.2.3-stdout`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from carla_policy_tools.paths import MODEL_NAME

_THREAD = re.compile(rf"W-\d+-{MODEL_NAME}(-candidate-v[0-9.]+)?_(?P<version>v[0-9.]+[0-9])(-\S*)?")
_EXCEPTION = re.compile(r"(?P<reason>[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)\b.*)", re.DOTALL)
_DEATH = re.compile(r"Backend worker process died|Load model failed")


def read_event(line: str) -> Mapping[str, Any] | None:
    """The event in a line of a log, or none."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("message"), str) else None


def words(line: str) -> str:
    """What a line of a log says to people, without what is for machines."""
    event = read_event(line)
    if event is None:
        return line
    said = event["message"] if event.get("error") is None else f"{event['message']}: {_raised(event)}"
    return f"{said}\n{event['exception']}".rstrip() if "exception" in event else str(said)


def version_of(event: Mapping[str, Any]) -> str | None:
    """The version of the worker that an event is about."""
    found = _THREAD.fullmatch(str(event.get("thread")))
    return found["version"] if found else None


def load_failure(line: str) -> tuple[str, str] | None:
    """The version and its own reason in a line that says why it does not load."""
    event = read_event(line)
    version = version_of(event) if event else None
    return (version, event["message"]) if event and version and event.get("event") == "load_failed" else None


def is_death(line: str) -> bool:
    """Whether a line says that a worker ended, without saying why."""
    return _DEATH.search(line) is not None


class WorkerLog:
    """What the workers of one version say from now on."""

    def __init__(self, log_file: Path, version: str) -> None:
        self.path = log_file
        self._version = version
        self._offset = log_file.stat().st_size if log_file.exists() else 0

    def has_failed(self) -> bool:
        """Whether a worker has ended, or said why it will."""
        return any(event.get("event") == "load_failed" or is_death(event["message"]) for event in self._events())

    def reason(self) -> str:
        """Why the version does not load: what its handler says, else the last exception, else the last line."""
        events = list(self._events())
        for event in reversed(events):
            if event.get("event") == "load_failed":
                return str(event["message"])
        for event in reversed(events):
            found = _EXCEPTION.fullmatch(_raised(event) or event["message"])
            if found:
                return found["reason"]
        return self.last_words()

    def last_words(self) -> str:
        """The last line that a worker of the version wrote."""
        said = [str(event["message"]) for event in self._events()]
        return said[-1] if said else "its workers said nothing"

    def _events(self) -> Iterator[Mapping[str, Any]]:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset if self.path.stat().st_size >= self._offset else 0)
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return
        for line in text.split("\n"):
            event = read_event(line)
            if event and version_of(event) == self._version:
                yield event


def _raised(event: Mapping[str, Any]) -> str | None:
    error = event.get("error")
    return f"{error.get('type')}: {error.get('message', '')}" if isinstance(error, dict) else None
