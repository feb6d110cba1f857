"""What is declared against what runs: `status` shows the difference, `reconciling` mends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from carla_policy.digests import file_digest
from carla_policy_tools.configuration import Profile, load_profile
from carla_policy_tools.lifecycle.endpoint import Endpoint, find_server
from carla_policy_tools.lifecycle.intents import Intent, under_way
from carla_policy_tools.lifecycle.management import Management, ServedVersion
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryFile
from carla_policy_tools.paths import archive_name, archived_versions, sorted_versions


@dataclass(frozen=True)
class Status:
    """A registry, its server if one runs, and how they differ."""

    registry: Registry
    endpoint: Endpoint | None
    served: dict[str, ServedVersion]
    default: str | None
    changes: list[Intent]
    """Under way at this moment."""
    drift: list[str]
    """Each difference between declared and actual, in words; none is good."""
    unregistered: list[str]
    """Versions that only the store has."""

    def to_json(self) -> dict[str, object]:
        registry, endpoint = self.registry, self.endpoint
        return {
            "promoted": registry.promoted,
            "split": registry.split,
            "server": endpoint.model_dump(mode="json") if endpoint else None,
            "default": self.default,
            "versions": self.versions(),
            "unregistered": self.unregistered,
            "under_way": [vars(change) for change in self.changes],
            "drift": self.drift,
            "sequence": registry.sequence,
        }

    def versions(self) -> dict[str, dict[str, Any]]:
        """Every version that is declared or served: its record, if there is one, and what it does."""
        shown = {}
        for version in sorted_versions({*self.registry.versions, *self.served}):
            record, served = self.registry.versions.get(version), self.served.get(version)
            shown[version] = {
                **(record.model_dump(mode="json") if record else {}),
                "declared": record is not None,
                "workers": [vars(worker) for worker in served.workers] if served else [],
                "ready": served is not None and served.ready,
                "queued": served.queued if served else 0,
            }
        return shown


@dataclass(frozen=True)
class Observation:
    """A registry and what its ready server does, seen at one moment: no change was recorded in between."""

    registry: Registry
    served: dict[str, ServedVersion]
    default: str | None
    changing: frozenset[str]
    """Versions that somebody is changing right now, for which declared and actual may differ."""
    workers: int | None = None
    """That the server's settings say, in place of profiles."""

    def drift(self) -> list[str]:
        """Each difference between declared and actual, in words. `ValueError` for a profile that is gone."""
        drift = []
        for version, profile in profiles_of(self.registry, self.workers).items():
            actual = self.served.get(version)
            if version in self.changing:
                continue
            if actual is None:
                drift.append(f"{version}: declared, but not on the server")
            elif actual.ready_workers < profile.workers:
                drift.append(f"{version}: {actual.ready_workers} of {profile.workers} workers ready")
            elif (actual.batch_size, actual.max_batch_delay_ms) != (profile.batch_size, profile.max_batch_delay_ms):
                drift.append(
                    f"{version}: batches of {actual.batch_size} within {actual.max_batch_delay_ms} ms, where its "
                    f"profile says {profile.batch_size} within {profile.max_batch_delay_ms} ms"
                )
        for version in sorted_versions(self.served.keys() - self.registry.versions.keys() - self.changing):
            drift.append(f"{version}: on the server, but not declared")
        if self.default != self.registry.promoted and not {self.default, self.registry.promoted} & self.changing:
            drift.append(f"{self.default} answers by default, but {self.registry.promoted} is promoted")
        return drift


def observe(registry_file: RegistryFile, management: Management, workers: int | None = None) -> Observation:
    """Look until nothing was recorded during a look, so that a change is seen before or after, never half.

    `workers` is what the server's settings say, in place of profiles.
    """
    while True:
        registry, before = registry_file.read(), _changing(registry_file)
        served, default = management.versions(), management.default()
        changing = before | _changing(registry_file)
        if registry_file.read().sequence == registry.sequence:
            return Observation(registry, served, default, changing, workers)


def read_status(registry_file: RegistryFile) -> Status:
    """Ask the registry, the store and the server."""
    endpoint = find_server(registry_file)
    if endpoint and endpoint.state == "ready":
        with endpoint.management() as management:
            seen = observe(registry_file, management, endpoint.workers)
        drift = seen.drift()
    else:
        seen, drift = Observation(registry_file.read(), {}, None, frozenset()), []
    return Status(
        registry=seen.registry,
        endpoint=endpoint,
        served=seen.served,
        default=seen.default,
        changes=under_way(registry_file),
        drift=_archive_drift(registry_file, seen.registry) + drift,
        unregistered=[v for v in archived_versions(registry_file.store) if v not in seen.registry.versions],
    )


def profiles_of(registry: Registry, workers: int | None = None) -> dict[str, Profile]:
    """What each declared version is to be started with; `ValueError` for a profile that is gone.

    `workers` is what the server's settings say, in place of profiles.
    """
    return {
        version: load_profile(record.profile).with_workers(workers) for version, record in registry.versions.items()
    }


def _changing(registry_file: RegistryFile) -> frozenset[str]:
    return frozenset(change.version for change in under_way(registry_file) if change.is_change)


def _archive_drift(registry_file: RegistryFile, registry: Registry) -> list[str]:
    drift = []
    for version, record in registry.versions.items():
        archive = registry_file.store / archive_name(version)
        try:
            changed = file_digest(archive) != record.digest
        except FileNotFoundError:
            drift.append(f"{version}: {archive} is missing")
        except OSError as error:
            drift.append(f"{version}: {archive} cannot be read: {error.strerror}; put {record.digest} back")
        else:
            if changed:
                drift.append(f"{version}: {archive} has changed since it was registered; put {record.digest} back")
    return drift
