"""What `serve` starts workers with: a fork server that imports torch while everything else starts."""

from __future__ import annotations

import os
import shlex
import socket
import stat
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from carla_policy_tools.processes import END_WITH_PARENT, server_environment

STOP_TIMEOUT_S = 5.0
_HERE = Path(__file__).resolve().parent


def _leave_group() -> None:
    """In the child: a process group of its own, as Ctrl-C is for `serve`."""
    os.setpgid(0, 0)
    if END_WITH_PARENT:
        END_WITH_PARENT()


class ForkServer:
    """Use as a context manager: from entering on it imports; `python` is what to give TorchServe as its Python."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if sys.platform != "linux":
            return self  # torch does not survive a fork everywhere
        control, its_end = socket.socketpair()
        with its_end:
            self._process = subprocess.Popen(
                [sys.executable, str(_HERE / "fork_server.py"), str(its_end.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=server_environment(),
                pass_fds=[its_end.fileno()],
                preexec_fn=_leave_group,
            )
        self._control = control
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._control:
            self._control.close()
        if self._process:
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def python(self, directory: Path) -> Path:
        """A command in `directory` that starts workers; this interpreter where none can be executed there."""
        if self._control is None or os.statvfs(directory).f_flag & os.ST_NOEXEC:
            return Path(sys.executable)
        path, command = directory / "forks.sock", directory / "python"
        path.unlink(missing_ok=True)
        launcher = [sys.executable, "-I", "-S", "-B", str(_HERE / "launcher.py"), str(path)]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            path.chmod(0o600)  # whoever connects decides what runs
            listener.listen(64)
            socket.send_fds(self._control, [b"\0"], [listener.fileno()])
        command.write_text(f'#!/bin/sh\nexec {shlex.join(launcher)} "$@"\n')
        command.chmod(stat.S_IRWXU)
        return command
