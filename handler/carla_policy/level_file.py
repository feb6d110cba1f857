"""The level from which on a worker logs, while it runs: read again from a file when that changes."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from carla_policy.events import OWN_LOGGER, level_of

LEVEL_FILE_VARIABLE = "CARLA_POLICY_LOG_LEVEL_FILE"
INTERVAL_S = 1.0
_LEVELS = {"debug", "info", "warning", "error", "critical"}


def follow_level_file() -> None:
    """Obey the file that the environment names, from now on and for as long as this process lives; else do nothing."""
    name = os.environ.get(LEVEL_FILE_VARIABLE)
    if name:
        threading.Thread(target=_follow, args=(Path(name),), name="log-level", daemon=True).start()


def _follow(path: Path) -> None:
    pause, seen = threading.Event(), ""
    while True:
        level = _read(path)
        if level not in ("", seen):
            set_level(level)
            seen = level
        pause.wait(INTERVAL_S)


def _read(path: Path) -> str:
    """The level in the file; empty where there is none."""
    try:
        with path.open(encoding="ascii") as file:
            level = file.read(16).strip()
    except (OSError, ValueError):
        return ""
    return level if level in _LEVELS else ""


def set_level(name: str) -> None:
    """Log from `name` on. Of others than this project, only warnings: TorchServe has a line for each request."""
    level = level_of(name)
    logging.getLogger(OWN_LOGGER).setLevel(level)
    logging.getLogger().setLevel(max(level, logging.WARNING))
