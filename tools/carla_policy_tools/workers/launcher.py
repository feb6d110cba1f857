"""What TorchServe starts as a worker: `python -I -S launcher.py <socket> <command of a worker>`.

Asks the fork server at `socket` for a worker with these arguments, this environment and these standard streams, and
lives as long as it: killed together, and ended with the same status. Becomes the worker itself where nobody answers.
Imports next to nothing, since every start of a worker waits for it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys

_LENGTH = struct.Struct("!I")


def main(path: str, command: list[str]) -> None:
    status = _status_of_fork(path, command)
    if status is None:
        os.execv(sys.executable, [sys.executable, *command])
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _status_of_fork(path: str, command: list[str]) -> int | None:
    """The wait status of the worker that was forked, after its end; `None` where there is no fork server."""
    mask = os.umask(0o077)
    os.umask(mask)
    message = {"umask": mask, "arguments": command, "environment": dict(os.environ), "directory": os.getcwd()}  # noqa: PTH109
    data = json.dumps(message).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
            socket.send_fds(connection, [_LENGTH.pack(len(data))], [0, 1, 2])
            connection.sendall(data)
        except OSError:
            return None
        # The worker has the streams and the directory now; whoever looks for it there shall find it alone.
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        try:
            answer = connection.recv(_LENGTH.size)
        except ConnectionResetError:
            answer = b""
        return int(_LENGTH.unpack(answer)[0]) if len(answer) == _LENGTH.size else 1 << 8


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
