"""What a client has counted: where its actions came from, why not from the policy, and how long they took."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import asdict, dataclass
from typing import Any, Mapping, Sequence

from carla_policy_client.actions import POLICY, SOURCES, Action
from carla_policy_client.misses import REASONS, Miss

_KEPT = 4096
_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))


@dataclass(frozen=True)
class Statistics:
    """Counted since the client was made."""

    steps: int
    """Calls of `act` and `act_many`."""
    by_source: Mapping[str, int]
    """Steps whose action was the policy's, a fallback, an override."""
    by_reason: Mapping[str, int]
    """Fallbacks by reason; all reasons are there."""
    refusals: Mapping[str, int]
    """Fallbacks by the status and type that the server answered with, such as `422 SHAPE`."""
    interventions: Mapping[str, int]
    """The policy's actions by what the server's safety envelope changed."""
    versions: Mapping[str, int]
    """The policy's actions by version."""
    latency_s: Mapping[str, float]
    """p50, p90, p99 and max of the policy's last 4,096 actions; empty before the first."""
    slowest_s: float
    """The longest that any step took."""
    connects: int
    retries: int
    """Requests sent again because the server had just closed the idle connection."""
    state_losses: int
    """Times that a recurrent policy had to begin anew within an episode."""
    circuit: str
    circuit_opened: int
    episodes_reported: int
    episodes_dropped: int

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, strings and dictionaries, as JSON takes them."""
        return asdict(self)


class Counts:
    """Counts steps; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps = 0
        self._by_source = Counter(dict.fromkeys(SOURCES, 0))
        self._by_reason = Counter(dict.fromkeys(REASONS, 0))
        self._refusals: Counter[str] = Counter()
        self._interventions: Counter[str] = Counter()
        self._versions: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=_KEPT)
        self._slowest_s = 0.0
        self.retries = 0
        self.state_losses = 0
        self.episodes_reported = 0
        self.episodes_dropped = 0

    def step(self, actions: Sequence[Action], miss: Miss | None = None) -> None:
        """Count a step, whose actions have one source."""
        first = actions[0]
        with self._lock:
            self._steps += 1
            self._by_source[first.source] += 1
            self._slowest_s = max(self._slowest_s, first.latency_s)
            if miss is not None:
                self._by_reason[miss.reason] += 1
                if miss.kind:
                    self._refusals[miss.kind] += 1
            elif first.source == POLICY:
                self._latencies.append(first.latency_s)
                self._versions[first.version] += 1
                for action in actions:
                    self._interventions.update(action.interventions)

    def snapshot(self, **others: Any) -> Statistics:
        """What has been counted, with what `others` counted."""
        with self._lock:
            return Statistics(
                steps=self._steps,
                by_source=dict(self._by_source),
                by_reason=dict(self._by_reason),
                refusals=dict(self._refusals),
                interventions=dict(self._interventions),
                versions=dict(self._versions),
                latency_s=_quantiles(sorted(self._latencies)),
                slowest_s=self._slowest_s,
                retries=self.retries,
                state_losses=self.state_losses,
                episodes_reported=self.episodes_reported,
                episodes_dropped=self.episodes_dropped,
                **others,
            )


def _quantiles(latencies: list[float]) -> dict[str, float]:
    last = len(latencies) - 1
    return {name: latencies[round(share * last)] for name, share in _QUANTILES} if latencies else {}
