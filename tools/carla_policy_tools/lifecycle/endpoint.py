"""How commands find the server that serves a registry: a file beside the registry, locked while the server lives."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from carla_policy.files import read_file
from carla_policy_tools.configuration import SizeLimits
from carla_policy_tools.lifecycle.registry import POLL_S, RegistryError, RegistryFile, try_lock
from carla_policy_tools.paths import KEY_FILE
from carla_policy_tools.ports import Ports

if TYPE_CHECKING:
    from carla_policy_tools.lifecycle.management import Management
    from carla_policy_tools.tokens import Kind, Tokens

_GLANCE_S = 1.0
"""So long a server that starts waits for another one to end, and who looks for one that is changing what it says."""

MAX_BYTES = 1 << 20

State = Literal["starting", "ready", "draining"]


class Endpoint(BaseModel):
    """A running server: where it listens, who it is, and what it starts versions with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: State
    pid: int
    """Of the `serve` command."""
    server_pid: int | None = None
    """Of TorchServe, which also leads the process group of the workers."""
    ports: Ports
    profile: str
    """What it was started with, and what versions are registered with unless told otherwise."""
    limits: SizeLimits
    frozen: bool = False
    """Whether no version can join or leave before it ends."""
    token_auth: bool = False
    """Whether TorchServe asks for its keys, see `tokens`."""
    run_dir: Path
    workers: int | None = None
    """Of each version, in place of what profiles say."""
    deployment: str = ""
    settings: dict[str, Any] = {}
    """In force, by name, as JSON has them."""
    sources: dict[str, str] = {}
    """Where each of them was said, see `settings.resolving`."""
    startup_s: dict[str, float] = {}
    """Seconds from the launch of `serve`: until Java was `started`, all archives `verified`, all workers `loaded`, and
    the server `warm`."""
    warmup_requests: int = 0

    def management(self) -> Management:
        """Its management port, with the key that this asks for."""
        from carla_policy_tools.lifecycle.management import Management

        return Management(self.ports.url("management"), auth=self.auth("management"))

    def auth(self, kind: Kind) -> Tokens | None:
        """What a session needs to be let in where the server asks for keys."""
        from carla_policy_tools.tokens import Tokens

        return Tokens(self.key_file, kind) if self.token_auth else None

    def authorization(self) -> str | None:
        """The header `Authorization` of a prediction at this moment, where the server asks for keys."""
        from carla_policy_tools.tokens import read_key

        return f"Bearer {read_key(self.key_file, 'inference')}" if self.token_auth else None

    @property
    def key_file(self) -> Path:
        return self.run_dir / KEY_FILE

    @property
    def store(self) -> Path:
        """The server's own copies of the archives that it was told to load, with their profiles in them."""
        return self.run_dir / "store"

    @property
    def log_file(self) -> Path:
        return self.run_dir / "logs" / "torchserve.log"


class Announcement:
    """The server's side: says how it is reached, for as long as it lives."""

    def __init__(self, descriptor: int, previous: Endpoint | None) -> None:
        self._descriptor = descriptor
        self.previous = previous
        """What an earlier server left here that was killed."""

    def say(self, endpoint: Endpoint) -> None:
        """Replace what is announced."""
        data = endpoint.model_dump_json().encode() + b"\n"
        os.pwrite(self._descriptor, data, 0)
        os.ftruncate(self._descriptor, len(data))


@contextmanager
def announced(registry_file: RegistryFile) -> Iterator[Announcement]:
    """Be the one server of a registry; `RegistryError` if another one is."""
    path = registry_file.server_file
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + _GLANCE_S
        while not try_lock(descriptor):
            if time.monotonic() > deadline and _is_locked(path):
                raise RegistryError(
                    f"{registry_file.path}: a server serves this registry already; stop it, or name another --registry"
                )
            time.sleep(POLL_S)
        announcement = Announcement(descriptor, _read(path))
        if announcement.previous:
            # Whoever looks must not take the killed server for this one; the next must find its run directory if this
            # one is killed too.
            announcement.say(announcement.previous.model_copy(update={"state": "starting", "pid": os.getpid()}))
        try:
            yield announcement
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def find_server(registry_file: RegistryFile) -> Endpoint | None:
    """The server that serves this registry, or none if none is running.

    `RegistryError` for one of another release, which announces itself in other words.
    """
    path = registry_file.server_file
    deadline = time.monotonic() + _GLANCE_S
    while _is_filled(path) and _is_locked(path):
        found = _read(path)
        if found:
            return found
        if time.monotonic() > deadline:
            if _is_of_another_release(path):
                raise RegistryError(
                    f"{path}: the server that runs was started by another release of carla-policy, which this one does "
                    "not understand; restart it with this one: end its `carla-policy serve`, and start that again"
                )
            return None
        time.sleep(POLL_S)
    return None


def require_server(registry_file: RegistryFile) -> Endpoint:
    """The ready server of this registry; `RegistryError` says why there is none."""
    endpoint = find_server(registry_file)
    if endpoint is None:
        raise RegistryError(f"no server serves {registry_file.path}; start one with `carla-policy serve`")
    if endpoint.state != "ready":
        raise RegistryError(f"the server of {registry_file.path} is {endpoint.state}; try again when it is ready")
    return endpoint


def check_not_frozen(endpoint: Endpoint, version: str) -> None:
    """`RegistryError` if versions cannot join or leave this server."""
    if endpoint.frozen:
        raise RegistryError(
            f"{version}: the versions of this server are fixed, it was started with --frozen; start it without that, "
            "change versions, and start it with --frozen again"
        )


def _is_filled(path: Path) -> bool:
    with suppress(FileNotFoundError):
        return path.stat().st_size > 0
    return False


def _is_locked(path: Path) -> bool:
    """Whether a server has the file; others who only look at this moment do not count."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        return not try_lock(file.fileno(), shared=True)
    return False


def _read(path: Path) -> Endpoint | None:
    """What is announced in words of this release; none where nothing is, or where it is being written right now."""
    try:
        return Endpoint.model_validate(json.loads(read_file(path, MAX_BYTES)))
    except (ValueError, ValidationError):
        return None


def _is_of_another_release(path: Path) -> bool:
    """Whether a whole announcement is there, though none that `_read` understands."""
    with suppress(OSError, ValueError, TypeError):
        return "pid" in json.loads(path.read_bytes()) and _read(path) is None
    return False
