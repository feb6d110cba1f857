"""What every long-running command needs: children that do not outlive it, and signals that end it in order."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PASSPHRASE_VARIABLE = "CARLA_POLICY_KEY_PASSPHRASE"
FETCH_TOKEN_VARIABLE = "CARLA_POLICY_FETCH_TOKEN"
WITHHELD = frozenset({"PYTHONPATH", PASSPHRASE_VARIABLE, FETCH_TOKEN_VARIABLE})
"""What the server and its workers do not get of the environment: a PYTHONPATH would put other modules before those that
an archive carries; the passphrase of a signing key and a token for archives are nothing for the code of a policy."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """In the child: be terminated when the parent dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


END_WITH_PARENT = _end_with_parent if sys.platform == "linux" else None
"""To be given to `subprocess.Popen` as `preexec_fn`."""


def server_environment() -> dict[str, str]:
    """This process's environment, as far as it is anything for the server and its workers."""
    return {name: value for name, value in os.environ.items() if name not in WITHHELD}


def age_s() -> float:
    """Seconds since this process was launched, its interpreter's start included; on Linux, elsewhere NaN."""
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return float("nan")
    return round(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 3)


@contextmanager
def stop_signals(handle: Callable[[int, object], None]) -> Iterator[None]:
    """Let `handle` have Ctrl-C, SIGTERM and the closing of the terminal; but under nohup a command outlives that."""
    heeded = [*STOP_SIGNALS]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        heeded.remove(signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
