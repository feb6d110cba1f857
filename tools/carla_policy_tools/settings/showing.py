"""What `config show` tells: settings and their sources, profiles of versions, and how a running server differs."""

from __future__ import annotations

from typing import Any

import requests

from carla_policy.errors import ArtifactError
from carla_policy_tools.configuration import load_profile, profile_file
from carla_policy_tools.lifecycle.declaring import DEFAULT_PROFILE
from carla_policy_tools.lifecycle.endpoint import Endpoint, find_server
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.lifecycle.status import read_status
from carla_policy_tools.settings.comparing import differences
from carla_policy_tools.settings.model import ABOUT, NAMES, variables_of
from carla_policy_tools.settings.resolving import DEFAULT, Resolved, option_of


def describe(resolved: Resolved) -> dict[str, Any]:
    """Everything as one JSON object. `ArtifactError` or `ValueError` for a registry or profile that cannot be read."""
    values = resolved.settings.model_dump(mode="json")
    registry_file = RegistryFile.of(resolved.settings.store, resolved.settings.registry)
    server = find_server(registry_file)
    return {
        "deployment": resolved.deployment,
        "file": str(resolved.file),
        "settings": {
            name: {
                "value": values[name],
                "source": resolved.sources[name],
                "option": option_of(name),
                "variables": list(variables_of(name)),
                "restart": ABOUT[name].restart,
            }
            for name in NAMES
        },
        "profiles": _profiles(resolved, registry_file),
        "registry": str(registry_file.path),
        "server": _server(server, registry_file) if server else None,
    }


def _profiles(resolved: Resolved, registry_file: RegistryFile) -> dict[str, Any]:
    """What each registered version is served with, and as `new versions` what others would be."""
    named = {version: (known.profile, "registry") for version, known in registry_file.read().versions.items()}
    first, source = resolved.settings.profile or DEFAULT_PROFILE, resolved.sources["profile"]
    if source == option_of("profile"):
        named = dict.fromkeys(named, (first, source))
    workers = resolved.settings.workers
    shown = {}
    for version, (name, said) in {**named, "new versions": (first, source)}.items():
        file = str(profile_file(name))
        values = load_profile(name).with_workers(workers).model_dump(mode="json")
        shown[version] = {
            "profile": name,
            "said_by": said,
            "file": file,
            "values": values,
            "sources": dict.fromkeys(values, file) | ({"workers": resolved.sources["workers"]} if workers else {}),
        }
    return shown


def _server(server: Endpoint, registry_file: RegistryFile) -> dict[str, Any]:
    try:
        drift = read_status(registry_file).drift
    except (requests.RequestException, RegistryError, ArtifactError) as error:
        drift = [str(error)]
    return {
        "state": server.state,
        "pid": server.pid,
        "deployment": server.deployment,
        "settings": {
            name: {"value": value, "source": server.sources.get(name, DEFAULT)}
            for name, value in server.settings.items()
        },
        "differences": [found.to_json() for found in differences(server)],
        "drift": drift,
    }
