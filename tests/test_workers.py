"""Workers are forks that behave as the processes that TorchServe believes to have started."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from carla_policy_tools.workers.preloading import ForkServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forks on Linux only")
PATIENCE_S = 120.0

REPORT = """
import json, os, sys
import numpy
packages = {name.partition(".")[0] for name in sys.modules}
modules = [name for name in ("torch", "carla_policy", "onnxruntime", "sklearn") if name in packages]
print(json.dumps({
    "name": __name__, "arguments": sys.argv, "directory": os.getcwd(), "variable": os.environ.get("VARIABLE"),
    "inherited": os.environ.get("ONLY_THE_FORK_SERVER"), "path": sys.path[:3], "modules": modules,
    "random": numpy.random.random(), "writes_bytecode": not sys.dont_write_bytecode,
}))
print("to standard error", file=sys.stderr)
sys.exit(7)
"""
WAIT = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The command that starts workers."""
    os.environ["ONLY_THE_FORK_SERVER"] = "1"
    with ForkServer() as workers:
        del os.environ["ONLY_THE_FORK_SERVER"]
        yield workers.python(tmp_path_factory.mktemp("run"))


def _script(directory: Path, text: str) -> Path:
    path = directory / "worker.py"
    path.write_text(text)
    return path


def _start(python: Path, script: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([str(python), str(script), *arguments], stdout=subprocess.PIPE, text=True)


def _report(python: Path, tmp_path: Path) -> tuple[dict[str, object], subprocess.CompletedProcess[str]]:
    package = tmp_path / "package"
    package.mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "VARIABLE": "value", "PYTHONPATH": str(package)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    command = [str(python), str(_script(tmp_path, REPORT)), "--sock-name", "a b'c"]
    done = subprocess.run(
        command, cwd=package, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    return json.loads(done.stdout), done


def test_a_worker_has_the_arguments_environment_directory_and_streams_of_its_command(
    python: Path, tmp_path: Path
) -> None:
    report, done = _report(python, tmp_path)

    assert report["name"] == "__main__"
    assert report["arguments"] == [str(tmp_path / "worker.py"), "--sock-name", "a b'c"]
    assert report["directory"] == str(tmp_path / "package")
    assert (report["variable"], report["inherited"]) == ("value", None)
    assert report["path"][:2] == [str(tmp_path), str(tmp_path / "package")]  # type: ignore[index]
    assert not report["writes_bytecode"]
    assert done.stderr == "to standard error\n"


def test_a_worker_ends_its_command_with_its_own_status(python: Path, tmp_path: Path) -> None:
    assert _report(python, tmp_path)[1].returncode == 7


def test_a_worker_has_torch_and_nothing_that_an_archive_brings(python: Path, tmp_path: Path) -> None:
    assert _report(python, tmp_path)[0]["modules"] == ["torch"]


def test_workers_do_not_draw_the_same_random_numbers(python: Path, tmp_path: Path) -> None:
    assert _report(python, tmp_path)[0]["random"] != _report(python, tmp_path)[0]["random"]


def test_a_killed_worker_ends_its_command_by_the_same_signal(python: Path, tmp_path: Path) -> None:
    command = _start(python, _script(tmp_path, WAIT))
    assert command.stdout is not None
    os.kill(int(command.stdout.readline()), signal.SIGKILL)

    assert command.wait(PATIENCE_S) == -signal.SIGKILL
    command.stdout.close()


@pytest.mark.parametrize("before", [None, signal.SIGSTOP])
def test_a_killed_command_takes_its_worker_along_even_a_stopped_one(
    python: Path, tmp_path: Path, before: signal.Signals | None
) -> None:
    command = _start(python, _script(tmp_path, WAIT))
    assert command.stdout is not None
    worker = psutil.Process(int(command.stdout.readline()))
    if before:
        worker.send_signal(before)
    command.kill()
    command.wait()

    worker.wait(PATIENCE_S)
    command.stdout.close()


def test_only_the_user_who_serves_can_have_a_worker_forked(python: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in python.parent.iterdir()}
    assert modes == {"forks.sock": 0o600, "python": 0o700}


def test_without_the_fork_server_a_command_becomes_the_worker_itself(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with ForkServer() as workers:
        python = workers.python(run)
    report, done = _report(python, tmp_path)

    assert (report["name"], report["variable"], done.returncode) == ("__main__", "value", 7)
    assert report["modules"] == []


def test_the_fork_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    text = """
import os, pathlib, sys
from carla_policy_tools.workers.preloading import ForkServer
with ForkServer() as workers:
    workers.python(pathlib.Path(sys.argv[1]))
    print(workers._process.pid, flush=True)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run(
        [sys.executable, "-c", text, str(tmp_path)], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    deadline = time.monotonic() + PATIENCE_S
    while psutil.pid_exists(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
