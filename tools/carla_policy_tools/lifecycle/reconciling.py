"""`carla-policy reconcile`: make a running server what its registry declares."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from carla_policy.digests import file_digest
from carla_policy.errors import ArtifactError
from carla_policy_tools.archive import copy_archive
from carla_policy_tools.configuration import Profile
from carla_policy_tools.lifecycle.draining import pass_queue
from carla_policy_tools.lifecycle.endpoint import Endpoint, require_server
from carla_policy_tools.lifecycle.intents import intent, under_way
from carla_policy_tools.lifecycle.management import Management, ServedVersion
from carla_policy_tools.lifecycle.records import VersionRecord
from carla_policy_tools.lifecycle.registering import configure, wait_ready
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.lifecycle.settling import settle
from carla_policy_tools.lifecycle.status import Status, profiles_of, read_status
from carla_policy_tools.paths import archive_name
from carla_policy_tools.worker_log import WorkerLog

DRAIN_TIMEOUT_S = 5.0
RECOVERY_S = 5.0
"""What a version with too few workers gets to recover by TorchServe's own restarts, before it is loaded anew."""


def reconcile(registry_file: RegistryFile, on_step: Callable[[str], None] = lambda _: None) -> Status:
    """Load what is missing, promote what is declared, restart what has died, remove what nobody declared.

    Versions that another operator is changing at this moment are left alone, and on a frozen server none is loaded or
    removed. Returns the status afterwards, with what cannot be mended on such a server in its `drift`. A version that
    does not load, or whose archive is missing or has changed, is told by a `RegistryError` after all else is mended.
    """
    endpoint = require_server(registry_file)
    failures: list[str] = []
    with endpoint.management() as management:
        registry = settle(registry_file, management)
        changing = {change.version for change in under_way(registry_file) if change.is_change}
        for version, profile in profiles_of(registry, endpoint.workers).items():
            if version not in changing:
                with intent(registry_file, "reconcile", version):
                    record = registry.versions[version]
                    try:
                        _restore(registry_file, management, endpoint, version, profile, record, on_step)
                    except (ArtifactError, RegistryError) as error:
                        failures.append(str(error))
        with registry_file.locked() as registry:
            changing = {change.version for change in under_way(registry_file) if change.is_change}
            if registry.promoted and registry.promoted not in changing and management.default() != registry.promoted:
                on_step(f"promoting {registry.promoted}")
                management.set_default(registry.promoted)
            undeclared = management.versions().keys() - registry.versions.keys() - changing
            for version in () if endpoint.frozen else undeclared:
                on_step(f"removing {version}")
                pass_queue(management, version, DRAIN_TIMEOUT_S)
                management.unregister(version)
    if failures:
        raise RegistryError("; ".join(failures))
    return read_status(registry_file)


def _restore(
    registry_file: RegistryFile,
    management: Management,
    endpoint: Endpoint,
    version: str,
    profile: Profile,
    record: VersionRecord,
    on_step: Callable[[str], None],
) -> None:
    log = WorkerLog(endpoint.log_file, version)
    served = management.version(version)
    if served is None and endpoint.frozen:
        return
    if served is not None and _recovers(management, served, version, profile):
        return
    on_step(f"loading {version}")
    if served is None:
        _take(registry_file.store / archive_name(version), endpoint, version, profile, record)
        management.register(version, profile)
    else:
        # Workers that TorchServe has given up come back only when their number is changed.
        management.scale(version, 0)
        management.scale(version, profile.workers)
    wait_ready(management, version, profile.workers, log, time.monotonic() + profile.startup_timeout_s)


def _take(archive: Path, endpoint: Endpoint, version: str, profile: Profile, record: VersionRecord) -> None:
    """Copy the archive that was registered to where the server loads from, with its profile in it.

    A copy that the server has from before is not taken in its place: it carries a profile, so its digest cannot be held
    against the registry's, and the next start would need the archive in the store all the same.
    """
    endpoint.store.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=endpoint.store) as scratch:
        copy = Path(scratch, archive.name)
        try:
            copy_archive(archive, copy)
        except ArtifactError as error:
            raise ArtifactError(
                f"{archive.parent}/{error}; build it again, which makes the same bytes, put the one "
                f"with {record.digest} back, or `carla-policy retire {version}`"
            ) from None
        if file_digest(copy) != record.digest:
            raise ArtifactError(
                f"{archive}: has changed since {version} was registered; put {record.digest} back, or "
                f"`carla-policy retire {version}`"
            )
        configure(copy, profile, record.digest)
        copy.replace(endpoint.store / archive.name)


def _recovers(management: Management, served: ServedVersion, version: str, profile: Profile) -> bool:
    """Whether a version has all its workers, or gets them back by itself."""
    deadline = time.monotonic() + RECOVERY_S
    found: ServedVersion | None = served
    while found is not None and found.ready_workers < profile.workers and time.monotonic() < deadline:
        if found.min_workers != profile.workers:
            management.scale(version, profile.workers)
        time.sleep(0.1)
        found = management.version(version)
    return found is not None and found.ready_workers >= profile.workers
