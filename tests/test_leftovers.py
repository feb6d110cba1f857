"""What a killed server left is ended and removed; what lives, and every log, stays."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carla_policy_tools.configuration import SizeLimits
from carla_policy_tools.lifecycle import leftovers
from carla_policy_tools.lifecycle.endpoint import Endpoint
from carla_policy_tools.lifecycle.leftovers import LOCK_FILE, RUN_DIRECTORY_PREFIX, end_processes, remove_copies
from carla_policy_tools.lifecycle.registry import RegistryError, try_lock
from carla_policy_tools.ports import Ports

Run = Callable[..., subprocess.Popen[bytes]]
WORKER = "model_service_worker.py"
SERVER = "org.pytorch.serve.ModelServer"


@pytest.fixture
def run() -> Iterator[Run]:
    """Start a process that does nothing, with the given arguments on its command line."""
    processes = []

    def start(*arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-S", "-c", "print(flush=True); import time; time.sleep(60)", *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_END_TIMEOUT_S", 0.2)


def killed(run_dir: Path) -> Endpoint:
    """What a killed server that ran in `run_dir` had announced."""
    ports, limits = Ports(1, 2, 3, 4, 5, 6), SizeLimits(1, 1)
    return Endpoint(state="ready", pid=1, ports=ports, profile="realtime", limits=limits, run_dir=run_dir)


def test_processes_of_a_dead_run_are_ended(run: Run, tmp_path: Path) -> None:
    left = [
        run(f"-Djava.io.tmpdir={tmp_path}/tmp", SERVER, "-f", tmp_path / "config.properties"),
        run(WORKER, "--sock-type", "unix", "--sock-name", tmp_path / "tmp" / ".ts.sock.9000"),
    ]
    end_processes(killed(tmp_path))
    assert [process.wait(5) for process in left] == [-9, -9]


def test_processes_of_others_are_left_alone(run: Run, tmp_path: Path) -> None:
    others = [
        run(WORKER, "--sock-name", tmp_path.with_name(f"{tmp_path.name}2") / "tmp" / ".ts.sock.9000"),
        run(WORKER, "--sock-name", f"/elsewhere{tmp_path}/tmp/.ts.sock.9000"),
        run("less", tmp_path / "logs" / "torchserve.log"),
        run(WORKER),
    ]
    end_processes(killed(tmp_path))
    assert [process.poll() for process in others] == [None] * len(others)


def test_without_an_earlier_server_nothing_is_ended(run: Run, tmp_path: Path) -> None:
    worker = run(WORKER, "--sock-name", tmp_path / "tmp" / ".ts.sock.9000")
    end_processes(None)
    assert worker.poll() is None


def test_process_that_ends_by_itself_in_time_is_not_killed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "_END_TIMEOUT_S", 30)
    worker = run(WORKER, "--sock-name", tmp_path / "tmp" / ".ts.sock.9000")
    end = threading.Timer(0.3, worker.terminate)
    end.start()
    end_processes(killed(tmp_path))
    end.join()
    assert worker.wait(5) == -15


def test_process_that_cannot_be_ended_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    worker = run(WORKER, "--sock-name", tmp_path / "tmp" / ".ts.sock.9000")
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", refuse)
        with pytest.raises(RegistryError, match=f"{tmp_path} do not end: {worker.pid}; end them"):
            end_processes(killed(tmp_path))


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make a run directory with copies, logs and a lock file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def make(name: str) -> Path:
        directory = tmp_path / name
        for part in ("tmp/models/unpacked", "store", "logs"):
            (directory / part).mkdir(parents=True)
            (directory / part / "file").touch()
        (directory / LOCK_FILE).touch()
        return directory

    return make


def parts(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_copies_of_dead_runs_are_removed_and_their_logs_stay(make_run: Callable[[str], Path]) -> None:
    dead = [make_run(f"{RUN_DIRECTORY_PREFIX}{name}") for name in ("one", "two")]
    remove_copies()
    assert [parts(directory) for directory in dead] == [["logs", LOCK_FILE]] * 2
    assert all((directory / "logs" / "file").exists() for directory in dead)


def test_copies_of_live_runs_stay(make_run: Callable[[str], Path]) -> None:
    live, dead = make_run(f"{RUN_DIRECTORY_PREFIX}live"), make_run(f"{RUN_DIRECTORY_PREFIX}zz-dead")
    with (live / LOCK_FILE).open("w") as lock:
        assert try_lock(lock.fileno())
        remove_copies()
    assert parts(live) == ["logs", LOCK_FILE, "store", "tmp"]
    assert parts(dead) == ["logs", LOCK_FILE]


def test_directories_that_are_no_runs_stay(make_run: Callable[[str], Path]) -> None:
    other, unlocked = make_run("somebody-else"), make_run(f"{RUN_DIRECTORY_PREFIX}without-a-lock")
    (unlocked / LOCK_FILE).unlink()
    remove_copies()
    assert (other / "store" / "file").exists()
    assert (unlocked / "store" / "file").exists()


def test_what_copies_point_to_is_not_removed(make_run: Callable[[str], Path]) -> None:
    dead, other = make_run(f"{RUN_DIRECTORY_PREFIX}dead"), make_run("somebody-else")
    (dead / "store" / "file").unlink()
    (dead / "store").rmdir()
    (dead / "store").symlink_to(other / "store")
    remove_copies()
    assert (other / "store" / "file").exists()
