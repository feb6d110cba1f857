"""Stop a server in order: no new work, everything that was asked answered, then the end.

TorchServe resets its connections when it is told to end. So its listening socket is closed from here first (Linux lets
a parent take part in its child's sockets), then the workers are told to refuse what comes on connections that are
open, each with an answer that closes its connection.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import requests

from carla_policy_tools.lifecycle.draining import pass_queue
from carla_policy_tools.lifecycle.endpoint import Endpoint
from carla_policy_tools.lifecycle.registry import RegistryError

FINISH_S = 3.0
"""For what was asked before the stop."""
LEAVE_S = 2.0
"""For clients with an open connection to hear, at their next request, that the server stops."""

_SYS_PIDFD_GETFD = 438
_LISTEN, _ESTABLISHED, _CLOSE_WAIT = "0A", "01", "08"
_POLL_S = 0.02


def drain(endpoint: Endpoint, server_pid: int, drain_file: Path) -> None:
    """Return when every accepted request has been answered, or after about six seconds if a worker hangs."""
    ports = endpoint.ports
    close_listener(server_pid, ports.inference)
    _pass_queues(endpoint, FINISH_S)
    drain_file.touch()
    deadline = time.monotonic() + LEAVE_S
    while time.monotonic() < deadline and _connections(server_pid, ports.inference):
        time.sleep(_POLL_S)
    _pass_queues(endpoint, FINISH_S / 3)


def close_listener(pid: int, port: int) -> bool:
    """Let process `pid` accept no more connections at `port`; False if it is gone, or the kernel does not permit it."""
    inodes = {inode for inode, _ in _sockets(pid, port, {_LISTEN})}
    descriptors: list[Path] = []
    with suppress(OSError):
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    for entry in descriptors:
        with suppress(OSError):
            target = str(entry.readlink())
            if target.startswith("socket:[") and target[8:-1] in inodes:
                return _shut_down(pid, int(entry.name))
    return False


def _shut_down(pid: int, descriptor: int) -> bool:
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        shared = ctypes.CDLL(None).syscall(_SYS_PIDFD_GETFD, process, descriptor, 0)
    finally:
        os.close(process)
    if shared < 0:
        return False
    with socket.socket(fileno=shared) as listener, suppress(OSError):
        listener.shutdown(socket.SHUT_RD)
        return True
    return False


def _pass_queues(endpoint: Endpoint, timeout_s: float) -> None:
    def one(version: str) -> None:
        with suppress(requests.RequestException, RegistryError), endpoint.management() as management:
            pass_queue(management, version, timeout_s)

    with suppress(requests.RequestException, RegistryError), endpoint.management() as management:
        versions = management.versions()
        with ThreadPoolExecutor(max_workers=len(versions) or 1) as pool:
            list(pool.map(one, versions))


def _connections(pid: int, port: int) -> int:
    return len(_sockets(pid, port, {_ESTABLISHED, _CLOSE_WAIT}))


def _sockets(pid: int, port: int, states: set[str]) -> list[tuple[str, str]]:
    """Inode and state of the TCP sockets in the network of `pid` whose local port is `port`."""
    found = []
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                columns = line.split()
                if int(columns[1].rpartition(":")[2], 16) == port and columns[3] in states:
                    found.append((columns[9], columns[3]))
    return found
