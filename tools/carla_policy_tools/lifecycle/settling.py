"""Take back what a killed command had begun, so that the server is again what the registry declares."""

from __future__ import annotations

from carla_policy_tools.lifecycle.events import Event, Verb
from carla_policy_tools.lifecycle.intents import interrupted
from carla_policy_tools.lifecycle.management import Management
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.lifecycle.registry import RegistryFile


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
        if not intents:
            return registry
        events: list[Event] = []
        served = management.versions() if management else None
        for begun in intents:
            version = begun.version
            declared = version in registry.versions
            verb: Verb = "undo"
            if management and served is not None:
                with management.candidate(version) as candidate:
                    candidate.unregister(version)
                if version in served and not declared:
                    _make_promoted(management, registry)
                    management.unregister(version)
                elif declared and version not in served and begun.verb == "retire":
                    verb = "retire"
                _make_promoted(management, registry)
            events.append(registry.event(verb, version, offset=len(events) + 1, reason=f"interrupted: {begun}"))
        registry = registry.after(*events)
        registry_file.write(registry)
    return registry


def _make_promoted(management: Management, registry: Registry) -> None:
    if registry.promoted and management.default() != registry.promoted:
        management.set_default(registry.promoted)
