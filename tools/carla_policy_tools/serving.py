"""`carla-policy serve`: what the registry declares, as a ready server; drained and gone when it is told to stop.

Everything that takes long goes on side by side: torch is imported for the workers, the Java server starts, and the
archives are verified; the server learns what to load when all of them are. What needs more modules imports them
meanwhile, which is why some imports here stand inside functions.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from carla_policy.errors import ArtifactError
from carla_policy.otel_environment import export_delay_s, is_wanted
from carla_policy_tools.configuration import SizeLimits, properties
from carla_policy_tools.lifecycle import leftovers
from carla_policy_tools.lifecycle.declaring import Declaration, declare, recorded
from carla_policy_tools.lifecycle.endpoint import Announcement, Endpoint, announced
from carla_policy_tools.lifecycle.intents import any_interrupted
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.lifecycle.run_directory import run_directory
from carla_policy_tools.lifecycle.settling import settle
from carla_policy_tools.ports import Ports
from carla_policy_tools.processes import STOP_SIGNALS, age_s, stop_signals
from carla_policy_tools.settings.applying import take_over
from carla_policy_tools.settings.effects import worker_environment, write_log_level
from carla_policy_tools.settings.model import Device, LogLevel
from carla_policy_tools.settings.resolving import Resolved
from carla_policy_tools.torchserve import STOP_TIMEOUT_S, TorchServe
from carla_policy_tools.workers.preloading import ForkServer

if TYPE_CHECKING:
    from carla_policy_tools.serve_events import RegistryChanges, ServeEvents

WATCH_INTERVAL_S = 0.2
SEND_S = 0.5
"""For a worker's last spans to arrive at their collector."""


@dataclass(frozen=True)
class Request:
    """What a `serve` command line asks for; the registry, where there is one, says the rest."""

    registry_file: RegistryFile
    ports: Callable[[], Ports]
    """Chosen when an earlier server of this registry has left its own."""
    versions: Sequence[str] = ()
    promote: str | None = None
    profile: str | None = None
    """Of all versions, noted in the registry."""
    newcomers_profile: str | None = None
    """Of versions that the registry does not know yet."""
    run_dir: Path | None = None
    frozen: bool = False
    heap_mb: int | None = None
    """Of Java for bodies, in place of what profiles say."""
    worker_count: int | None = None
    """Of each version, in place of what its profile says."""
    device: Device = "auto"
    log_level: LogLevel = "info"
    resolved: Resolved | None = None
    """The settings that all this was taken from, to be announced."""
    token_minutes: float | None = None
    """For which TorchServe's keys live, where it is to ask for them."""
    workers: ForkServer | None = None
    """Importing already."""
    java_flags: Sequence[str] | None = None
    """Instead of those that use the ahead-of-time cache."""
    stop_timeout_s: float = STOP_TIMEOUT_S
    log_console: bool = False
    """Whether all that is logged is on standard error too."""


class StopRequested(BaseException):
    """Ctrl-C arrived, or SIGTERM, or the terminal was closed."""


def serve(
    request: Request,
    *,
    on_start: Callable[[Declaration], None],
    on_ready: Callable[[Declaration, Endpoint], None],
    on_trouble: Callable[[str], None],
) -> None:
    """Serve until asked to stop; returns when everything that was asked has been answered and the server is gone.

    Archives that have changed, or that none of a profile's trusted keys has signed, are refused with `ArtifactError`
    before anything is loaded; `ServerError` if the server does not start or ends by itself. Once ready, a version
    whose worker fails is told to `on_trouble`, and the others are served on. Without a run directory a temporary one
    is used, which stays only if something went wrong.
    """
    registry_file = request.registry_file
    try:
        with stop_signals(_request_stop), announced(registry_file) as announcement:
            leftovers.end_processes(announcement.previous)
            leftovers.remove_copies()
            ports = request.ports()
            declaration = declare(
                settle(registry_file, None),
                registry_file.store,
                request.versions,
                request.promote,
                request.profile,
                request.newcomers_profile,
            )
            on_start(declaration)
            with run_directory(request.run_dir) as directory:
                endpoint = Endpoint(
                    state="starting",
                    pid=os.getpid(),
                    ports=ports,
                    profile=declaration.profiles[declaration.promoted],
                    limits=SizeLimits.of(declaration.settings().values()),
                    frozen=request.frozen,
                    token_auth=request.token_minutes is not None,
                    run_dir=directory,
                    workers=request.worker_count,
                    **(request.resolved.announced() if request.resolved else {}),
                )
                announcement.say(endpoint)
                _run(request, declaration, announcement, endpoint, on_ready, on_trouble)
    except StopRequested:
        return


