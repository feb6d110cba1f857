"""The process that workers are forks of: `python fork_server.py <control>`, started by `preloading.ForkServer`.

It imports what every worker needs and nothing that an archive carries, so that each worker still runs the code of its
own archive. Through the socket `control` it gets its listening socket, once there is a run directory; it ends when
that socket is closed. A launcher that connects sends one message, see `read_message`, with its standard streams, and
is told the worker's wait status at the end. If the launcher is killed the kernel kills the worker with it, also one
that hangs or has been stopped.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
from typing import Any

MODULES = ("json", "uuid", "numpy", "numpy.random", "pydantic", "yaml", "torch", "ts.model_service_worker")
"""What a worker imports before it opens its archive, or soon after. Nothing here starts a thread that a fork would
miss: OpenBLAS, which numpy brings, makes its own anew."""
CPU_MODULES = ("ts.torch_handler.base_handler",)
"""Asks for a CUDA device, which no fork could use afterwards: only where torch knows none."""
UNWANTED = "onnxruntime"
"""Whatever imports this here only looks whether it is there; it would start a thread, and few versions need it."""

_F_SETSIG = 10
_STREAMS = 3
_LENGTH = struct.Struct("!I")


def preload() -> None:
    """Import what workers have in common, and keep its memory apart from what they will collect."""
    sys.modules[UNWANTED] = None  # type: ignore[assignment]
    gc.disable()  # all of it stays: collecting on the way takes a seventh of the time
    streams = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = io.StringIO()  # what modules have to say is not for a worker's log
    try:
        for name in MODULES:
            importlib.import_module(name)
        if sys.modules["torch"].version.cuda is None:
            for name in CPU_MODULES:
                importlib.import_module(name)
    finally:
        sys.stdout, sys.stderr = streams
        del sys.modules[UNWANTED]
    # A worker runs this file as `__main__`, and makes its own.
    del sys.modules["ts.model_service_worker"]
    gc.freeze()
    gc.enable()


def serve(control: socket.socket) -> None:
    """Fork a worker for each launcher that connects, until `control` is closed."""
    _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    if not descriptors:
        return
    workers: dict[int, socket.socket] = {}
    with socket.socket(fileno=descriptors[0]) as listener, selectors.DefaultSelector() as selector:
        os.chdir(os.path.dirname(listener.getsockname()))  # noqa: PTH120 - shows whose process this is
        wakeup, wakeup_end = socket.socketpair()
        for end in (wakeup, wakeup_end):
            end.setblocking(False)
        signal.set_wakeup_fd(wakeup_end.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for source in (control, listener, wakeup):
            selector.register(source, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if control in ready:
                return
            if wakeup in ready:
                wakeup.recv(4096)
                _reap(workers)
            if listener in ready:
                connection = listener.accept()[0]
                try:
                    message, streams = read_message(connection)
                    pid = os.fork()
                except (OSError, ValueError):
                    connection.close()  # the launcher ends with an error, and TorchServe tries again
                    continue
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    for other in (control, listener, wakeup, wakeup_end, *workers.values()):
                        other.close()
                    selector.close()
                    _become_worker(connection, message, streams)
                workers[pid] = connection
                for stream in streams:
                    os.close(stream)


def _reap(workers: dict[int, socket.socket]) -> None:
    """Tell the launchers of workers that have ended how they did."""
    while workers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        connection = workers.pop(pid)
        with contextlib.suppress(OSError):
            connection.sendall(_LENGTH.pack(status))
        connection.close()


def _become_worker(connection: socket.socket, message: dict[str, Any], streams: list[int]) -> None:
    """In the fork: everything as if the command had been started, then run it; never returns."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        end_with(connection)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(message["environment"])
        os.umask(message["umask"])
        os.chdir(message["directory"])
        script, *arguments = message["arguments"]
        # As the interpreter does: the script's directory (which this script removes), then PYTHONPATH.
        sys.path[:0] = [os.path.dirname(script), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]  # noqa: PTH120
        sys.argv[:] = [script, *arguments]
        sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
        sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False, buffering=1)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)  # noqa: SIM115
        sys.modules["numpy"].random.seed()
        importlib.invalidate_caches()
        runpy.run_path(script, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def end_with(connection: socket.socket) -> None:
    """Have the kernel kill this process when the other end of `connection` is closed, whatever it is doing then."""
    fcntl.fcntl(connection, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    with contextlib.suppress(BlockingIOError):
        if connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"":
            os._exit(1)  # it was closed before the kernel was told


def read_message(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What a launcher sent: `arguments` (script first), `environment`, `directory`, `umask`; its standard streams."""
    head, streams, _, _ = socket.recv_fds(connection, _LENGTH.size, _STREAMS)
    try:
        if len(head) != _LENGTH.size or len(streams) != _STREAMS:
            raise ValueError("not a launcher")
        data = bytearray()
        while len(data) < _LENGTH.unpack(head)[0]:
            part = connection.recv(1 << 16)
            if not part:
                raise ValueError("cut off")
            data += part
        return json.loads(data), streams
    except ValueError:
        for stream in streams:
            os.close(stream)
        raise


if __name__ == "__main__":
    del sys.path[0]  # this file's directory, as `python -P` would from Python 3.11 on
    with socket.socket(fileno=int(sys.argv[1])) as from_parent:
        preload()
        serve(from_parent)
