"""The events of `carla-policy serve` itself: start, ready, changes of the registry, stop; in `serve.log`.

With a console, everything that is logged, TorchServe's lines among it, is on standard error too: for a container.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from carla_policy.errors import ArtifactError
from carla_policy.events import OWN_LOGGER, JsonFormatter, level_of, tell
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.worker_log import read_event

FILE = "serve.log"
MAX_BYTES, FILES = 1_000_000, 3


class ServeEvents:
    """Use as a context manager."""

    def __init__(self, directory: Path, *, level: str = "info", console: bool = False) -> None:
        """Writes below the directory of the logs, from `level` on."""
        self._logger = logging.Logger(f"{OWN_LOGGER}.serve", level_of(level))
        directory.mkdir(parents=True, exist_ok=True)
        file = RotatingFileHandler(directory / FILE, maxBytes=MAX_BYTES, backupCount=FILES, encoding="ascii")
        file.namer = lambda name: str(Path(name.replace(f"{FILE}.", f"{Path(FILE).stem}.") + Path(FILE).suffix))
        self._handlers: list[logging.Handler] = [file, *([logging.StreamHandler(sys.stderr)] if console else [])]
        for handler in self._handlers:
            handler.setFormatter(JsonFormatter({"pid": os.getpid()}))
            self._logger.addHandler(handler)
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self.error("failed", str(error))
        else:
            self.info("stopped", "stopped")
        for handler in self._handlers:
            handler.close()

    def info(self, event: str, message: str, **fields: Any) -> None:
        tell(self._logger, logging.INFO, event, message, **fields)

    def error(self, event: str, message: str, **fields: Any) -> None:
        tell(self._logger, logging.ERROR, event, message, **fields)

    def relay(self, line: str) -> None:
        """A line of TorchServe's console, for ours: as it is if it is an event, else as the message of one."""
        if not self._console:
            return
        if read_event(line):
            print(line, file=sys.stderr, flush=True)
        elif line.strip():
            record = self._logger.makeRecord(
                self._logger.name, logging.WARNING, "", 0, "%s", (line,), None, extra={"event": "server_output"}
            )
            self._handlers[-1].handle(record)


class RegistryChanges:
    """What changes in a registry while it is served, whoever changes it."""

    def __init__(self, registry_file: RegistryFile, sequence: int, events: ServeEvents) -> None:
        """Changes up to `sequence` are known."""
        self._registry_file = registry_file
        self._sequence = sequence
        self._events = events

    def look(self) -> None:
        """Tell of each change since the last look. A file that stays as it was is not read again."""
        with suppress(ArtifactError, OSError):
            for change in self._registry_file.read().history:
                if change.sequence > self._sequence:
                    self._sequence = change.sequence
                    self._tell(change.model_dump(mode="json", exclude_none=True))

    def _tell(self, change: Mapping[str, Any]) -> None:
        fields = {name: value for name, value in change.items() if name != "verb" and value != ""}
        subject = f" {change['version']}" if "version" in change else ""
        self._events.info(change["verb"], f"{change['verb']}{subject} by {change['by']}", **fields)
