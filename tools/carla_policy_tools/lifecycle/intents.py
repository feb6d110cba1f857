"""Changes that are under way: a file for each, held open and locked by the command that makes the change.

The registry changes only when a change is done. A file here whose lock is free belongs to a command that was killed:
whoever comes next takes the change back (see `reconciling`) and removes the file. A gate changes no version, but loads
copies of some: it is announced beside the changes of its version, and stands in the way of none.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from carla_policy_tools.lifecycle.events import now, operator
from carla_policy_tools.lifecycle.registry import POLL_S, RegistryError, RegistryFile, try_lock
from carla_policy_tools.paths import sorted_versions

GLANCE_S = 0.2
"""Who looks for interrupted changes holds their locks for an instant."""
GATE = "gate"
_GATE_SUFFIX = f".{GATE}"


@dataclass(frozen=True)
class Intent:
    """A change that was announced."""

    version: str
    verb: str
    by: str
    since: str

    @property
    def is_change(self) -> bool:
        """Whether the version may be other than declared meanwhile."""
        return self.verb != GATE

    def __str__(self) -> str:
        return f"{self.verb} {self.version} by {self.by} since {self.since}"


@contextmanager
def intent(registry_file: RegistryFile, verb: str, version: str, patience_s: float = GLANCE_S) -> Iterator[None]:
    """Announce a change of `version` until the block ends.

    `RegistryError` if another one is under way, and still is after `patience_s`.
    """
    directory = registry_file.intents_directory
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / (f"{version}{_GATE_SUFFIX}" if verb == GATE else version)
    kind = "gate" if verb == GATE else "change"
    deadline = time.monotonic() + patience_s
    while (file := _claim(path)) is None:
        if time.monotonic() > deadline:
            raise RegistryError(
                f"{version}: another {kind} is under way: {_read(path) or 'just done'}; try again when it is done"
            )
        time.sleep(POLL_S)
    with file:
        file.write(json.dumps({"verb": verb, "by": operator(), "since": now().isoformat(timespec="seconds")}))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def under_way(registry_file: RegistryFile) -> list[Intent]:
    """Announced changes, also those whose command was killed."""
    return [found for path in _files(registry_file) if (found := _read(path))]


def any_interrupted(registry_file: RegistryFile) -> bool:
    """Whether a command was killed during a change that nobody has taken back yet."""
    for path in _files(registry_file):
        with suppress(FileNotFoundError), path.open("rb") as file:
            if try_lock(file.fileno(), shared=True) and _is_still(path, file.fileno()):
                return True
    return False


@contextmanager
def interrupted(registry_file: RegistryFile) -> Iterator[list[Intent]]:
    """Changes whose command was killed. They are removed when the block ends without an error. Hold the lock."""
    held = []
    try:
        for path in _files(registry_file):
            try:
                descriptor = os.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue
            free = try_lock(descriptor) and _is_still(path, descriptor)
            if free and os.fstat(descriptor).st_size:
                held.append((path, descriptor))
                continue
            if free:
                path.unlink()  # its command had not begun
            os.close(descriptor)
        yield [found for path, _ in held if (found := _read(path))]
        for path, _ in held:
            path.unlink(missing_ok=True)
    finally:
        for _, descriptor in held:
            os.close(descriptor)


def _files(registry_file: RegistryFile) -> list[Path]:
    directory = registry_file.intents_directory
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    versions = sorted_versions({name.removesuffix(_GATE_SUFFIX) for name in names})
    return [directory / name for version in versions for name in (version, version + _GATE_SUFFIX) if name in names]


def _claim(path: Path) -> IO[str] | None:
    """The file of a change, open and locked; none while somebody else has it.

    What a killed command left in it is not overwritten: that change has to be taken back first (see `settling`).
    """
    file = path.open("a", encoding="utf-8")
    if try_lock(file.fileno()) and _is_still(path, file.fileno()) and os.fstat(file.fileno()).st_size == 0:
        return file
    file.close()
    return None


def _read(path: Path) -> Intent | None:
    """The intent in a file; none where the file is gone, and an unnamed one where its command died while writing."""
    version = path.name.removesuffix(_GATE_SUFFIX)
    try:
        content = json.loads(path.read_bytes())
        return Intent(version, str(content["verb"]), str(content["by"]), str(content["since"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return Intent(version, "change" if version == path.name else GATE, "an unknown operator", "an unknown time")


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the opened file still has its name: another command may have ended and removed it meanwhile."""
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
