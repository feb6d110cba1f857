"""Health that does not lie: TorchServe's own `/ping` is green while workers are dead and versions are missing."""

from __future__ import annotations

from dataclasses import dataclass, field

import requests

from carla_policy.errors import ArtifactError
from carla_policy_tools.lifecycle.endpoint import find_server
from carla_policy_tools.lifecycle.promoting import golden_request
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.lifecycle.status import Observation, observe

GOLDEN_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Health:
    """Green if there are no findings; `alive` says whether the server answers at all."""

    alive: bool
    findings: tuple[str, ...]
    seen: Observation | None = field(default=None, compare=False)
    """Registry and server at that moment, if the server could be asked."""

    @property
    def ready(self) -> bool:
        return not self.findings

    def to_json(self) -> dict[str, object]:
        return {"status": "ok" if self.ready else "failing", "alive": self.alive, "findings": list(self.findings)}


def check_health(registry_file: RegistryFile) -> Health:
    """Every declared version has all of its workers, the promoted one is the default and answers a golden request."""
    try:
        endpoint = find_server(registry_file)
    except RegistryError as error:
        return Health(False, (str(error),))
    if endpoint is None:
        return Health(False, ("no server is running",))
    if endpoint.state != "ready":
        return Health(endpoint.state == "draining", (f"the server is {endpoint.state}",))
    try:
        with endpoint.management() as management:
            seen = observe(registry_file, management, endpoint.workers)
    except (requests.RequestException, RegistryError) as error:
        return Health(False, (f"the server does not answer: {error}",))
    except ArtifactError as error:
        return Health(True, (str(error),))
    try:
        findings = seen.drift()
    except ValueError as error:
        findings = [str(error)]
    default = seen.default
    if default in seen.served and seen.served[default].ready_workers:
        problem = golden_request(endpoint, default, GOLDEN_TIMEOUT_S)
        if problem:
            findings.append(f"{default}: {problem}")
    return Health(True, tuple(findings), seen)
