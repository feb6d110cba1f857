"""One TorchServe process: started on a set of versions, watched until every worker is ready, stopped without orphans.

The JVM is started directly, not through TorchServe's launcher, which exits with 0 even when start-up failed and
leaves the JVM behind when it is signalled. So the process that is started here is the server.

It reads its configuration from a pipe, and waits for it: so it can be started before the archives that it is to load
have been verified. Until `configure` it knows of none.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from carla_policy_tools.addresses import ANY_IPV4
from carla_policy_tools.aot_cache import use_flags
from carla_policy_tools.java import find_java
from carla_policy_tools.paths import CONFIG, KEY_FILE
from carla_policy_tools.ports import Ports
from carla_policy_tools.processes import END_WITH_PARENT, server_environment
from carla_policy_tools.settings.effects import LOG_CONFIG
from carla_policy_tools.worker_log import is_death, load_failure, words

if TYPE_CHECKING:
    from carla_policy_tools.lifecycle.management import Management
    from carla_policy_tools.workers.preloading import ForkServer

POLL_INTERVAL_S = 0.02
STOP_TIMEOUT_S = 10.0
LAST_WORDS_S = 0.5
LAST_LINES = 15
MAX_TEMP_PATH = 70
"""Workers listen on a socket below the temporary directory, and a socket's path may have 107 bytes."""


def _package() -> Path:
    """Where TorchServe's Python package is, without importing it."""
    found = importlib.util.find_spec("ts")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).resolve().parent


PACKAGE = _package()
JAR = PACKAGE / "frontend" / "model-server.jar"


class ServerError(RuntimeError):
    """The server did not start, or ended by itself; the message carries its own words."""


