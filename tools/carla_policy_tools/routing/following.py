"""`carla-policy proxy`: HAProxy in front of the running server, doing what the registry declares.

This process alone changes HAProxy. It looks at the registry, at the server's announcement and at a shadow's wish ten
times a second, and says beside the registry what is in force.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from carla_policy.errors import ArtifactError
from carla_policy_tools.lifecycle.endpoint import find_server, require_server
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile, try_lock
from carla_policy_tools.lifecycle.status import profiles_of
from carla_policy_tools.processes import stop_signals
from carla_policy_tools.routing.proxy import RUN_DIRECTORY_PREFIX, Proxy
from carla_policy_tools.routing.routes import Routes

POLL_S = 0.1
_WRITE_S = 0.2
"""While a file is being written, or looked at by somebody else, for at most so long."""
_MAX_STATE_BYTES = 65_536
IN_FORCE_TIMEOUT_S = 2.0
SERVER_MARGIN_S = 30.0
"""Beyond the response time-out of any version: a request may wait in the server's queue before."""


class ProxyState(BaseModel):
    """A running proxy: how it is reached, and what is in force."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pid: int
    """Of the `proxy` command."""
    url: str
    stats_socket: Path
    traffic_socket: Path
    mirror_socket: Path
    sequence: int
    """Of the registry's change up to which everything is in force."""
    promoted: str
    split: dict[str, int] | None
    shadow_share: int


def state_file(registry_file: RegistryFile) -> Path:
    """Where the proxy of a registry says what it does; locked while it lives."""
    return registry_file.path.with_name(f"{registry_file.path.name}.proxy")


def shadow_file(registry_file: RegistryFile) -> Path:
    """Where a shadow says which share of the requests it wants; locked while it lives."""
    return registry_file.path.with_name(f"{registry_file.path.name}.shadow")


def find_proxy(registry_file: RegistryFile) -> ProxyState | None:
    """The proxy that follows this registry, or none if none is running."""
    deadline = time.monotonic() + _WRITE_S
    with suppress(FileNotFoundError), state_file(registry_file).open("rb") as file:
        while not try_lock(file.fileno(), shared=True):
            with suppress(ValidationError):
                return ProxyState.model_validate_json(os.pread(file.fileno(), _MAX_STATE_BYTES, 0))
            if time.monotonic() > deadline:
                break
            time.sleep(_WRITE_S / 20)
    return None


def require_proxy(registry_file: RegistryFile) -> ProxyState:
    """The proxy of this registry; `RegistryError` if there is none."""
    state = find_proxy(registry_file)
    if state is None:
        raise RegistryError(f"no proxy follows {registry_file.path}; start one with `carla-policy proxy`")
    return state


