"""A worker that is held: it has nothing of a client in its hands, so it can be taken away without a loss.

TorchServe ends workers at once, with whatever they work on. So whoever wants fewer of them first gives each one a job
that asks for nothing, a describe job, which waits here for as long as the directory `hold-<version>` exists.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

LIMIT_S = 5.0
"""Longer than this no worker is held: whoever made the directory was killed."""
_POLL_S = 0.005


def hold_directory(run_dir: Path, version: str) -> Path:
    return run_dir / f"hold-{version}"


def hold(directory: Path) -> None:
    """Say so in `directory`, if it is there and new, and wait until it is gone."""
    with suppress(OSError):
        made = directory.stat().st_mtime
        if time.time() - made > LIMIT_S:
            return
        (directory / str(os.getpid())).touch()
        deadline = time.monotonic() + LIMIT_S
        while directory.is_dir() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
