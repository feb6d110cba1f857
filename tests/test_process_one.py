"""As process 1 of a container, a server gets the orphans of its own: they must not keep it from ending."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from carla_policy_tools.torchserve import _end_group
from tests.elsewhere import ended, started

_PR_SET_CHILD_SUBREAPER = 36
_LEADER = "import subprocess, sys; subprocess.Popen(['sleep', '60']); print('ready', flush=True); sys.stdin.read()"


def end_a_group_that_has_lost_its_leader() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    leader = subprocess.Popen(
        [sys.executable, "-c", _LEADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert leader.stdout is not None
    leader.stdout.readline()
    leader.kill()
    leader.wait()
    os.killpg(leader.pid, 0)  # the orphan is there, and this process's own now
    _end_group(leader.pid)
    with pytest.raises(ProcessLookupError):
        os.killpg(leader.pid, 0)


def test_orphans_of_a_dead_server_are_ended_and_reaped() -> None:
    assert ended(started(end_a_group_that_has_lost_its_leader)) == 0