class TorchServe:
    """Use as a context manager: it starts the server, which loads nothing before `configure`, and stops it."""

    def __init__(
        self,
        settings: Mapping[str, str],
        ports: Ports,
        run_dir: Path,
        *,
        heap_mb: int,
        token_auth: bool = False,
        environment: Mapping[str, str] | None = None,
        workers: ForkServer | None = None,
        java_flags: Sequence[str] | None = None,
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        """`heap_mb` is a profile's `jvm_heap_mb`; with `token_auth` the server asks for its keys.

        `environment` is set for the server and its workers, on top of this process's own. `workers` is what workers
        are forks of; without it each is started by itself. `java_flags` stand in place of those that use the
        ahead-of-time cache.
        """
        self.ports = ports
        self._token_auth = token_auth
        self._heap_mb = heap_mb
        self.run_dir = run_dir
        self._settings = settings
        self._environment = environment or {}
        self._workers = workers
        self._java_flags = java_flags
        self._stop_timeout_s = stop_timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._output: deque[str] = deque(maxlen=200)
        self._load_failures: deque[tuple[str, str]] = deque(maxlen=20)
        self._start_failure: str | None = None
        self._reader: threading.Thread | None = None
        self.relay: Callable[[str], None] = lambda _: None
        """Hears each line that the server prints."""

    def __enter__(self) -> TorchServe:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def log_file(self) -> Path:
        return self.run_dir / "logs" / "torchserve.log"

    @property
    def drain_file(self) -> Path:
        """While this file exists, the workers refuse new requests."""
        return self.run_dir / "draining"

    @property
    def _key_file(self) -> Path:
        return self.run_dir / KEY_FILE

    def start(self) -> None:
        """Start the server process, which then waits for `configure`; returns at once."""
        temp, logs = self.run_dir / "tmp", self.run_dir / "logs"
        if len(str(temp)) > MAX_TEMP_PATH:
            raise ServerError(f"{self.run_dir}: too long a path for the workers' sockets; choose a shorter --run-dir")
        for directory in (temp, logs):
            directory.mkdir(parents=True, exist_ok=True)
        self.drain_file.unlink(missing_ok=True)
        self._key_file.unlink(missing_ok=True)
        self._pipe.unlink(missing_ok=True)
        os.mkfifo(self._pipe, 0o600)
        python = self._workers.python(temp) if self._workers else Path(sys.executable)
        environment = {
            **server_environment(),
            **self._environment,
            "TMPDIR": str(temp),
            "TEMP": str(temp),
            "LOG_LOCATION": str(logs),
            "METRICS_LOCATION": str(logs),
            "CARLA_POLICY_DRAIN_FILE": str(self.drain_file),
            # TorchServe kills a worker whose answer is larger, so the handler must not let one out.
            "CARLA_POLICY_MAX_RESPONSE_BYTES": self._settings["max_response_size"],
            # A worker's directory holds exactly the archive's files, also after it has run.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._process = subprocess.Popen(
            self._command(temp, python),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            cwd=self.run_dir,
            umask=0o077
            if self._token_auth
            else -1,  # TorchServe restricts the file of its keys only after it has written it
            start_new_session=True,  # Ctrl-C reaches this process only, which then stops the server in order
            preexec_fn=END_WITH_PARENT,
        )
        self._reader = threading.Thread(target=self._read_output, name="torchserve-output", daemon=True)
        self._reader.start()

    @property
    def _log_config(self) -> Path:
        """The run directory's own, which `serve` writes there, else the project's."""
        own = self.run_dir.absolute() / LOG_CONFIG
        return own if own.exists() else CONFIG / LOG_CONFIG

    def _command(self, temp: Path, python: Path) -> list[str]:
        java = find_java()
        return [
            str(java.executable),
            *java.flags(self._heap_mb),
            *(use_flags(java, JAR) if self._java_flags is None else self._java_flags),
            *(["-Djava.net.preferIPv4Stack=true"] if self.ports.host == ANY_IPV4 else []),  # else IPv6 as well
            f"-Dmodel_server_home={PACKAGE.parent}",
            f"-Djava.io.tmpdir={temp}",
            f"-Dlog4j.configurationFile={self._log_config.as_uri()}",
            "-cp",
            str(JAR),
            "org.pytorch.serve.ModelServer",
            "--python",
            str(python),
            "-f",
            str(self._pipe),
            "-s",
            self._settings["model_store"],
            "-ncs",
        ]

    @property
    def _pipe(self) -> Path:
        return self.run_dir / "config.pipe"

    def configure(self) -> None:
        """Let the server have its configuration, and with it the versions to load; `ServerError` if it has ended."""
        text = "".join(f"{key}={value}\n" for key, value in self._settings.items())
        (self.run_dir / "config.properties").write_text(text)  # for people
        while True:
            try:
                descriptor = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError as error:
                if error.errno != errno.ENXIO:  # nobody reads yet
                    raise
            self.check()
            time.sleep(POLL_INTERVAL_S)
        os.set_blocking(descriptor, True)
        with open(descriptor, "w") as pipe:  # noqa: PTH123
            pipe.write(text)
        self._pipe.unlink()

    def wait_ready(self, workers: Mapping[str, int], timeout_s: float) -> None:
        """Return when each version has so many workers READY; `ServerError` as soon as that cannot happen any more."""
        from carla_policy_tools.lifecycle.management import Management
        from carla_policy_tools.tokens import Tokens

        deadline = time.monotonic() + timeout_s
        missing = list(workers)
        auth = Tokens(self._key_file, "management") if self._token_auth else None
        with Management(self.ports.url("management"), auth=auth) as management:
            while missing:
                self.check()
                self._check_start()
                missing = [
                    version for version in missing if self._ready_workers(management, version) < workers[version]
                ]
                if missing and time.monotonic() > deadline:
                    raise ServerError(f"not ready after {timeout_s:g} s: {', '.join(missing)}; see {self.log_file}")
                if missing:
                    time.sleep(POLL_INTERVAL_S)

    def take_load_failures(self) -> list[tuple[str, str]]:
        """Versions that do not load, and what their workers have said about it since the last call."""
        return [self._load_failures.popleft() for _ in range(len(self._load_failures))]

    def check(self) -> None:
        """`ServerError` if the server has ended."""
        if self._process is None or self._process.poll() is None:
            return
        if self._reader:
            self._reader.join(timeout=1.0)
        raise ServerError(
            f"TorchServe ended with status {self._process.returncode} (log: {self.log_file}):\n{self._last_words()}"
        )

    def _check_start(self) -> None:
        failures = self.take_load_failures()
        if failures:
            version, reason = failures[0]
            raise ServerError(f"{version} does not load: {reason} (log: {self.log_file})")
        if self._start_failure:
            time.sleep(LAST_WORDS_S)
            raise ServerError(f"a version does not load (log: {self.log_file}):\n{self._last_words()}")

    def _last_words(self) -> str:
        return "\n".join(words(line) for line in list(self._output)[-LAST_LINES:])

    def stop(self) -> None:
        """End the server, then whatever is left of its process group; returns when nothing is."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(self._stop_timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _end_group(self._process.pid)
        if self._reader:
            self._reader.join(timeout=STOP_TIMEOUT_S)
        self._process = None
        self._key_file.unlink(missing_ok=True)

    def _ready_workers(self, management: Management, version: str) -> int:
        from carla_policy_tools.lifecycle.registry import RegistryError

        try:
            served = management.version(version)
        except (OSError, RegistryError, ValueError, LookupError):  # also before its file of keys is there
            return 0
        return served.ready_workers if served else 0

    def _read_output(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._output.append(line.rstrip("\n"))
                self.relay(line.rstrip("\n"))
                failure = load_failure(line)
                if failure:
                    self._load_failures.append(failure)
                elif is_death(line) or "Error while retrieving snapshot" in line:
                    self._start_failure = line


def _end_group(leader: int) -> None:
    """Kill what is left of the process group that `leader` led, and wait until it is gone."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            os.killpg(leader, signal.SIGKILL)
            _reap(leader)
            time.sleep(POLL_INTERVAL_S)
    except ProcessLookupError:
        return


def _reap(group: int) -> None:
    """Wait for those of a group that have become this process's children, as orphans do with process 1 of a container.

    They would stay in their group, ended but there.
    """
    with suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG) != (0, 0):
            pass
