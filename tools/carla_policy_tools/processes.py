"""What every long-running command needs: children that do not outlive it, and signals that end it in order."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """In the child: be terminated when the parent dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


END_WITH_PARENT = _end_with_parent if sys.platform == "linux" else None
"""To be given to `subprocess.Popen` as `preexec_fn`."""


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
