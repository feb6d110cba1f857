"""Commands find a server exactly while it lives, and their looking never stands in its way."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import pytest

from carla_policy_tools.configuration import SizeLimits
from carla_policy_tools.lifecycle import endpoint as endpoint_module
from carla_policy_tools.lifecycle.endpoint import Announcement, Endpoint, announced, find_server, require_server
from carla_policy_tools.lifecycle.health import check_health
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile, try_lock
from carla_policy_tools.ports import Ports
from tests.elsewhere import FORK, ended, running, started

LOOKERS = 16


@pytest.fixture
def file(tmp_path: Path) -> RegistryFile:
    return RegistryFile.of(tmp_path / "store")


def endpoint(**more: Any) -> Endpoint:
    ports = Ports(8080, 8081, 8082, 8083, 7070, 7071)
    own = {"ports": ports, "profile": "realtime", "limits": SizeLimits(1, 1), "run_dir": Path("/run/x")}
    return Endpoint(**{"state": "ready", "pid": os.getpid(), **own, **more})


def announce(file: RegistryFile, begun: Connection) -> None:
    with announced(file) as announcement:
        announcement.say(endpoint())
        begun.send("begun")
        signal.pause()


def leave_killed_server(file: RegistryFile) -> None:
    with running(announce, file) as server:
        assert find_server(file) == endpoint(pid=server.pid)


def test_server_is_found_while_it_announces_itself_and_not_after(file: RegistryFile) -> None:
    assert find_server(file) is None
    with announced(file) as announcement:
        assert find_server(file) is None
        for state in ("starting", "ready", "draining", "ready"):
            announcement.say(endpoint(state=state))
            assert find_server(file) == endpoint(state=state)
    assert find_server(file) is None


def interrupt_after(announcement: Announcement) -> None:
    announcement.say(endpoint())
    raise KeyboardInterrupt


def test_server_that_ended_by_an_error_or_a_signal_is_not_found(file: RegistryFile) -> None:
    with pytest.raises(KeyboardInterrupt), announced(file) as announcement:
        interrupt_after(announcement)
    assert find_server(file) is None
    with announced(file) as announcement:
        assert announcement.previous is None


def test_killed_server_is_not_found_and_the_next_learns_what_it_left(file: RegistryFile) -> None:
    leave_killed_server(file)
    assert find_server(file) is None
    with announced(file) as announcement:
        assert announcement.previous is not None
        assert announcement.previous.run_dir == Path("/run/x")


def test_killed_server_is_not_taken_for_the_one_that_starts_after_it(file: RegistryFile) -> None:
    leave_killed_server(file)
    with announced(file):
        found = find_server(file)
        assert found is not None
        assert (found.state, found.pid) == ("starting", os.getpid())


def test_server_killed_before_it_said_anything_leaves_what_the_one_before_it_left(file: RegistryFile) -> None:
    def begin(file: RegistryFile, begun: Connection) -> None:
        with announced(file):
            begun.send("begun")
            signal.pause()

    leave_killed_server(file)
    with running(begin, file):
        pass
    with announced(file) as announcement:
        assert announcement.previous is not None
        assert announcement.previous.run_dir == Path("/run/x")


def test_second_server_of_a_registry_is_refused(file: RegistryFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "_GLANCE_S", 0.05)
    with announced(file) as announcement:
        announcement.say(endpoint())
        with pytest.raises(RegistryError, match="a server serves this registry already; stop it, or name another"):
            announced(file).__enter__()
        assert find_server(file) == endpoint()


def test_only_a_ready_server_is_good_enough_for_a_change(file: RegistryFile) -> None:
    with pytest.raises(RegistryError, match=r"no server serves .*registry.json; start one with `carla-policy serve`"):
        require_server(file)
    with announced(file) as announcement:
        for state in ("starting", "draining"):
            announcement.say(endpoint(state=state))
            with pytest.raises(RegistryError, match=f"is {state}; try again when it is ready"):
                require_server(file)
        announcement.say(endpoint())
        assert require_server(file) == endpoint()


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"state": "ready"}'])
def test_announcement_that_is_none_is_no_server(
    file: RegistryFile, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "_GLANCE_S", 0.05)
    with announced(file):
        file.server_file.write_bytes(content)
        assert find_server(file) is None
    file.server_file.write_bytes(content)
    with announced(file) as announcement:
        assert announcement.previous is None


@pytest.mark.parametrize("change", ["less", "more"])
def test_server_of_another_release_is_named_as_what_to_restart(
    file: RegistryFile, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One from before a field was added, and one from after."""
    monkeypatch.setattr(endpoint_module, "_GLANCE_S", 0.05)
    content = endpoint().model_dump(mode="json")
    other = {**content, "colour": "red"} if change == "more" else {**content}
    if change == "less":
        del other["limits"]
    with announced(file):
        file.server_file.write_text(json.dumps(other))
        for find in (find_server, require_server):
            with pytest.raises(RegistryError, match=r"started by another release of carla-policy.*; restart it"):
                find(file)
        assert "another release" in check_health(file).findings[0]
    assert find_server(file) is None


def look(file: RegistryFile, enough: Synchronized[int], begun: Connection) -> None:
    """Look until it is enough; the exit status says whether a server was seen."""
    seen = False
    begun.send("begun")
    while not enough.value:
        seen = find_server(file) is not None or seen
    os._exit(int(seen))


class Lookers:
    """Sixteen processes that do nothing but look."""

    def __init__(self, file: RegistryFile) -> None:
        self._enough = FORK.Value("i", 0)
        pipes = [FORK.Pipe(duplex=False) for _ in range(LOOKERS)]
        self._processes = [started(look, file, self._enough, sender) for _, sender in pipes]
        for receiver, sender in pipes:
            receiver.recv()
            receiver.close()
            sender.close()

    def stop(self) -> list[int]:
        """Exit statuses: 1 for each that has seen a server."""
        self._enough.value = 1
        return [ended(process) for process in self._processes]


def test_many_that_look_at_once_see_no_server_where_none_is(file: RegistryFile) -> None:
    leave_killed_server(file)
    lookers = Lookers(file)
    found = [find_server(file) for _ in range(200)]
    assert lookers.stop() == [0] * LOOKERS
    assert found == [None] * 200


def test_many_that_look_do_not_keep_a_server_from_announcing_itself(file: RegistryFile) -> None:
    with announced(file):
        pass
    lookers = Lookers(file)
    try:
        for _ in range(10):
            with announced(file) as announcement:
                announcement.say(endpoint())
                assert find_server(file) == endpoint()
    finally:
        lookers.stop()


def test_server_waits_for_as_long_as_somebody_looks(file: RegistryFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "_GLANCE_S", 0.02)
    leave_killed_server(file)
    with file.server_file.open("rb") as looked_at:
        assert try_lock(looked_at.fileno(), shared=True)
        release = threading.Timer(0.2, fcntl.flock, (looked_at.fileno(), fcntl.LOCK_UN))
        release.start()
        with announced(file) as announcement:
            announcement.say(endpoint())
            assert find_server(file) == endpoint()
        release.join()


def test_server_that_changes_what_it_says_is_found_all_the_time(file: RegistryFile) -> None:
    long, short = endpoint(run_dir=Path("/run" + "/x" * 500)), endpoint()

    def change(file: RegistryFile, begun: Connection) -> None:
        with announced(file) as announcement:
            announcement.say(long)
            begun.send("begun")
            while True:
                announcement.say(short)
                announcement.say(long)

    with running(change, file):
        for _ in range(300):
            assert find_server(file) in (long, short)
