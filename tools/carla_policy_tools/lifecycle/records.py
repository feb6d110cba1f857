"""What `registry.json` holds: the declared versions and the history that led to them.

The history is append-only and complete: read from its beginning, it gives the declared state. A file in which the two
disagree is refused, so that an edit by hand cannot pass unnoticed.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from carla_policy.version import check_version, version_key

Version = Annotated[str, AfterValidator(check_version)]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Percent = Annotated[int, Field(ge=1, le=100)]
Verb = Literal["register", "configure", "promote", "rollback", "retire", "split", "undo"]
MAX_REASON = 1_000


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Event(_Record):
    """One change, as it was finished.

    `configure` gives a version another profile; `undo` notes that a change was interrupted and taken back.
    """

    sequence: Annotated[int, Field(ge=1)]
    at: AwareDatetime
    by: str
    verb: Verb
    version: Version | None = None
    previous: Version | None = None
    """The version that was promoted before."""
    shares: dict[Version, Percent] | None = None
    """Percent of the traffic by version, where a split began; none where it ended."""
    digest: Digest | None = None
    """Of the archive that was registered."""
    profile: str | None = None
    """Under which a version was registered or configured."""
    reason: Annotated[str, Field(max_length=MAX_REASON)] = ""


class VersionRecord(_Record):
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


@dataclass
class Declared:
    """What a history amounts to."""

    digests: dict[str, str] = field(default_factory=dict)
    profiles: dict[str, str] = field(default_factory=dict)
    registered: dict[str, Event] = field(default_factory=dict)
    promoted_at: dict[str, datetime] = field(default_factory=dict)
    promotions: list[str] = field(default_factory=list)
    """Promoted versions, the present one last; a rollback takes back the last one."""
    shares: dict[str, int] | None = None

    @property
    def promoted(self) -> str | None:
        return self.promotions[-1] if self.promotions else None

    def apply(self, event: Event) -> None:
        """Follow one event; `ValueError` if it could not have happened then."""
        version = event.version or ""
        if event.previous != self.promoted:
            raise ValueError(
                f"event {event.sequence}: says that {event.previous} was promoted before, the history {self.promoted}"
            )
        if event.verb in ("configure", "promote", "rollback", "retire") and version not in self.digests:
            raise ValueError(
                f"event {event.sequence}: {event.verb} of {version or 'no version'}, which is not registered"
            )
        if event.verb == "register":
            if version in self.digests or not version or event.digest is None or event.profile is None:
                raise ValueError(f"event {event.sequence}: registers {version} twice, or without digest or profile")
            self.digests[version], self.profiles[version] = event.digest, event.profile
            self.registered[version] = event
        elif event.verb == "configure":
            if event.profile is None:
                raise ValueError(f"event {event.sequence}: configures {version} without a profile")
            self.profiles[version] = event.profile
        elif event.verb == "promote":
            self._promote(version)
            self.promoted_at[version] = event.at
        elif event.verb == "rollback":
            self.promoted_at[version] = event.at
            earlier = self.promotions[:-1]
            if version in earlier:
                del self.promotions[len(earlier) - earlier[::-1].index(version) :]
                self.shares = None
            else:
                self._promote(version)
        elif event.verb == "retire":
            if version == self.promoted or version in (self.shares or {}):
                raise ValueError(f"event {event.sequence}: retires {version} while it is promoted or in the split")
            del self.digests[version], self.profiles[version], self.registered[version]
            self.promoted_at.pop(version, None)
            self.promotions = _without(self.promotions, version)
        elif event.verb == "split":
            check_shares(event.shares)
            if event.shares is not None and not event.shares.keys() <= self.digests.keys():
                raise ValueError(f"event {event.sequence}: splits the traffic among versions that are not registered")
            self.shares = event.shares

    def _promote(self, version: str) -> None:
        if version != self.promoted:
            self.promotions.append(version)
        self.shares = None


class Registry(_Record):
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


def check_shares(shares: Mapping[str, int] | None) -> None:
    """`ValueError` unless the shares of a split add up to 100 percent."""
    if shares is not None and sum(shares.values()) != 100:
        listed = ", ".join(f"{version}={share}" for version, share in shares.items())
        raise ValueError(f"split: expected shares that add up to 100, got {listed}")


def operator() -> str:
    """Who changes something: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def now() -> datetime:
    return datetime.now(UTC)


def _without(promotions: Sequence[str], version: str) -> list[str]:
    """`promotions` with `version` taken out; what then stands beside itself counts once."""
    kept: list[str] = []
    for promoted in promotions:
        if promoted != version and (not kept or kept[-1] != promoted):
            kept.append(promoted)
    return kept


def _names(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{version} ({digest[:19]})" for version, digest in versions.items()) or "none"
