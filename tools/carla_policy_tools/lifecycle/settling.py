"""Take back what a killed command had begun, so that the server is again what the registry declares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from carla_policy_tools.lifecycle.events import Event, Verb
from carla_policy_tools.lifecycle.intents import GATE, Intent, interrupted
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryFile

if TYPE_CHECKING:
    from carla_policy_tools.lifecycle.management import Management


def settle(registry_file: RegistryFile, management: Management | None) -> Registry:
    """The registry, after what was interrupted has been taken back. Every change of versions begins with this."""
    with registry_file.locked() as registry:
        return _settle(registry_file, registry, management)


def _settle(registry_file: RegistryFile, registry: Registry, management: Management | None) -> Registry:
    """Undo interrupted changes, on the server if there is one, and note them in the history.

    A version whose registration was interrupted is unregistered, an unrecorded promotion is reversed. Only where a
    version has already been unregistered, its retirement is recorded instead: nobody can ask it any more.
    """
    with interrupted(registry_file) as intents:
        events: list[Event] = []
        for begun in intents:
            verb = _take_back(management, registry, begun) if management else "undo"
            if not _holds(registry, begun):
                reason = f"interrupted: {begun}"
                events.append(registry.event(verb, begun.version, offset=len(events) + 1, reason=reason))
        if events:
            registry = registry.after(*events)
            registry_file.write(registry)
    return registry


def _holds(registry: Registry, begun: Intent) -> bool:
    """Whether the registry is as after the change: its command was killed when all was done, or changes no more."""
    declared, promoted = begun.version in registry.versions, registry.promoted == begun.version
    done = {"register": declared, "retire": not declared, "promote": promoted, "rollback": promoted}
    return done.get(begun.verb, begun.verb in ("split", "reconcile", "resize", GATE))


def _take_back(management: Management, registry: Registry, begun: Intent) -> Verb:
    """Make the server what is declared, as far as one change goes; what that comes to in the history."""
    version = begun.version
    declared, served = version in registry.versions, management.versions()
    with management.candidate(version) as candidate:
        if not begun.is_change:
            candidate.clear()
            return "undo"
        candidate.unregister(version)
    if registry.promoted in served and management.default() != registry.promoted:
        management.set_default(registry.promoted)
    if version in served and not declared:
        management.unregister(version)
    return "retire" if declared and version not in served and begun.verb == "retire" else "undo"
