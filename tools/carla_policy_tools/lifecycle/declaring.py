"""What a server is to start with: what the registry declares, and what its command line adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from carla_policy.errors import ArtifactError
from carla_policy.version import parse_version, version_key
from carla_policy_tools.configuration import Profile, load_profile, profile_source
from carla_policy_tools.lifecycle.newcomers import Newcomer, record
from carla_policy_tools.lifecycle.records import Registry
from carla_policy_tools.paths import archived_versions

DEFAULT_PROFILE = "realtime"


@dataclass(frozen=True)
class Declaration:
    """Versions with their profiles, the promoted one among them, and which of them are not in the registry yet."""

    profiles: dict[str, str]
    promoted: str
    digests: dict[str, str]
    """Of the archives that were registered before: others are refused under their names."""
    newcomers: tuple[str, ...]
    sequence: int
    """Of the registry that was looked at."""
    notices: tuple[str, ...]
    """What somebody who typed the command might not expect."""

    def settings(self, workers: int | None = None) -> dict[str, Profile]:
        """The profile of each version; `workers`, if given, in place of what it says."""
        return {version: load_profile(name).with_workers(workers) for version, name in self.profiles.items()}


def declare(
    registry: Registry,
    store: Path,
    versions: Sequence[str] = (),
    promote: str | None = None,
    profile: str | None = None,
    newcomers_profile: str | None = None,
) -> Declaration:
    """The registry rules; where it is empty, `versions` (default: all in the store) and `promote` (the newest) do.

    Versions that are named later join those in the registry. `profile` is for all versions, if given, else
    `newcomers_profile` for those that are not in the registry. Raises `ValueError` for a version that is not in the
    store.
    """
    available = archived_versions(store)
    if not available and not registry.versions:
        raise ValueError(
            f"{store}: there are no archives to serve; build one with `carla-policy build artifacts/<version>`"
        )
    named = sorted({parse_version(version) for version in versions}, key=version_key)
    wanted = parse_version(promote) if promote else None
    chosen = profile_source(profile) if profile else None
    first = chosen or (profile_source(newcomers_profile) if newcomers_profile else DEFAULT_PROFILE)
    if registry.versions:
        declared = _join(registry, store, available, named, wanted, chosen, first)
        return replace(declared, notices=(*declared.notices, *_other_profiles(registry, chosen, newcomers_profile)))
    named = named or available
    promoted = wanted or named[-1]
    _check_available(store, [*named, promoted], available)
    if promoted not in named:
        raise ValueError(f"{promoted} is to be promoted, but only {', '.join(named)} are to be served")
    return Declaration(dict.fromkeys(named, first), promoted, {}, tuple(named), 0, ())


def _join(
    registry: Registry,
    store: Path,
    available: list[str],
    named: list[str],
    wanted: str | None,
    chosen: str | None,
    first: str,
) -> Declaration:
    retired = {event.version for event in registry.history if event.verb == "retire"}
    notices = []
    newcomers = []
    for version in named:
        if version in registry.versions:
            continue
        if version in retired:
            notices.append(f"{version} was retired and is not served; `carla-policy register {version}` brings it back")
        else:
            newcomers.append(version)
    _check_available(store, newcomers, available)
    if wanted and wanted != registry.promoted:
        notices.append(
            f"the registry says that {registry.promoted} is promoted; `carla-policy promote {wanted}` changes it"
        )
    others = [version for version in registry.versions if named and version not in named]
    if others:
        notices.append(
            f"{', '.join(others)}: served too, since the registry declares it; `carla-policy retire` ends that"
        )
    notices += [
        f"{version} is in the store, but not registered; `carla-policy register {version}` does that"
        for version in available
        if version not in {*registry.versions, *newcomers, *retired}
    ]
    assert registry.promoted is not None
    return Declaration(
        profiles={
            **{version: chosen or known.profile for version, known in registry.versions.items()},
            **dict.fromkeys(newcomers, first),
        },
        promoted=registry.promoted,
        digests={version: known.digest for version, known in registry.versions.items()},
        newcomers=tuple(newcomers),
        sequence=registry.sequence,
        notices=tuple(notices),
    )


def _other_profiles(registry: Registry, chosen: str | None, first: str | None) -> list[str]:
    """What to say where the registry's profiles stay, though the deployment names another."""
    if chosen or first is None:
        return []
    others = [version for version, known in registry.versions.items() if known.profile != profile_source(first)]
    return [
        f"{version} keeps the profile {registry.versions[version].profile} of the registry; "
        f"`carla-policy serve --profile {first}` changes that for all versions"
        for version in others
    ]


def recorded(
    registry: Registry, declaration: Declaration, digests: dict[str, str], git_shas: dict[str, str], store: Path
) -> Registry:
    """`registry` after a start: newcomers registered, other profiles noted, and a first version promoted."""
    changed = registry
    for version, known in registry.versions.items():
        if declaration.profiles[version] != known.profile:
            event = changed.event("configure", version, profile=declaration.profiles[version], reason="serve --profile")
            changed = changed.after(event)
    newcomers = [
        Newcomer(version, digests[version], git_shas[version], declaration.profiles[version])
        for version in declaration.newcomers
    ]
    reason = "declared at the start"
    first = None if changed.promoted else declaration.promoted
    return record(changed, newcomers, store, reason, promote=first) if newcomers else changed


def _check_available(store: Path, versions: Sequence[str], available: Sequence[str]) -> None:
    for version in versions:
        if version not in available:
            raise ArtifactError(f"{store}: has no {version}, only {', '.join(available)}")
