"""Where a drill takes place: a temporary directory with store, registry and run directory, and the commands on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from typing_extensions import Self

from benchmarks.archives import Archives
from benchmarks.servers import COMMAND, ServeProcess
from carla_policy_tools.configuration import load_profile
from carla_policy_tools.paths import archive_name

COMMAND_TIMEOUT_S = 120.0
GONE_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Outcome:
    """A command that ended: its verb, exit status, what it printed, and when it ran (`time.monotonic()`)."""

    arguments: tuple[str, ...]
    status: int
    output: str
    error: str
    started: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    @property
    def ok(self) -> bool:
        return self.status == 0

    def json(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.output)
        return content

    def __str__(self) -> str:
        return f"{' '.join(self.arguments)}: status {self.status} after {self.seconds:.1f} s: {self.error.strip()}"


class Rig:
    """A context manager; `versions` are in the store, and in no registry yet.

    What commands started and did not end is gone when the rig is closed: `leftovers` finds it by the rig's path,
    which every process of a server and of a command has in its arguments.
    """

    def __init__(self, archives: Archives, versions: Sequence[str], *, niceness: int = 0) -> None:
        """Commands, but not servers, run with `niceness`."""
        self._archives = archives
        self._versions = versions
        self._prefix = ["nice", "-n", str(niceness)] if niceness else []
        self.root = Path(tempfile.mkdtemp(prefix="drill-")).resolve()
        self.store = self.root / "store"
        self.scratch = self.root / "tmp"

    def __enter__(self) -> Self:
        self.scratch.mkdir()
        self._archives.copy(self._versions, self.store)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.leftovers():
            process.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def registry(self) -> Path:
        return self.store / "registry.json"

    @property
    def environment(self) -> dict[str, str]:
        """Temporary files of all commands lie inside of the rig."""
        return {"TMPDIR": str(self.scratch)}

    def add(self, version: str) -> None:
        """Put one more archive into the store."""
        self._archives.copy([version], self.store)

    def serve(self, *options: str) -> ServeProcess:
        """A server of this rig, yet to be entered."""
        run_dir = ("--run-dir", str(self.root / "run"))
        return ServeProcess(self.store, *options, *run_dir, environment=self.environment)

    def profile(self, **changes: int) -> Path:
        """A profile file: the realtime one with `changes`."""
        path = self.root / "drill.yaml"
        settings = load_profile("realtime").model_dump(exclude_defaults=True) | changes
        path.write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
        return path

    def start(self, verb: str, *arguments: str) -> subprocess.Popen[str]:
        """A command on this rig's store and registry that is not waited for, in a session of its own."""
        return subprocess.Popen(
            [*self._prefix, *COMMAND, verb, *arguments, "--store", str(self.store)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, **self.environment},
        )

    def run(self, verb: str, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Outcome:
        """Run a command to its end; one that takes longer than `timeout_s` is killed and has the status -9."""
        started = time.monotonic()
        process = self.start(verb, *arguments)
        try:
            output, error = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            output, error = process.communicate()
        return Outcome((verb, *arguments), process.returncode, output, error, started, time.monotonic())

    def must(self, verb: str, *arguments: str) -> Outcome:
        """Run a command that has to succeed; `RuntimeError` with its own words otherwise."""
        outcome = self.run(verb, *arguments)
        if not outcome.ok:
            raise RuntimeError(str(outcome))
        return outcome

    def declared(self) -> tuple[frozenset[str], str | None]:
        """The versions of the registry's file and which is promoted."""
        content = json.loads(self.registry.read_text())
        return frozenset(content["versions"]), content.get("promoted")

    def status(self) -> dict[str, Any]:
        """What `carla-policy status --json` says, also where it reports drift by its exit status."""
        outcome = self.run("status", "--json")
        if not outcome.output:
            raise RuntimeError(str(outcome))
        return outcome.json()

    def leftovers(self, spare: Iterable[int] = ()) -> list[psutil.Process]:
        """Processes of this rig that run still, but for those of the pids to `spare` and what these started."""
        spared = set(spare)
        for pid in list(spared):
            if psutil.pid_exists(pid):
                spared |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
        found = []
        for process in psutil.process_iter():
            try:
                places = [*process.cmdline(), process.cwd()]
                mine = process.pid not in spared and any(str(self.root) in place for place in places)
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait_gone(self, spare: Iterable[int] = (), timeout_s: float = GONE_TIMEOUT_S) -> list[str]:
        """Wait until there are no leftovers; the command lines of those that stay."""
        deadline = time.monotonic() + timeout_s
        while left := self.leftovers(spare):
            if time.monotonic() > deadline:
                return [f"{process.pid} {' '.join(process.cmdline())[:120]}" for process in left]
            time.sleep(0.05)
        return []

    def archive(self, version: str) -> Path:
        return self.store / archive_name(version)
