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
