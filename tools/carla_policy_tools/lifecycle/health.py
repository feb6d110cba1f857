"""Health that does not lie: TorchServe's own `/ping` is green while workers are dead and versions are missing."""

from __future__ import annotations

from dataclasses import dataclass

import requests

from carla_policy.errors import ArtifactError
from carla_policy_tools.lifecycle.endpoint import find_server
from carla_policy_tools.lifecycle.management import Management
from carla_policy_tools.lifecycle.promoting import golden_request
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.lifecycle.status import profiles_of

GOLDEN_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Health:
    """Green if there are no findings; `alive` says whether the server answers at all."""

    alive: bool
    findings: tuple[str, ...]

    @property
    def ready(self) -> bool:
        return not self.findings

    def to_json(self) -> dict[str, object]:
        return {"status": "ok" if self.ready else "failing", "alive": self.alive, "findings": list(self.findings)}


def check_health(registry_file: RegistryFile) -> Health:
    """Every declared version has all of its workers, the promoted one is the default and answers a golden request."""
    endpoint = find_server(registry_file)
    if endpoint is None:
        return Health(False, ("no server is running",))
    if endpoint.state != "ready":
        return Health(endpoint.state == "draining", (f"the server is {endpoint.state}",))
    try:
        with Management(endpoint.ports.url("management")) as management:
            served, default = management.versions(), management.default()
    except (requests.RequestException, RegistryError) as error:
        return Health(False, (f"the server does not answer: {error}",))
    try:
        registry = registry_file.read()
        profiles = profiles_of(registry)
    except (ArtifactError, ValueError) as error:
        return Health(True, (str(error),))
    findings = []
    for version, profile in profiles.items():
        ready = served[version].ready_workers if version in served else 0
        if ready < profile.workers:
            findings.append(f"{version}: {ready} of {profile.workers} workers ready")
    if default != registry.promoted:
        findings.append(f"{default} answers by default, but {registry.promoted} is promoted")
    if default is not None and default in served and served[default].ready_workers:
        problem = golden_request(endpoint.ports.url("inference"), default, GOLDEN_TIMEOUT_S)
        if problem:
            findings.append(f"{default}: {problem}")
    return Health(True, tuple(findings))
