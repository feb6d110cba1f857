"""Waits that end on time: for a socket, for a lock, for a moment. All by the monotonic clock.

`threading`'s own timed waits go by the wall clock in older Pythons, and a vehicle's wall clock is set while it drives.
"""

from __future__ import annotations

import select
import socket
import time

_TICK_S = 0.0005


def wait(sock: socket.socket, for_write: bool, due: float) -> bool:
    """Wait until `sock` can be read (or written), or has failed; `False` if it is `due` (`time.monotonic()`) first."""
    while True:
        left = due - time.monotonic()
        if left <= 0.0:
            return False
        if is_ready(sock, for_write, left):
            return True


def pause(until: float) -> None:
    """Sleep a moment, and not beyond `until`."""
    time.sleep(max(0.0, min(_TICK_S, until - time.monotonic())))


if hasattr(select, "poll"):

    def is_ready(sock: socket.socket, for_write: bool, left_s: float = 0.0) -> bool:
        """Whether `sock` can be read (or written), or has failed, within a time."""
        poller = select.poll()
        poller.register(sock, select.POLLOUT if for_write else select.POLLIN)
        milliseconds = int(left_s * 1e3)
        if poller.poll(milliseconds):
            return True
        if milliseconds or not left_s:
            return False
        time.sleep(left_s)  # poll() knows no parts of a millisecond
        return bool(poller.poll(0))

else:  # Windows

    def is_ready(sock: socket.socket, for_write: bool, left_s: float = 0.0) -> bool:
        """Whether `sock` can be read (or written), or has failed, within a time."""
        readers, writers = ([], [sock]) if for_write else ([sock], [])
        return any(select.select(readers, writers, writers, left_s))
