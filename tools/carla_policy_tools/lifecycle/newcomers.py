"""Versions that a registry does not have yet, and how they come to stand in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from carla_policy_tools.lifecycle.events import Event
from carla_policy_tools.lifecycle.records import Registry, VersionRecord
from carla_policy_tools.paths import archive_name


@dataclass(frozen=True)
class Newcomer:
    """A version that is to be recorded: digest of its archive, git SHA of its training code, profile."""

    version: str
    digest: str
    git_sha: str
    profile: str


def record(
    registry: Registry, newcomers: Sequence[Newcomer], store: Path, reason: str, promote: str | None = None
) -> Registry:
    """`registry` with versions registered, and one of them promoted where that is asked for."""
    events: list[Event] = []
    records = {}
    for offset, newcomer in enumerate(newcomers, start=1):
        version, digest, profile = newcomer.version, newcomer.digest, newcomer.profile
        event = registry.event("register", version, offset=offset, reason=reason, digest=digest, profile=profile)
        events.append(event)
        records[version] = VersionRecord(
            digest=digest,
            git_sha=newcomer.git_sha,
            built=datetime.fromtimestamp((store / archive_name(version)).stat().st_mtime, timezone.utc),
            registered=event.at,
            registered_by=event.by,
            profile=profile,
        )
    if promote:
        events.append(registry.event("promote", promote, offset=len(events) + 1, reason=reason))
    return registry.after(*events, records=records)
