"""What a history amounts to: read from its beginning, it gives the declared state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from carla_policy_tools.lifecycle.events import Event


@dataclass
class Declared:
    """What a history amounts to."""

    digests: dict[str, str] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    """Digests of all versions that ever were registered, also of those that were retired."""
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
            if self.contents.setdefault(version, event.digest) != event.digest:
                raise ValueError(f"event {event.sequence}: registers {version} with other content than before")
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


def check_shares(shares: Mapping[str, int] | None) -> None:
    """`ValueError` unless the shares of a split add up to 100 percent."""
    if shares is not None and sum(shares.values()) != 100:
        listed = ", ".join(f"{version}={share}" for version, share in shares.items())
        raise ValueError(f"split: expected shares that add up to 100, got {listed}")


def _without(promotions: Sequence[str], version: str) -> list[str]:
    """`promotions` with `version` taken out; what then stands beside itself counts once."""
    kept: list[str] = []
    for promoted in promotions:
        if promoted != version and (not kept or kept[-1] != promoted):
            kept.append(promoted)
    return kept
