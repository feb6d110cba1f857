"""What workers say in TorchServe's log, by version: the server itself keeps the reason of a failed load to itself.

The thread of a line names the version, as in `W-9000-carla_policy_v1.2.3-stdout`.
"""

from __future__ import annotations

import re
from pathlib import Path

from carla_policy_tools.paths import MODEL_NAME

_THREAD = re.compile(rf" W-\d+-{MODEL_NAME}(-candidate-v[0-9.]+)?_(?P<version>v[0-9.]+[0-9])\S* \S+ (?P<text>.*)")
_REASON = re.compile(r"carla_policy does not load: (?P<reason>.*)")
_EXCEPTION = re.compile(r"^(?P<reason>[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)\b.*)")
_DEATH = re.compile(r"Backend worker process died|Load model failed")


def load_failure(line: str) -> tuple[str, str] | None:
    """The version and its own reason in a line that says why it does not load."""
    thread, reason = _THREAD.search(line), _REASON.search(line)
    return (thread["version"], reason["reason"]) if thread and reason else None


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
        return any(is_death(line) or _REASON.search(line) for line in self._lines())

    def reason(self) -> str:
        """Why the version does not load: what its handler says, else the last exception, else the last line."""
        for pattern in (_REASON, _EXCEPTION):
            for line in reversed(self._lines()):
                found = pattern.search(line)
                if found:
                    return found["reason"]
        return self.last_words()

    def last_words(self) -> str:
        """The last line that a worker of the version wrote."""
        lines = self._lines()
        return lines[-1] if lines else "its workers said nothing"

    def _lines(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset if self.path.stat().st_size >= self._offset else 0)
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        found = (_THREAD.search(line) for line in text.splitlines())
        return [match["text"] for match in found if match and match["version"] == self._version]
