"""What earlier runs left that were killed: processes that nobody watches, and unpacked copies of archives."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from pathlib import Path

from carla_policy_tools.lifecycle.endpoint import Endpoint
from carla_policy_tools.lifecycle.registry import RegistryError, try_lock

RUN_DIRECTORY_PREFIX = "carla-policy-run-"
LOCK_FILE = "serve.lock"
COPIES = ("tmp", "store")
_PROGRAMS = ("org.pytorch.serve.ModelServer", "model_service_worker.py")
_FORKS = "fork_server.py"
"""Runs, and its forks too, in the run directory, which its command does not name."""
_END_TIMEOUT_S = 5.0


def end_processes(previous: Endpoint | None) -> None:
    """End a killed server's processes: they were told to end by the kernel, but may hang, and hold its ports.

    `RegistryError` names those that cannot be ended.
    """
    if previous is None:
        return
    deadline = time.monotonic() + _END_TIMEOUT_S
    while left := _processes_of(previous.run_dir):
        if time.monotonic() > deadline + _END_TIMEOUT_S:
            listed = ", ".join(map(str, left))
            raise RegistryError(f"processes of an earlier server in {previous.run_dir} do not end: {listed}; end them")
        if time.monotonic() > deadline:
            for pid in left:
                _kill(pid)
        time.sleep(0.05)


def remove_copies() -> None:
    """Remove the copies of archives in temporary run directories whose server is gone; their logs stay."""
    for directory in Path(tempfile.gettempdir()).glob(f"{RUN_DIRECTORY_PREFIX}*"):
        try:
            with (directory / LOCK_FILE).open("r+") as lock:
                if try_lock(lock.fileno()):
                    for name in COPIES:
                        shutil.rmtree(directory / name, ignore_errors=True)
        except OSError:
            continue


def _processes_of(run_dir: Path) -> list[int]:
    """Servers and workers that were started with this run directory."""
    found = []
    inside = re.compile(rf"(^|[\0=]){re.escape(str(run_dir))}/")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
                directory = str((entry / "cwd").readlink())
            except OSError:
                continue
            started = inside.search(command) and any(program in command for program in _PROGRAMS)
            if started or (_FORKS in command and inside.search(f"{directory}/")):
                found.append(int(entry.name))
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
