"""What every contender has in common: a name, a way to start and stop it, where it is asked, and its processes."""

from __future__ import annotations

import http.client
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import psutil
from typing_extensions import Self

from benchmarks.contenders.workload import Workload
from carla_policy_tools.ports import reserved_port
from carla_policy_tools.processes import END_WITH_PARENT

START_TIMEOUT_S = 120.0
START_TRIES = 3
HEALTH_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.01
LOOPBACK = "127.0.0.1"
ARTIFACT_VARIABLE = "BENCH_ARTIFACT"
"""Tells a service's process which artifact it serves."""
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""Every contender computes with one thread; each also calls `torch.set_num_threads(1)`."""


class StartError(RuntimeError):
    """A contender did not start; the message carries its own last words."""


class Contender(ABC):
    """Use as a context manager: entered it is started and accepts connections, left it and its children are gone."""

    name: ClassVar[str]
    """Short, as in tables."""
    title: ClassVar[str]
    """What it is, for the report."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions that it is made of; what is not installed cannot be measured."""
    acts: ClassVar[bool] = True
    """Whether its answers are the policy's actions; a no-op answers something constant."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    @classmethod
    def missing(cls) -> list[str]:
        """Packages that are not installed."""
        return [name for name in cls.packages if importlib.util.find_spec(name) is None]

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @property
    @abstractmethod
    def url(self) -> str:
        """Where observations are posted."""

    @abstractmethod
    def processes(self) -> Mapping[str, list[psutil.Process]]:
        """Its processes now, by role: `frontend` and `worker` where it has both, else `server`."""


@contextmanager
def started(make: Callable[[], Contender]) -> Iterator[Contender]:
    """Make and start a contender; once more if it fails, since others may take a free port before it does.

    Raises the `StartError` of the last try.
    """
    for left in reversed(range(START_TRIES)):
        contender = make()
        try:
            contender.__enter__()
        except StartError:
            if not left:
                raise
        else:
            break
    try:
        yield contender
    finally:
        contender.__exit__()


class ServiceProcess(Contender):
    """A contender that is one command with its children, all of them in the role `server`."""

    path: ClassVar[str] = "/predict"
    health_path: ClassVar[str] = "/healthz"
    """Answers a GET with status 200 as soon as it can predict."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.port = reserved_port()
        self._process: subprocess.Popen[bytes]
        self._log: tempfile._TemporaryFileWrapper[bytes]

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The command, which listens on `self.port`."""

    def environment(self) -> Mapping[str, str]:
        """What its processes get beside this process's own environment."""
        return {ARTIFACT_VARIABLE: str(self.workload.artifact)}

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}{self.path}"

    def __enter__(self) -> Self:
        self._log = tempfile.NamedTemporaryFile(prefix=f"bench-{self.name}-")
        self._process = subprocess.Popen(
            list(self.command()),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **THREADS, **self.environment()},
            start_new_session=True,
            preexec_fn=END_WITH_PARENT,
        )
        try:
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        end_session(self._process)
        self._log.close()

    def wait_ready(self) -> None:
        """Return when it says that it is healthy; `StartError` if the process ends or time runs out."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while ask_health(self.port, self.health_path) is None:
            if self._process.poll() is not None:
                raise StartError(f"{self.name} ended with status {self._process.returncode}: {self.last_words()}")
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} was not ready within {START_TIMEOUT_S:g} s: {self.last_words()}")
            time.sleep(POLL_S)

    def last_words(self) -> str:
        """The end of what it printed."""
        return Path(self._log.name).read_text(errors="replace").strip()[-500:]

    def processes(self) -> Mapping[str, list[psutil.Process]]:
        return {"server": family(self._process.pid)}


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs `module` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started; nothing where it has ended."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def ask_health(port: int, path: str) -> bytes | None:
    """What a GET of `path` answers, over a connection of its own; `None` unless it is status 200."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return content if response.status == 200 else None


def end_session(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the process group that `process` leads; after a while SIGKILL to what is left of the family."""
    members = family(process.pid)
    signal_group(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs([member for member in members if member.pid != process.pid], timeout=STOP_TIMEOUT_S)
    for member in left:
        member.kill()


def signal_group(leader: int, number: int) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return
