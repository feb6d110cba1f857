"""`config check`: deployments, profiles and variables looked through before a server is started with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from carla_policy.errors import ArtifactError
from carla_policy_tools.configuration import load_profile, profile_names
from carla_policy_tools.settings.effects import check_device
from carla_policy_tools.settings.notices import exposure
from carla_policy_tools.settings.resolving import resolve
from carla_policy_tools.settings.sources import deployment_names


def findings(deployments: Sequence[str], environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """What was looked at, `ok`, `note` or `wrong`, and why; of all deployments and profiles unless some are named."""
    for name in deployments or deployment_names():
        subject = f"deployment {name}"
        try:
            resolved = resolve(name, environment=environment)
            if resolved.settings.profile:
                load_profile(resolved.settings.profile)
            check_device(resolved.settings.device, resolved.sources["device"])
        except (ValueError, ArtifactError, OSError) as error:
            yield subject, "wrong", str(error)
            continue
        yield subject, "ok", str(resolved.file)
        for notice in exposure(resolved.settings):
            yield subject, "note", notice
    for name in () if deployments else profile_names():
        try:
            load_profile(name)
        except (ValueError, ArtifactError, OSError) as error:
            yield f"profile {name}", "wrong", str(error)
        else:
            yield f"profile {name}", "ok", ""
