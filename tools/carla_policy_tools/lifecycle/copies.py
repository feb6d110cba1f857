"""What a server loads: its own copies of the archives, each checked as a copy, with its profile in it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from carla_policy.errors import ArtifactError
from carla_policy_tools.archive import copy_archive, with_config
from carla_policy_tools.configuration import Profile
from carla_policy_tools.keys import load_public_keys
from carla_policy_tools.lifecycle.declaring import Declaration
from carla_policy_tools.paths import archive_name, naming
from carla_policy_tools.signing import check_archive


def take_copies(
    declaration: Declaration, settings: Mapping[str, Profile], store: Path, copies: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """Copy the archives to where the server loads from, each checked as a copy; digests and git SHAs by version.

    A copy then gets its profile's time-outs and limits, see `Profile.model_config_yaml`.
    """
    digests, git_shas = {}, {}
    for version, profile in settings.items():
        archive = store / archive_name(version)
        copy = copies / archive.name
        with naming(archive), tempfile.TemporaryDirectory(prefix="carla-policy-check-") as scratch:
            try:
                copy_archive(archive, copy)
            except ArtifactError as error:
                raise ArtifactError(f"{error}; build it again, or `carla-policy retire {version}`") from None
            checked = check_archive(copy, Path(scratch), load_public_keys(profile.trusted_keys), archive)
            digests[version], git_shas[version] = checked.digest, checked.card.git_sha
            registered = declaration.digests.get(version, digests[version])
            if digests[version] != registered:
                raise ArtifactError(
                    f"{archive}: has changed since {version} was registered: expected {registered}, got "
                    f"{digests[version]}; put that archive back, or `carla-policy retire {version}`"
                )
            copy.write_bytes(with_config(Path(scratch), profile.model_config_yaml()))
    return digests, git_shas
