"""`carla-policy retire`: a version leaves the server after it has answered everything that it was asked."""

from __future__ import annotations

from carla_policy_tools.lifecycle.draining import drain
from carla_policy_tools.lifecycle.endpoint import check_not_frozen, find_server
from carla_policy_tools.lifecycle.intents import intent
from carla_policy_tools.lifecycle.promoting import check_registered
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.lifecycle.settling import settle
from carla_policy_tools.paths import archive_name

DRAIN_TIMEOUT_S = 30.0


def retire(
    registry_file: RegistryFile,
    version: str,
    *,
    reason: str = "",
    force: bool = False,
    timeout_s: float = DRAIN_TIMEOUT_S,
) -> Registry:
    """Drain and unregister a version that is neither promoted nor part of a split; its archive stays in the store.

    `RegistryError` if clients still ask it by name or it does not finish its work within `timeout_s`; with `force` it
    goes nevertheless, and requests may be lost.
    """
    endpoint = find_server(registry_file)
    if endpoint is None or endpoint.state != "ready":
        settle(registry_file, None)
        with intent(registry_file, "retire", version), registry_file.locked() as registry:
            return _record(registry_file, registry, version, reason)
    check_not_frozen(endpoint, version)
    with endpoint.management() as management:
        check_can_retire(settle(registry_file, management), version)
        with intent(registry_file, "retire", version):
            if not force:
                drain(management, endpoint.ports.url("metrics"), version, timeout_s)
            with registry_file.locked() as registry:
                check_can_retire(registry, version)
                management.unregister(version)
                (endpoint.store / archive_name(version)).unlink(missing_ok=True)
                return _record(registry_file, registry, version, reason)


def check_can_retire(registry: Registry, version: str) -> None:
    """`RegistryError` for a version that is in use."""
    check_registered(registry, version)
    if version == registry.promoted:
        raise RegistryError(f"{version}: is promoted; promote another version, or roll back, before it is retired")
    if version in (registry.split or {}):
        raise RegistryError(
            f"{version}: has {(registry.split or {})[version]} % of the traffic; change the split first"
        )


def _record(registry_file: RegistryFile, registry: Registry, version: str, reason: str) -> Registry:
    check_can_retire(registry, version)
    changed = registry.after(registry.event("retire", version, reason=reason))
    registry_file.write(changed)
    return changed
