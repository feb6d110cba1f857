"""A program of this machine as the leader of a process group of its own, which ends with this process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from carla_policy_environment import guard

POLL_S = 0.02
TAIL_BYTES = 4096


class ChildProcess:
    """`program` with `variables` added to the environment and all that it prints appended to `log`.

    It gets SIGTERM when this process dies, or the thread that made it ends. Ctrl-C in a terminal does not reach it:
    whoever made it ends it. With `group`, all that it starts is ended with it; for shell scripts.
    """

    def __init__(
        self, program: Sequence[str], log: Path, variables: Mapping[str, str] | None = None, *, group: bool = False
    ) -> None:
        guarded = [sys.executable, "-I", "-S", str(guard.__file__), *(["--group"] if group else [])]
        output: IO[bytes]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*guarded, str(os.getpid()), *program],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(variables or {})},
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._log = log

    @property
    def ended(self) -> str | None:
        """How it ended, in words, with the last line that it printed; `None` while it runs."""
        status = self._status()
        if status is None:
            return None
        how = f"ended with status {status}" if status >= 0 else f"was ended by {_signal_name(-status)}"
        last = last_line(self._log) if status > 0 else ""
        return f"{how}: {last}" if last else how

    def end(self, grace_s: float) -> None:
        """SIGTERM, and after `grace_s` SIGKILL; returns when nothing of its group is left."""
        if self._process.returncode is not None:
            return
        if grace_s > 0:
            os.kill(self.pid, signal.SIGTERM)
            deadline = time.monotonic() + grace_s
            while self._status() is None and time.monotonic() < deadline:
                time.sleep(POLL_S)
        # Its id is nobody else's before it has been waited for.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def _status(self) -> int | None:
        """What `Popen.poll` says, but the process is left to be waited for."""
        if self._process.returncode is not None:
            return self._process.returncode
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
