"""Starts a program that ends when the process that asked for it does, even if that is killed.

Run as a script by its path: `python guard.py [--group] PARENT PROGRAM ARGUMENT...`. It becomes the program, or with
`--group` stays beside it and ends its whole process group: shell scripts such as CARLA's start others and do not
pass signals on. The system tells of a parent's death on Linux only; elsewhere the program is just run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

GRACE_S = 5.0
_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Let SIGTERM come to this process, and to what it becomes, when `parent` has died."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit("whoever asked for this program has died already")


class _Terminated(Exception):
    pass


def run_group(program: list[str]) -> int:
    """Run `program` in this process's group until it ends, or until SIGTERM; then nothing of the group is left."""

    def terminated(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Terminated

    child = subprocess.Popen(program)
    try:
        signal.signal(signal.SIGTERM, terminated)
        return child.wait()
    except _Terminated:
        os.killpg(0, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
        os.killpg(0, signal.SIGKILL)
        raise


def main() -> None:
    """Guard the program that the command line names."""
    arguments = sys.argv[1:]
    group = arguments[0] == "--group"
    parent, *program = arguments[1:] if group else arguments
    end_with(int(parent))
    if group:
        sys.exit(run_group(program))
    os.execvp(program[0], program)


if __name__ == "__main__":
    main()
