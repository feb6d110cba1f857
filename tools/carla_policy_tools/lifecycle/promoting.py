"""`carla-policy promote` and `rollback`: which version answers where none is named."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import requests

from carla_policy_tools.lifecycle.endpoint import Endpoint, find_server, require_server
from carla_policy_tools.lifecycle.events import GateResult, Verb
from carla_policy_tools.lifecycle.intents import intent
from carla_policy_tools.lifecycle.management import Management
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.lifecycle.settling import settle
from carla_policy_tools.urls import local_session, prediction_url

PATIENCE_S = 5.0
"""How long to wait for another operator's change of the same version."""

GOLDEN_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class PassedGate:
    """A gate that a version has passed, and what of the registry that holds for: `digests` of what was driven."""

    result: GateResult
    digests: Mapping[str, str]
    promoted: str | None

    def check(self, registry: Registry) -> None:
        """`RegistryError` if `registry` is no longer the one that the gate was driven for."""
        if registry.promoted != self.promoted:
            raise RegistryError(
                f"{registry.promoted} was promoted while the gate compared with {self.promoted}; nothing has changed: "
                "drive the gate again"
            )
        for version, digest in self.digests.items():
            record = registry.versions.get(version)
            if record is None or record.digest != digest:
                now = record.digest[:19] if record else "not registered"
                raise RegistryError(
                    f"{version}: is {now}, the gate drove {digest[:19]}; nothing has changed: drive the gate again"
                )


def promote(registry_file: RegistryFile, version: str, *, reason: str = "", gate: PassedGate | None = None) -> Registry:
    """Make a registered version that is ready, and answers a golden observation, the one that answers by default.

    Ends a split. `RegistryError` says what stands against it, also that the registry has changed since the `gate`;
    nothing has changed then.
    """
    endpoint = require_server(registry_file)
    with endpoint.management() as management:
        check_registered(registry_file.read(), version)
        check_answers(management, endpoint, version)
        return _switch(registry_file, management, "promote", version, reason, gate)


def rollback(registry_file: RegistryFile, to: str | None = None, *, reason: str = "") -> Registry:
    """Make the previously promoted version, or `to`, the promoted one again, whatever state the present one is in.

    Ends a split. Without a running server the registry alone is changed, so that the next start obeys it.
    """
    endpoint = find_server(registry_file)
    if endpoint is None or endpoint.state != "ready":
        return _switch(registry_file, None, "rollback", to, reason)
    with endpoint.management() as management:
        return _switch(registry_file, management, "rollback", to, reason)


def _switch(
    registry_file: RegistryFile,
    management: Management | None,
    verb: Verb,
    version: str | None,
    reason: str,
    gate: PassedGate | None = None,
) -> Registry:
    settled = settle(registry_file, management)
    target = version or _previous(settled)
    with intent(registry_file, verb, target, patience_s=PATIENCE_S), registry_file.locked() as registry:
        check_registered(registry, target)
        if gate:
            gate.check(registry)
        if version is None and _previous(registry) != target:
            raise RegistryError("another operator was faster; look at `carla-policy status`, then try again")
        served = management.version(target) if management else None
        if management and (served is None or served.ready_workers == 0):
            raise RegistryError(f"{target}: has no worker that could answer; choose another version with --to")
        before = management.default() if management else None
        if registry.promoted == target == (before or target) and registry.split is None:
            return registry
        try:
            if management:
                management.set_default(target)
            changed = registry.after(registry.event(verb, target, reason=reason, gate=gate.result if gate else None))
            registry_file.write(changed)
        except BaseException:
            if management and before:
                with suppress(requests.RequestException, RegistryError):
                    management.set_default(before)
            raise
    return changed


def check_registered(registry: Registry, version: str) -> None:
    """`RegistryError` unless `version` is registered."""
    if version not in registry.versions:
        known = ", ".join(registry.versions) or "none"
        raise RegistryError(f"{version}: not registered (registered: {known}); `carla-policy register {version}` first")


def check_answers(management: Management, endpoint: Endpoint, version: str) -> None:
    """`RegistryError` unless every worker of `version` is READY and it answers a golden observation now."""
    served = management.version(version)
    if served is None or not served.ready:
        state = ", ".join(worker.status for worker in served.workers) or "none" if served else "not on the server"
        raise RegistryError(f"{version}: expected all of its workers READY, got: {state}; see `carla-policy status`")
    found = golden_request(endpoint, version, GOLDEN_TIMEOUT_S)
    if found is not None:
        raise RegistryError(f"{version}: {found}")


def golden_request(endpoint: Endpoint, version: str, timeout_s: float) -> str | None:
    """What is wrong with the answer to a golden observation, which a worker compares with its golden action."""
    started = time.monotonic()
    url = f"{prediction_url(endpoint.ports.url('inference'), version)}/healthz"
    with local_session(endpoint.auth("inference")) as session:
        try:
            answer = session.get(url, timeout=timeout_s)
        except requests.RequestException:
            return f"a golden observation got no answer within {time.monotonic() - started:.1f} s"
    return None if answer.ok else f"a golden observation was answered {answer.status_code}: {answer.text[:200]}"


def _previous(registry: Registry) -> str:
    target = registry.rollback_target()
    if target is None:
        raise RegistryError("no version was promoted before this one; name one with --to")
    return target