def wait_until(
    registry_file: RegistryFile, reached: Callable[[ProxyState], bool], timeout_s: float = IN_FORCE_TIMEOUT_S
) -> bool:
    """Whether what the proxy says fulfils `reached` within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        state = find_proxy(registry_file)
        if state is not None and reached(state):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S / 5)


def follow(
    registry_file: RegistryFile,
    *,
    port: int,
    on_ready: Callable[[ProxyState], None],
    on_change: Callable[[ProxyState], None],
    on_trouble: Callable[[str], None],
) -> None:
    """Run a proxy until Ctrl-C or SIGTERM; returns when it has answered everything.

    A registry that cannot be followed is told to `on_trouble`; what was in force before stays so.
    `RegistryError` if no server runs or another proxy does; `ProxyError` if HAProxy is missing or ends by itself.
    """
    endpoint = require_server(registry_file)
    registry = registry_file.read()
    server_timeout_s = SERVER_MARGIN_S + max(profile.response_timeout_s for profile in profiles_of(registry).values())
    proxy = Proxy(endpoint.ports.url("inference"), _routes(registry), port=port, server_timeout_s=server_timeout_s)
    with _announced(registry_file) as announce, stop_flag() as stopping, proxy:
        follower = _Follower(registry_file, proxy, registry)
        announce(follower.state())
        on_ready(follower.state())
        while not stopping():
            proxy.check()
            before = follower.state()
            try:
                follower.catch_up()
            except (ArtifactError, RegistryError) as error:
                on_trouble(str(error))
            if follower.state() != before:
                announce(follower.state())
                on_change(follower.state())
            time.sleep(POLL_S)


class _Follower:
    """Brings the proxy up to date with three files; each is read when it has changed."""

    def __init__(self, registry_file: RegistryFile, proxy: Proxy, registry: Registry) -> None:
        self._registry_file = registry_file
        self._proxy = proxy
        self._registry = registry
        self._shadow_share = 0
        self._seen: dict[Path, tuple[int, ...] | None] = {}

    def state(self) -> ProxyState:
        return ProxyState(
            pid=os.getpid(),
            url=self._proxy.url,
            stats_socket=self._proxy.stats_socket,
            traffic_socket=self._proxy.traffic_socket,
            mirror_socket=self._proxy.mirror_socket,
            sequence=self._registry.sequence,
            promoted=self._registry.promoted or "",
            split=self._registry.split,
            shadow_share=self._shadow_share,
        )

    def catch_up(self) -> None:
        if self._has_changed(self._registry_file.path):
            registry = self._registry_file.read()
            if _routes(registry) != _routes(self._registry):
                self._proxy.apply(_routes(registry))
            self._registry = registry
        if self._has_changed(self._registry_file.server_file):
            endpoint = find_server(self._registry_file)
            if endpoint and endpoint.state == "ready":
                self._proxy.move(endpoint.ports.url("inference"))
        share = _wanted_share(shadow_file(self._registry_file))
        if share != self._shadow_share:
            self._proxy.mirror(share)
            self._shadow_share = share

    def _has_changed(self, path: Path) -> bool:
        try:
            status = path.stat()
            signature = (status.st_ino, status.st_mtime_ns, status.st_size)
        except FileNotFoundError:
            return False
        changed = self._seen.get(path) != signature
        self._seen[path] = signature
        return changed


def _routes(registry: Registry) -> Routes:
    if registry.promoted is None:
        raise RegistryError("no version is promoted; start a server first with `carla-policy serve`")
    return Routes(registry.promoted, registry.split)


def _wanted_share(path: Path) -> int:
    """What a living shadow wants; 0 if there is none. The file stays: whoever writes it locks it, and empties it."""
    with suppress(FileNotFoundError, ValueError), path.open("rb") as file:
        share = int(file.read())
        return 0 if try_lock(file.fileno(), shared=True) else share
    return 0


@contextmanager
def _announced(registry_file: RegistryFile) -> Iterator[Callable[[ProxyState], None]]:
    """Be the one proxy of a registry, and remove what one that was killed left; `RegistryError` if another one is."""
    with os.fdopen(os.open(state_file(registry_file), os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        if not lock(file.fileno()):
            raise RegistryError(f"{registry_file.path}: a proxy follows this registry already; stop it first")
        with suppress(ValidationError):
            killed = ProxyState.model_validate_json(file.read()).stats_socket.parent
            if killed.name.startswith(RUN_DIRECTORY_PREFIX):
                shutil.rmtree(killed, ignore_errors=True)
        os.ftruncate(file.fileno(), 0)

        def announce(state: ProxyState) -> None:
            data = state.model_dump_json().encode()
            os.pwrite(file.fileno(), data, 0)
            os.ftruncate(file.fileno(), len(data))

        try:
            yield announce
        finally:
            os.ftruncate(file.fileno(), 0)


def lock(descriptor: int) -> bool:
    """Lock a file for as long as it stays open; somebody who only looks whether it is locked is waited for."""
    deadline = time.monotonic() + _WRITE_S
    while not try_lock(descriptor):
        if time.monotonic() > deadline:
            return False
        time.sleep(_WRITE_S / 20)
    return True


@contextmanager
def stop_flag() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM has arrived, or the terminal was closed; none interrupts what is being done."""
    received: list[int] = []
    with stop_signals(lambda number, _: received.append(number)):
        yield lambda: bool(received)
