"""What `registry.json` holds: the declared versions and the history that led to them.

The history is append-only and complete: read from its beginning, it gives the declared state. A file in which the two
disagree is refused, so that an edit by hand cannot pass unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import AwareDatetime, Field, model_validator
from typing_extensions import Self

from carla_policy.errors import ArtifactError
from carla_policy.version import version_key
from carla_policy_tools.lifecycle.events import Digest, Event, Percent, Record, Verb, Version, now, operator
from carla_policy_tools.lifecycle.history import Declared, check_shares


class VersionRecord(Record):
    """A version that is to be served."""

    digest: Digest
    git_sha: str
    built: AwareDatetime
    registered: AwareDatetime
    registered_by: str
    promoted: AwareDatetime | None = None
    """The last time."""
    profile: str
    """Name of a profile, or path of its file: what a version is started with."""


class Registry(Record):
    """The declared truth: which versions are to be served, which is promoted, how traffic is split, and why."""

    format: Literal[1] = 1
    promoted: Version | None = None
    split: dict[Version, Percent] | None = None
    versions: dict[Version, VersionRecord] = Field(default_factory=dict)
    history: tuple[Event, ...] = ()

    @model_validator(mode="after")
    def _is_what_the_history_says(self) -> Self:
        if [event.sequence for event in self.history] != list(range(1, len(self.history) + 1)):
            raise ValueError("history: expected the sequence numbers 1, 2, 3, ... without a gap")
        check_shares(self.split)
        declared = self.declared()
        told = {version: record.digest for version, record in self.versions.items()}
        if declared.digests != told:
            raise ValueError(f"versions: the history declares {_names(declared.digests)}, here are {_names(told)}")
        if declared.profiles != {version: record.profile for version, record in self.versions.items()}:
            raise ValueError(f"versions: the history gives them the profiles {declared.profiles}")
        for version, record in self.versions.items():
            event = declared.registered[version]
            when = (event.at, event.by, declared.promoted_at.get(version))
            if (record.registered, record.registered_by, record.promoted) != when:
                raise ValueError(
                    f"versions.{version}: the history says that {event.by} registered it at {event.at}, and that it "
                    f"was promoted at {declared.promoted_at.get(version, 'no time')}"
                )
        if declared.promoted != self.promoted:
            raise ValueError(f"promoted: the history says {declared.promoted}, here is {self.promoted}")
        if declared.shares != self.split:
            raise ValueError(f"split: the history says {declared.shares}, here is {self.split}")
        if self.versions and self.promoted is None:
            raise ValueError("promoted: expected one of the versions, got none")
        return self

    def declared(self) -> Declared:
        """The state that the history leads to."""
        state = Declared()
        for event in self.history:
            state.apply(event)
        return state

    def check_content(self, version: str, digest: str) -> None:
        """`ArtifactError` if `version` was ever registered, retired since or not, with an archive of other content."""
        known = self.declared().contents.get(version, digest)
        if known != digest:
            raise ArtifactError(
                f"{version}: was registered before with other content: expected {known}, got {digest}; a version never "
                "changes: put that archive back, or give the artifact a new version"
            )

    @property
    def sequence(self) -> int:
        """Number of the last change."""
        return len(self.history)

    def rollback_target(self) -> str | None:
        """The version that was promoted before the present one and is still registered."""
        promotions = self.declared().promotions
        return promotions[-2] if len(promotions) > 1 else None

    def after(self, *events: Event, records: Mapping[str, VersionRecord] | None = None) -> Registry:
        """This registry with `events` appended; `records` of the versions that they register."""
        state = self.declared()
        known = {**self.versions, **(records or {})}
        for event in events:
            state.apply(event)
            if event.verb in ("promote", "rollback") and event.version:
                known[event.version] = known[event.version].model_copy(update={"promoted": event.at})
        return Registry(
            promoted=state.promoted,
            split=state.shares,
            versions={
                version: known[version].model_copy(update={"profile": state.profiles[version]})
                for version in sorted(state.digests, key=version_key)
            },
            history=(*self.history, *events),
        )

    def event(self, verb: Verb, version: str | None = None, *, reason: str = "", offset: int = 1, **more: Any) -> Event:
        """The next event of this registry, or the one `offset` later, done now by whoever runs this."""
        return Event(
            sequence=self.sequence + offset,
            at=now(),
            by=operator(),
            verb=verb,
            version=version,
            previous=self.promoted,
            reason=reason,
            **more,
        )


def _names(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{version} ({digest[:19]})" for version, digest in versions.items()) or "none"
