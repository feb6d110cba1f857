"""One HAProxy in front of TorchServe: started, told at run time what goes where, stopped without losing a request.

Its rules are in `config/haproxy/haproxy.cfg`, which says why it is HAProxy. What changes are two maps, through the
runtime API: nothing is reloaded, and no connection is closed.
"""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from pathlib import Path
from threading import Thread
from types import TracebackType
from urllib.parse import urlsplit

from typing_extensions import Self

from carla_policy_tools.addresses import LOOPBACK
from carla_policy_tools.paths import CONFIG
from carla_policy_tools.ports import reserved_port
from carla_policy_tools.processes import END_WITH_PARENT
from carla_policy_tools.routing.haproxy import ProxyError, find_haproxy
from carla_policy_tools.routing.routes import RouteMap, Routes
from carla_policy_tools.routing.runtime_api import RuntimeApi, RuntimeSession
from carla_policy_tools.routing.traffic import TrafficFeed

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 15.0
IDLE_S = 1.0
"""A stopping proxy waits this long for a last request on connections that are kept open."""
SERVER_TIMEOUT_S = 60
POLL_INTERVAL_S = 0.01
RUN_DIRECTORY_PREFIX = "carla-policy-proxy-"
MAX_SOCKET_DIRECTORY = 80
"""Its sockets are below the run directory, and a socket's path may have 107 bytes."""

_ROUTES, _SHADOW = "routes.map", "shadow.map"
_PIPE_BYTES = 1 << 20
_LAST_LINES = 10


