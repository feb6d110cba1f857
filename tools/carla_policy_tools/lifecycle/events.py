"""What can happen to versions: the events of a history."""

from __future__ import annotations

import getpass
import os
import socket
from datetime import datetime, timezone
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from carla_policy.version import check_version

Version = Annotated[str, AfterValidator(check_version)]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Percent = Annotated[int, Field(ge=1, le=100)]
Verb = Literal["register", "configure", "promote", "rollback", "retire", "split", "undo"]
MAX_REASON = 1_000


class Record(BaseModel):
    """Part of a registry; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GateResult(Record):
    """What a gate compared before a promotion, which it allowed.

    In `environment`, named with its arguments, `episodes` episodes were driven, the first one with `seed`. Their
    `steps` had the same bits `in_process` (by whose inference) as through the server. Beside the version `against`, if
    there was one, returns differed by `difference` in the mean, from `bound` on at 95 %; `-margin` was allowed.
    """

    environment: str
    in_process: str
    seed: int
    episodes: int
    steps: int
    against: Version | None = None
    difference: float | None = None
    bound: float | None = None
    margin: float | None = None
    p: float | None = None
    failures: int | None = None
    """Episodes that ended in a collision or off the road."""
    other_failures: int | None = None

    def __str__(self) -> str:
        same = f"gate: {self.episodes} episodes in {self.environment}, {self.steps:,} steps with the same bits"
        if self.against is None or self.bound is None:
            return same
        return f"{same}; return {self.difference:+.4g} (from {self.bound:+.4g} on) against {self.against}"


class Event(Record):
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
    gate: GateResult | None = None
    """What a promotion was demanded by; none where it was not."""
    reason: Annotated[str, Field(max_length=MAX_REASON)] = ""


def operator() -> str:
    """Who changes something: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def now() -> datetime:
    return datetime.now(timezone.utc)
