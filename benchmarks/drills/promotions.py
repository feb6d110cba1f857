"""Which version may have answered a request that named none: those that were promoted while it was under way."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.drills.rig import Outcome
from benchmarks.load import Sent


class Promotions:
    """Promotions and rollbacks as their commands saw them.

    Within a command nobody outside knows which version is promoted. So a version counts as promoted from the start of
    the command that made it so until the end of the command that replaced it.
    """

    def __init__(self, version: str) -> None:
        self._spans: list[tuple[str, float, float]] = [(version, -math.inf, math.inf)]

    @property
    def promoted(self) -> str:
        return self._spans[-1][0]

    def add(self, version: str, outcome: Outcome) -> None:
        """The command of `outcome` has made `version` the promoted one."""
        before, start, _ = self._spans[-1]
        self._spans[-1] = (before, start, outcome.ended)
        self._spans.append((version, outcome.started, math.inf))

    def allowed(self, record: Sent) -> set[str]:
        """The versions that were promoted at some moment between the request's sending and its answer."""
        return {version for version, start, end in self._spans if start <= record.ended and record.sent <= end}

    def strangers(self, sent: Sequence[Sent]) -> list[Sent]:
        """Answered requests whose version was not promoted then."""
        return [record for record in sent if not record.lost and record.version not in self.allowed(record)]
