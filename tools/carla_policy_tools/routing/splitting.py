"""`carla-policy split`: declare which share of the traffic each version gets."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from carla_policy_tools.lifecycle.endpoint import find_server
from carla_policy_tools.lifecycle.intents import intent
from carla_policy_tools.lifecycle.promoting import PATIENCE_S, check_answers, check_registered, rollback
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.routing.following import IN_FORCE_TIMEOUT_S, find_proxy, wait_until
from carla_policy_tools.routing.routes import Routes


def split(registry_file: RegistryFile, shares: Mapping[str, int] | None, *, reason: str = "") -> Registry:
    """Declare `shares` in percent by version, or the end of a split for none.

    `ValueError` for shares that do not add up; `RegistryError` for a version that is not registered, or that does not
    answer a golden observation where a server runs.
    """
    taking_part = {version: share for version, share in shares.items() if share} if shares is not None else None
    with ExitStack() as stack:
        for version in sorted(taking_part or {}):
            stack.enter_context(intent(registry_file, "split", version, patience_s=PATIENCE_S))
        registry = registry_file.read()
        if registry.promoted is None:
            raise RegistryError(f"{registry_file.path}: no version is promoted; start a server first")
        Routes(registry.promoted, shares)
        for version in shares or {}:
            check_registered(registry, version)
        endpoint = find_server(registry_file)
        if endpoint and endpoint.state == "ready":
            with endpoint.management() as management:
                for version in taking_part or {}:
                    check_answers(management, endpoint, version)
        with registry_file.locked() as registry:
            return _declare(registry_file, registry, taking_part, reason)


def take_out(registry_file: RegistryFile, canary: str, baseline: str, *, reason: str) -> Registry:
    """End a canary: its share goes to `baseline`; if it is the promoted version, roll back to `baseline`.

    Nothing happens where it has no traffic any more.
    """
    with registry_file.locked() as registry:
        if registry.promoted != canary:
            if canary not in (registry.split or {}):
                return registry
            shares = dict(registry.split or {})
            shares[baseline] = shares.get(baseline, 0) + shares.pop(canary)
            only_promoted = shares.keys() == {registry.promoted}
            return _declare(registry_file, registry, None if only_promoted else shares, reason)
    return rollback(registry_file, baseline, reason=reason)


def wait_in_force(registry_file: RegistryFile, sequence: int) -> bool:
    """Whether a proxy does what the registry declared with change number `sequence`; False without a proxy.

    `RegistryError` if there is one that does not follow.
    """
    if find_proxy(registry_file) is None:
        return False
    if not wait_until(registry_file, lambda state: state.sequence >= sequence):
        raise RegistryError(
            f"declared, but the proxy has not followed within {IN_FORCE_TIMEOUT_S:g} s; look at its output"
        )
    return True


def _declare(
    registry_file: RegistryFile, registry: Registry, shares: Mapping[str, int] | None, reason: str
) -> Registry:
    if registry.split == shares:
        return registry
    changed = registry.after(registry.event("split", shares=shares, reason=reason))
    registry_file.write(changed)
    return changed
