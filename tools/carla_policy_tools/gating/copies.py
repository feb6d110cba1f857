"""Copies of served versions on the running server, under a name that nobody asks: they have no metrics.

What a gate asks is not what vehicles ask, and would stand in the metrics and alerts of the version otherwise. So it
asks workers of its own, loaded from the very archives that the server serves; whoever drives with the version waits for
none of its requests. A server that is frozen cannot load any: there the versions themselves are asked, and it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import requests

from carla_policy_tools.configuration import load_profile
from carla_policy_tools.lifecycle.endpoint import Endpoint
from carla_policy_tools.lifecycle.intents import GATE, intent
from carla_policy_tools.lifecycle.registering import load
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.urls import prediction_url

NOBODY = "nobody"
COPIES, THEMSELVES = "copies of them that have no metrics", "themselves; their metrics count the gate's requests"


@dataclass(frozen=True)
class Asked:
    """Where the versions answer, and which of `COPIES` and `THEMSELVES` that is."""

    urls: dict[str, str]
    what: str


@contextmanager
def asked(
    registry_file: RegistryFile,
    endpoint: Endpoint,
    versions: Sequence[str],
    on_step: Callable[[str], None],
    themselves: bool = False,
) -> Iterator[Asked]:
    """Load a copy of each of `versions`, which are registered, for as long as the block lasts.

    All have the name of a candidate of the first; `RegistryError` if another gate drives that one. What a killed gate
    leaves, the server removes.
    """
    base = endpoint.ports.url("inference")
    if themselves or endpoint.frozen:
        yield Asked({version: prediction_url(base, version) for version in versions}, THEMSELVES)
        return
    registry = registry_file.read()
    with ExitStack() as stack:
        management = stack.enter_context(endpoint.management())
        stack.enter_context(intent(registry_file, GATE, versions[0]))
        copies = stack.enter_context(management.candidate(versions[0]))
        copies.clear()
        try:
            for version in versions:
                on_step(f"loading a copy of {version}")
                profile = load_profile(registry.versions[version].profile).model_copy(update={"workers": 1})
                load(copies, endpoint, version, profile)
            yield Asked({version: prediction_url(base, version, copies.model) for version in versions}, COPIES)
        finally:
            with suppress(requests.RequestException, RegistryError):
                copies.clear()