class Proxy:
    """Use as a context manager: leaving it answers what is in flight and ends the proxy.

    `upstream` is TorchServe's inference address, with or without `http://`. Port 0 takes a free one. Without a
    `run_dir` a temporary one is used.
    """

    def __init__(
        self,
        upstream: str,
        routes: Routes,
        *,
        port: int = 0,
        server_timeout_s: float = SERVER_TIMEOUT_S,
        run_dir: Path | None = None,
    ) -> None:
        self._upstream = _host_and_port(upstream)
        self._port = port
        self._server_timeout_s = server_timeout_s
        self._given_directory = run_dir
        self.run_dir = Path()
        """Of the running proxy."""
        self._map = RouteMap()
        self._process: subprocess.Popen[bytes] | None = None
        self._readers: list[Thread] = []
        self._output: deque[str] = deque(maxlen=50)
        self.routes = routes

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop(graceful=False)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def runtime(self) -> RuntimeApi:
        return RuntimeApi(self.stats_socket)

    @property
    def stats_socket(self) -> Path:
        return self.run_dir / "runtime.sock"

    @property
    def traffic_socket(self) -> Path:
        """Where `traffic.listen` waits for records."""
        return self.run_dir / "traffic.sock"

    @property
    def mirror_socket(self) -> Path:
        """Where a shadow's collector waits for copies."""
        return self.run_dir / "mirror.sock"

    def start(self) -> None:
        """Start HAProxy; returns when it takes requests."""
        haproxy = find_haproxy()
        given = self._given_directory
        self.run_dir = given.resolve() if given else Path(tempfile.mkdtemp(prefix=RUN_DIRECTORY_PREFIX))
        if len(str(self.run_dir)) > MAX_SOCKET_DIRECTORY:
            raise ProxyError(f"{self.run_dir}: too long a path for the proxy's sockets; choose a shorter directory")
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._port = reserved_port(self._port)
        _write_map(self.run_dir / _ROUTES, self._map.entries(self.routes))
        _write_map(self.run_dir / _SHADOW, {"share": "0"})
        self._process = subprocess.Popen(
            [str(haproxy.executable), "-db", "-f", str(CONFIG / "haproxy" / "haproxy.cfg")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.run_dir,
            env={
                **haproxy.environment,
                "CARLA_POLICY_PROXY_ADDRESS": f"{LOOPBACK}:{self._port}",
                "CARLA_POLICY_PROXY_CONFIG": str(CONFIG / "haproxy"),
                "CARLA_POLICY_PROXY_RUN": str(self.run_dir),
                "CARLA_POLICY_PROXY_SERVER_TIMEOUT": f"{round(self._server_timeout_s * 1000)}ms",
                "CARLA_POLICY_PROXY_UPSTREAM": ":".join(self._upstream),
            },
            start_new_session=True,  # Ctrl-C reaches this process only, which then stops the proxy in order
            preexec_fn=END_WITH_PARENT,
        )
        self._read_output(self._process)
        self._wait_ready()

    def apply(self, routes: Routes) -> None:
        """Put `routes` in force for every request from now on; those under way keep their version."""
        self.check()
        self.runtime.replace_map(_ROUTES, self._map.entries(routes))
        self.routes = routes

    def move(self, upstream: str) -> None:
        """Ask the server at `upstream` from now on, if it is another one: a server that was started again."""
        address = _host_and_port(upstream)
        if address != self._upstream:
            self.check()
            answer = self.runtime.command(f"set server server/torchserve addr {address[0]} port {address[1]}")
            if "changed" not in answer:
                raise ProxyError(f"HAProxy does not take {upstream} as its server: {answer}")
            self._upstream = address

    def mirror(self, share: int) -> None:
        """Copy `share` percent of the requests without a version to the collector at `mirror_socket`; 0 copies none."""
        if not 0 <= share <= 100:
            raise ValueError(f"share: expected 0 to 100 percent, got {share}")
        self.check()
        self.runtime.replace_map(_SHADOW, {"share": str(share)})

    def check(self) -> None:
        """`ProxyError` if HAProxy has ended."""
        if self._process is None:
            raise ProxyError("the proxy is not running")
        if self._process.poll() is None:
            return
        self._join_readers()
        words = "\n".join(list(self._output)[-_LAST_LINES:])
        raise ProxyError(f"HAProxy ended with status {self._process.returncode}:\n{words}")

    def stop(self, *, graceful: bool = True, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Take no new connections, answer what is in flight for up to `timeout_s`, then end."""
        process, self._process = self._process, None
        if process is not None:
            if graceful and process.poll() is None:
                self._finish_requests(process, time.monotonic() + timeout_s)
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._join_readers()
        if self._given_directory is None and self.run_dir.name.startswith(RUN_DIRECTORY_PREFIX):
            shutil.rmtree(self.run_dir, ignore_errors=True)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            self.check()
            try:
                self.runtime.command("show info")
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise ProxyError(f"HAProxy does not answer after {START_TIMEOUT_S:g} s") from None
            time.sleep(POLL_INTERVAL_S)

    def _finish_requests(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        """Stop listening, and wait until all is answered and kept connections have had a last chance to ask."""
        try:
            with RuntimeSession(self.stats_socket) as session:
                process.send_signal(signal.SIGUSR1)
                busy = time.monotonic()
                while time.monotonic() < min(deadline, busy + IDLE_S) and session.connections():
                    if session.command("show sess").count("fe=predictions"):
                        busy = time.monotonic()
                    time.sleep(POLL_INTERVAL_S)
        except OSError:
            return

    def _read_output(self, process: subprocess.Popen[bytes]) -> None:
        """Records come on standard output, complaints on standard error."""
        assert process.stdout is not None
        assert process.stderr is not None
        records, complaints = process.stdout, process.stderr
        fcntl.fcntl(records, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        feed = TrafficFeed(self.traffic_socket)

        def pump() -> None:
            with records:
                feed.pump(records.fileno())

        def note() -> None:
            with complaints:
                self._output.extend(line.decode(errors="replace").rstrip("\n") for line in complaints)

        self._readers = [Thread(target=work, name=f"haproxy-{work.__name__}", daemon=True) for work in (pump, note)]
        for reader in self._readers:
            reader.start()

    def _join_readers(self) -> None:
        for reader in self._readers:
            reader.join(timeout=1.0)


def _host_and_port(url: str) -> tuple[str, str]:
    address = urlsplit(url if "://" in url else f"http://{url}")
    if address.scheme != "http" or not address.hostname:
        raise ValueError(f"{url}: expected the server's address, such as http://127.0.0.1:8080")
    return address.hostname, str(address.port or 80)


def _write_map(path: Path, entries: dict[str, str]) -> None:
    path.write_text("".join(f"{key} {value}\n" for key, value in entries.items()))
