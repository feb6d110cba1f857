"""`carla-policy register`: a version joins a running server only if it reproduces its golden vectors there."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import requests

from carla_policy.errors import ArtifactError
from carla_policy_tools.archive import check, copy_archive, with_config
from carla_policy_tools.build import Verification, verify
from carla_policy_tools.configuration import Profile, load_profile, profile_source
from carla_policy_tools.keys import load_public_keys
from carla_policy_tools.lifecycle.endpoint import Endpoint, check_not_frozen, require_server
from carla_policy_tools.lifecycle.intents import intent
from carla_policy_tools.lifecycle.management import POLL_S, Management
from carla_policy_tools.lifecycle.newcomers import Newcomer, record
from carla_policy_tools.lifecycle.promoting import check_answers
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.lifecycle.replay import replay
from carla_policy_tools.lifecycle.settling import settle
from carla_policy_tools.lifecycle.warming import warm_up
from carla_policy_tools.paths import archive_name, archived_versions, naming
from carla_policy_tools.urls import prediction_url
from carla_policy_tools.worker_log import WorkerLog

LAST_WORDS_S = 0.5
"""What a worker says when it dies arrives in the log in pieces."""


@dataclass(frozen=True)
class Registration:
    """A version that was registered, and how its answers over HTTP compare with those of the archive alone."""

    registry: Registry
    version: str
    digest: str
    actions: int
    bit_equal: int


def register(
    registry_file: RegistryFile,
    version: str,
    *,
    profile: str | None = None,
    reason: str = "",
    on_step: Callable[[str], None] = lambda _: None,
) -> Registration:
    """Verify, load beside the versions that are served, replay over HTTP, record; or leave everything as it was.

    Raises `ArtifactError` for an archive that must not be served and `RegistryError` for anything else that stands
    against it, with the worker's own words.
    """
    endpoint = require_server(registry_file)
    check_not_frozen(endpoint, version)
    name = profile_source(profile or endpoint.profile)
    settings = load_profile(name).with_workers(endpoint.workers)
    if shortage := endpoint.limits.shortage(settings):
        raise RegistryError(f"{version}: {shortage}; choose another --profile, or start the server again with this one")
    with endpoint.management() as management:
        check_can_register(settle(registry_file, management), management, version)
        with intent(registry_file, "register", version):
            check_can_register(registry_file.read(), management, version)
            on_step("verifying")
            verification = _take(registry_file.store / archive_name(version), endpoint, settings)
            try:
                registry_file.read().check_content(version, verification.digest)
                counts = _try_out(management, endpoint, version, verification, settings, on_step)
                on_step("loading")
                load(management, endpoint, version, settings)
                warm_up(endpoint.ports.url("inference"), [version], settings.warmup_s, None, endpoint.authorization())
                check_answers(management, endpoint, version)
                with registry_file.locked() as registry:
                    newcomer = Newcomer(version, verification.digest, verification.git_sha, name)
                    registry = record(registry, [newcomer], registry_file.store, reason)
                    registry_file.write(registry)
            except BaseException:
                with suppress(requests.RequestException, RegistryError):
                    management.unregister(version)
                (endpoint.store / archive_name(version)).unlink(missing_ok=True)
                raise
    return Registration(registry, version, verification.digest, **counts)


def check_can_register(registry: Registry, management: Management, version: str) -> None:
    """`RegistryError` for a version that is registered, or on the server without being so."""
    if version in registry.versions:
        raise RegistryError(f"{version}: is registered already, with archive {registry.versions[version].digest}")
    if management.version(version) is not None:
        raise RegistryError(
            f"{version}: the server has it, but nobody registered it here; `carla-policy reconcile` removes it"
        )


def _take(archive: Path, endpoint: Endpoint, settings: Profile) -> Verification:
    """Copy an archive to where the server loads from, verified as a copy: what is loaded is what was verified.

    Only its profile's time-outs and limits are put in, see `Profile.model_config_yaml`.
    """
    if not archive.is_file():
        available = ", ".join(archived_versions(archive.parent)) or "no archive"
        raise ArtifactError(f"{archive}: not found; the store has {available}; `carla-policy build` makes archives")
    endpoint.store.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=endpoint.store) as scratch, naming(archive):
        copy = Path(scratch, archive.name)
        copy_archive(archive, copy)
        trusted_keys = load_public_keys(settings.trusted_keys)
        verification = verify(copy, trusted_keys=trusted_keys, original=archive, timeout_s=settings.startup_timeout_s)
        configure(copy, settings, verification.digest)
        copy.replace(endpoint.store / archive.name)
    return verification


def configure(copy: Path, settings: Profile, digest: str) -> None:
    """Put the time-outs and limits of a profile into the server's own copy of the archive with this `digest`.

    `ArtifactError` if it is another one.
    """
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=copy.parent) as unpacked:
        _, found = check(copy, Path(unpacked))
        if found != digest:
            raise ArtifactError(f"{copy.name}: has changed: expected {digest}, got {found}; put that archive back")
        copy.write_bytes(with_config(Path(unpacked), settings.model_config_yaml()))


def _try_out(
    management: Management,
    endpoint: Endpoint,
    version: str,
    verification: Verification,
    settings: Profile,
    on_step: Callable[[str], None],
) -> dict[str, int]:
    """Load a version under a name that nobody asks, replay its golden vectors there, and unload it.

    Whoever asked a version that fails would never be answered, or be answered wrongly: TorchServe drops the queue of
    what it unregisters. So a version gets its own name only when it is known to work on this server.
    """
    with management.candidate(version) as candidate:
        try:
            on_step("trying it out")
            load(candidate, endpoint, version, settings.model_copy(update={"workers": 1}))
            on_step("replaying golden vectors over HTTP")
            url = prediction_url(endpoint.ports.url("inference"), version, candidate.model)
            auth, timeout_s = endpoint.auth("inference"), settings.response_timeout_s + 1.0
            return replay(url, version, verification.probes, verification.atol, timeout_s, auth)
        finally:
            with suppress(requests.RequestException, RegistryError):
                candidate.unregister(version)


def load(management: Management, endpoint: Endpoint, version: str, settings: Profile) -> None:
    """Register a version and return when all of its workers are READY; `RegistryError` with their words if not."""
    log = WorkerLog(endpoint.log_file, version)
    deadline = time.monotonic() + settings.startup_timeout_s
    management.register(version, settings)
    wait_ready(management, version, settings.workers, log, deadline)


def wait_ready(management: Management, version: str, workers: int, log: WorkerLog, deadline: float) -> None:
    """Return when `workers` workers are READY; `RegistryError` with the worker's words as soon as one has failed."""
    while True:
        served = management.version(version)
        if served is not None and served.ready_workers >= workers:
            return
        if log.has_failed():
            time.sleep(LAST_WORDS_S)
            raise RegistryError(f"{version}: does not load: {log.reason()} (log: {log.path})")
        if time.monotonic() > deadline:
            raise RegistryError(f"{version}: not ready in time; its worker's last words: {log.last_words()}")
        time.sleep(POLL_S)