def _run(
    request: Request,
    declaration: Declaration,
    announcement: Announcement,
    endpoint: Endpoint,
    on_ready: Callable[[Declaration, Endpoint], None],
    on_trouble: Callable[[str], None],
) -> None:
    registry_file, ports = request.registry_file, endpoint.ports
    settings = declaration.settings(request.worker_count)
    shutil.rmtree(endpoint.store, ignore_errors=True)
    endpoint.store.mkdir()
    started = properties(
        versions=settings,
        promoted=declaration.promoted,
        ports=ports,
        store=endpoint.store,
        frozen=endpoint.frozen,
        token_minutes=request.token_minutes,
        gpus=request.device != "cpu",
    )
    write_log_level(endpoint.run_dir, request.log_level)
    torchserve = TorchServe(
        started,
        ports,
        endpoint.run_dir,
        heap_mb=request.heap_mb or max(profile.jvm_heap_mb for profile in settings.values()),
        environment=worker_environment(request.device, request.log_level, endpoint.run_dir),
        token_auth=endpoint.token_auth,
        workers=request.workers,
        java_flags=request.java_flags,
        stop_timeout_s=request.stop_timeout_s,
    )
    with ExitStack() as outlasting, torchserve as server, _renewal(endpoint, request.token_minutes):
        try:
            times = {"started": age_s()}
            from carla_policy_tools.lifecycle.copies import take_copies
            from carla_policy_tools.lifecycle.probes import Probes
            from carla_policy_tools.lifecycle.reconciling import reconcile
            from carla_policy_tools.lifecycle.stopping import drain
            from carla_policy_tools.lifecycle.warming import compiler_seconds, warm_up
            from carla_policy_tools.serve_events import RegistryChanges, ServeEvents

            events = outlasting.enter_context(
                ServeEvents(endpoint.log_file.parent, level=request.log_level, console=request.log_console)
            )
            server.relay = events.relay
            events.info("starting", f"starting {', '.join(settings)}", promoted=declaration.promoted)
            for notice in declaration.notices:
                events.info("notice", notice)

            endpoint = endpoint.model_copy(update={"server_pid": server.pid})
            announcement.say(endpoint)
            outlasting.enter_context(Probes(registry_file, ports.health, ports.host))
            digests, git_shas = take_copies(declaration, settings, registry_file.store, endpoint.store)
            times["verified"] = age_s()
            server.configure()
            server.wait_ready(
                {version: profile.workers for version, profile in settings.items()},
                max(profile.startup_timeout_s for profile in settings.values()),
            )
            times["loaded"] = age_s()
            requests = warm_up(
                ports.url("inference"),
                list(settings),
                max(profile.warmup_s for profile in settings.values()),
                lambda: compiler_seconds(server.pid or 0),
                endpoint.authorization(),
            )
            times["warm"] = age_s()
            with registry_file.locked() as registry:
                changed = recorded(registry, declaration, digests, git_shas, registry_file.store)
                if changed != registry:
                    registry_file.write(changed)
            update = {"state": "ready", "startup_s": times, "warmup_requests": requests}
            endpoint = endpoint.model_copy(update=update)
            announcement.say(endpoint)
            if registry.sequence != declaration.sequence:
                reconcile(registry_file)  # somebody rolled back, or retired a version, while it started
            events.info("ready", f"ready: {', '.join(settings)}", startup_s=times, url=ports.url("inference"))
            on_ready(declaration, endpoint)
            changes = RegistryChanges(registry_file, declaration.sequence, events)
            _watch(server, registry_file, announcement, endpoint, on_trouble, events, changes)
        except StopRequested:
            _ignore_stop_signals()
            if endpoint.state == "ready" and server.pid:
                announcement.say(endpoint.model_copy(update={"state": "draining"}))
                events.info("draining", "asked to stop: what was accepted is answered, nothing new is taken")
                drain(endpoint, server.pid, server.drain_file)
                if is_wanted(os.environ):
                    time.sleep(export_delay_s(os.environ) + SEND_S)
            raise
        finally:
            _ignore_stop_signals()


def _renewal(endpoint: Endpoint, minutes: float | None) -> AbstractContextManager[object]:
    if minutes is None:
        return nullcontext()
    from carla_policy_tools.tokens import Renewal

    return Renewal(endpoint.ports.url("management"), endpoint.key_file, minutes)


def _watch(
    server: TorchServe,
    registry_file: RegistryFile,
    announcement: Announcement,
    endpoint: Endpoint,
    on_trouble: Callable[[str], None],
    events: ServeEvents,
    changes: RegistryChanges,
) -> None:
    """Until the server ends or is told to: say what fails, and take back what killed commands left half done.

    Other settings are taken over when `config apply` asks for them.
    """
    import requests

    with endpoint.management() as management:
        while True:
            server.check()
            for version, reason in server.take_load_failures():
                on_trouble(f"{version}: {reason}")
                events.error("worker_failed", reason, version=version)
            changes.look()
            if changed := take_over(endpoint):
                endpoint = changed
                announcement.say(endpoint)
            if any_interrupted(registry_file):
                with suppress(requests.RequestException, RegistryError, ArtifactError):
                    settle(registry_file, management)
            time.sleep(WATCH_INTERVAL_S)


def _request_stop(*_: object) -> None:
    raise StopRequested


def _ignore_stop_signals() -> None:
    """Stopping is under way; a second Ctrl-C must not interrupt it and leave orphans."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def describe(declaration: Declaration, endpoint: Endpoint) -> dict[str, object]:
    """What a ready server is: for `serve --json`."""
    return {
        "status": "ready",
        "versions": list(declaration.profiles),
        "promoted": declaration.promoted,
        "host": endpoint.ports.host,
        "inference": endpoint.ports.url("inference"),
        "management": endpoint.ports.url("management"),
        "metrics": endpoint.ports.url("metrics"),
        "health": endpoint.ports.url("health"),
        "pid": endpoint.pid,
        "server_pid": endpoint.server_pid,
        "run_dir": str(endpoint.run_dir),
        "frozen": endpoint.frozen,
        "key_file": str(endpoint.key_file) if endpoint.token_auth else None,
        "startup_s": endpoint.startup_s,
        "warmup_requests": endpoint.warmup_requests,
    }
