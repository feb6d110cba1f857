"""Serving one simulator until Ctrl-C or SIGTERM, on a port that is taken before the simulator is made."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from carla_policy_environment.service.app import make_app
from carla_policy_environment.service.episodes import EnvironmentService
from carla_policy_environment.service.settings import ServiceSettings
from carla_policy_environment.simulators.base import Simulator

KEEP_ALIVE_S = 120
"""How long an idle connection stays open: a learner may think for a while between two steps."""
SHUTDOWN_S = 5
CLOSE_S = 10
"""What the simulator may take to close: CARLA gets its world back as it was."""
MAX_MESSAGE_BYTES = 1 << 16


def serve(
    make_simulator: Callable[[], Simulator],
    settings: ServiceSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8090,
    ready: Callable[[str, EnvironmentService], None],
) -> None:
    """Serve until a signal ends it; `ready` is called with the URL when requests are answered.

    Port 0 takes any free one. Raises `OSError` that names the port if it cannot be used, before the simulator is made.
    """
    with _Signals() as signals, listening_socket(host, port) as listener:
        service = EnvironmentService(make_simulator, settings)
        try:
            signals.are_the_servers = True
            url = _url(host, listener.getsockname()[1])
            _Server(configuration(service), lambda: ready(url, service)).run(sockets=[listener])
        finally:
            service.close(CLOSE_S)


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at `host` and `port`; `OSError` names both if there can be none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
        return listener
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"port {port} on {host} cannot be used: {reason}; choose another with --port") from None


def _url(host: str, port: int) -> str:
    reached = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{reached}:{port}"


def configuration(service: EnvironmentService) -> uvicorn.Config:
    """How uvicorn serves `service`."""
    return uvicorn.Config(
        make_app(service),
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


class _Signals:
    """SIGINT and SIGTERM end the process with status 0: at once, until the server takes care of them itself.

    The server raises again what it got when it has ended; then there is nothing left to do.
    """

    def __init__(self) -> None:
        self.are_the_servers = False

    def __enter__(self) -> _Signals:
        self._before = {number: signal.signal(number, self._end) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        if not self.are_the_servers:
            raise SystemExit(0)
