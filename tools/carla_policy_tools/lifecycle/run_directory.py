"""The directory of one running server: its logs, its temporary files, and what others ask it for."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from carla_policy_tools.lifecycle import leftovers
from carla_policy_tools.lifecycle.registry import try_lock
from carla_policy_tools.settings.applying import REQUEST_FILE
from carla_policy_tools.torchserve import ServerError


@contextmanager
def run_directory(given: Path | None) -> Iterator[Path]:
    """`given`, or a temporary one that stays only if a `ServerError` is raised, as for one that another server has."""
    directory = Path(tempfile.mkdtemp(prefix=leftovers.RUN_DIRECTORY_PREFIX)) if given is None else given.resolve()
    if directory.exists() and not directory.is_dir():
        raise ServerError(f"{directory}: is not a directory; choose another --run-dir")
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / leftovers.LOCK_FILE).open("w") as lock:
        if not try_lock(lock.fileno()):
            raise ServerError(f"{directory}: another server runs there; choose another --run-dir")
        (directory / REQUEST_FILE).unlink(missing_ok=True)
        shutil.rmtree(directory / "tmp", ignore_errors=True)  # copies that a killed server unpacked
        keep = given is not None
        try:
            yield directory
        except ServerError:
            keep = True
            raise
        finally:
            for copies in [directory / name for name in leftovers.COPIES] if keep else [directory]:
                shutil.rmtree(copies, ignore_errors=True)
