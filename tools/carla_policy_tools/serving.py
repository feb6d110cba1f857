"""`carla-policy serve`: archives in, a ready server out, and nothing left when it stops."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from carla_policy.version import parse_version, version_key
from carla_policy_tools.configuration import Ports, Profile, properties
from carla_policy_tools.keys import load_public_keys
from carla_policy_tools.paths import archive_name, archived_versions, naming
from carla_policy_tools.signing import check_archive
from carla_policy_tools.torchserve import ServerError, TorchServe

WATCH_INTERVAL_S = 0.2
_LOCK_FILE = "serve.lock"
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Deployment:
    """Which versions of a store to serve side by side, and which of them answers where none is named."""

    store: Path
    versions: tuple[str, ...]
    promoted: str


class StopRequested(BaseException):
    """Ctrl-C arrived, or SIGTERM, or the terminal was closed."""


def choose_versions(store: Path, versions: Sequence[str] = (), promote: str | None = None) -> Deployment:
    """All versions in `store` unless some are named; the newest is promoted unless one is named."""
    available = archived_versions(store)
    if not available:
        raise ValueError(
            f"{store}: there are no archives to serve; build one with `carla-policy build artifacts/<version>`"
        )
    chosen = sorted({parse_version(version) for version in versions}, key=version_key) or available
    promoted = parse_version(promote) if promote else chosen[-1]
    for version in (*chosen, promoted):
        if version not in available:
            raise ValueError(f"{store}: has no {version}, only {', '.join(available)}")
    if promoted not in chosen:
        raise ValueError(f"{promoted} is to be promoted, but only {', '.join(chosen)} are to be served")
    return Deployment(store, tuple(chosen), promoted)


def serve(
    deployment: Deployment,
    *,
    profile: Profile,
    ports: Ports,
    run_dir: Path | None,
    on_ready: Callable[[TorchServe], None],
    on_trouble: Callable[[str], None],
) -> None:
    """Serve until asked to stop; returns then. `ServerError` if the server does not start or ends by itself.

    Archives that have changed, or that none of the profile's trusted keys has signed, are refused with `ArtifactError`
    before anything is started. Once ready, a version whose worker fails is told to `on_trouble`, and the others are
    served on.

    Without a `run_dir` a temporary one is used, which stays only if something went wrong.
    """
    trusted_keys = load_public_keys(profile.trusted_keys)
    for version in deployment.versions:
        with tempfile.TemporaryDirectory(prefix="carla-policy-check-") as scratch:
            archive = deployment.store / archive_name(version)
            with naming(archive):
                check_archive(archive, Path(scratch), trusted_keys)
    settings = properties(
        versions=deployment.versions, promoted=deployment.promoted, profile=profile, ports=ports, store=deployment.store
    )
    try:
        with _stop_signals(), _run_directory(run_dir) as directory, TorchServe(settings, ports, directory) as server:
            try:
                server.wait_ready(deployment.versions, profile.workers, profile.startup_timeout_s)
                on_ready(server)
                while True:
                    server.check()
                    for reason in server.take_load_failures():
                        on_trouble(reason)
                    time.sleep(WATCH_INTERVAL_S)
            finally:
                _ignore_stop_signals()
    except StopRequested:
        return


@contextmanager
def _run_directory(given: Path | None) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="carla-policy-")) if given is None else given.resolve()
    if directory.exists() and not directory.is_dir():
        raise ServerError(f"{directory}: is not a directory; choose another --run-dir")
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerError(f"{directory}: another server runs there; choose another --run-dir") from None
        shutil.rmtree(directory / "tmp", ignore_errors=True)  # copies that a killed server unpacked
        keep = given is not None
        try:
            yield directory
        except ServerError:
            keep = True
            raise
        finally:
            shutil.rmtree(directory if not keep else directory / "tmp", ignore_errors=True)


@contextmanager
def _stop_signals() -> Iterator[None]:
    def request_stop(*_: object) -> None:
        raise StopRequested

    heeded = [*_STOP_SIGNALS]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        heeded.remove(signal.SIGHUP)  # under nohup the server outlives its terminal
    previous = {number: signal.signal(number, request_stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ignore_stop_signals() -> None:
    """Stopping is under way; a second Ctrl-C must not interrupt it and leave orphans."""
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def describe(deployment: Deployment, server: TorchServe) -> dict[str, object]:
    """What a ready server is: for `serve --json`."""
    return {
        "status": "ready",
        "versions": list(deployment.versions),
        "promoted": deployment.promoted,
        "inference": server.ports.url("inference"),
        "management": server.ports.url("management"),
        "metrics": server.ports.url("metrics"),
        "pid": os.getpid(),
        "server_pid": server.pid,
        "run_dir": str(server.run_dir),
    }
