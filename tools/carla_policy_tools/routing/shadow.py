"""How a shadow version would have driven: the same requests, asked of both versions, compared action by action.

The client is answered by its own version and never waits for any of this. The comparison asks that version again: the
same observation gets the same bits, so that is what the client got. Both are asked directly, past the proxy.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import requests
from requests.auth import AuthBase
from typing_extensions import Self

from carla_policy.heads import draw_seed
from carla_policy_tools.client import TIMEOUT_S
from carla_policy_tools.routing.mirror import Copy
from carla_policy_tools.urls import local_session, prediction_url

FIELDS = ("throttle", "brake", "steer")
MAX_DIFFERENCES = 1_000_000
"""Percentiles are of the last so many actions."""


@dataclass
class FieldDifference:
    """Absolute differences of one field of the action."""

    total: float = 0.0
    worst: float = 0.0
    worst_case: dict[str, Any] | None = None
    """The observation that the worst difference came from, and both actions; none while there is no difference."""
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_DIFFERENCES))

    def to_json(self, actions: int) -> dict[str, Any]:
        return {
            "mean": self.total / actions if actions else None,
            "p99": float(np.quantile(self.recent, 0.99)) if self.recent else None,
            "worst": self.worst if actions else None,
            "worst_case": self.worst_case,
        }


@dataclass
class Report:
    """What a shadow has come to so far."""

    shadow: str
    requests: int = 0
    """Compared; those that are not are counted below."""
    actions: int = 0
    equal_actions: int = 0
    """With the same bits in every field."""
    same_version: int = 0
    """Answered by the shadow version itself, as it has a share of the traffic."""
    not_comparable: int = 0
    """With the state of a recurrent policy, which is bound to its version."""
    too_large: int = 0
    dropped: int = 0
    refused_requests: int = 0
    """By the baseline, the shadow or both."""
    refused: dict[str, Counter[str]] = field(default_factory=lambda: {"baseline": Counter(), "shadow": Counter()})
    """By who refused, and by the error's type."""
    baselines: Counter[str] = field(default_factory=Counter)
    differences: dict[str, FieldDifference] = field(
        default_factory=lambda: {name: FieldDifference() for name in FIELDS}
    )

    @property
    def seen(self) -> int:
        """Copies that were looked at, compared or not."""
        return self.requests + self.refused_requests + self.same_version + self.not_comparable + self.too_large

    def add(self, request: dict[str, Any], baseline: list[dict[str, float]], shadow: list[dict[str, float]]) -> None:
        """Compare the actions of both for one request, in the order of its observations."""
        self.requests += 1
        self.actions += len(baseline)
        for row, (own, other) in enumerate(zip(baseline, shadow, strict=True)):
            self.equal_actions += own == other
            for name, found in self.differences.items():
                difference = abs(own[name] - other[name])
                found.total += difference
                found.recent.append(difference)
                if difference > found.worst:
                    found.worst = difference
                    found.worst_case = {
                        "observation": request["observations"][row],
                        "baseline": own,
                        "shadow": other,
                    }

    def to_json(self) -> dict[str, Any]:
        return {
            "shadow": self.shadow,
            "baselines": dict(self.baselines),
            "compared": self.requests,
            "actions": self.actions,
            "equal_actions": self.equal_actions,
            "same_version": self.same_version,
            "not_comparable": self.not_comparable,
            "too_large": self.too_large,
            "dropped": self.dropped,
            "refused_requests": self.refused_requests,
            "refused": {who: dict(types) for who, types in self.refused.items()},
            "differences": {name: found.to_json(self.actions) for name, found in self.differences.items()},
        }


class Comparison:
    """Asks both versions at the server at `base`, and keeps the report. Use as a context manager."""

    def __init__(self, base: str, shadow: str, auth: AuthBase | None = None) -> None:
        self.report = Report(shadow)
        self._base = base
        self._session = local_session(auth)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def add(self, copy: Copy) -> None:
        """Compare what both versions say to one copied request."""
        report = self.report
        if copy.body is None:
            report.too_large += 1
            return
        if copy.version == report.shadow:
            report.same_version += 1
            return
        request = _parse(copy.body)
        if request.get("state") is not None:
            report.not_comparable += 1
            return
        body = copy.body
        if request.get("deterministic") is False and request.get("seed") is None:
            request["seed"] = draw_seed()
            body = json.dumps(request).encode()
        baseline, shadow = self._ask("baseline", copy.version, body), self._ask("shadow", report.shadow, body)
        if baseline is None or shadow is None:
            report.refused_requests += 1
        else:
            report.baselines[copy.version] += 1
            report.add(request, baseline, shadow)

    def _ask(self, who: str, version: str, body: bytes) -> list[dict[str, float]] | None:
        """The actions, or none where the request is refused or not answered, which is counted."""
        headers = {"Content-Type": "application/json"}
        try:
            url = prediction_url(self._base, version)
            answer = self._session.post(url, data=body, headers=headers, timeout=TIMEOUT_S)
            content = answer.json()
            if answer.ok:
                actions: list[dict[str, float]] = content["actions"]
                return actions
            kind = str(content.get("type", answer.status_code))
        except requests.JSONDecodeError:
            kind = str(answer.status_code)
        except requests.RequestException as error:
            kind = type(error).__name__
        self.report.refused[who][kind] += 1
        return None


def _parse(body: bytes) -> dict[str, Any]:
    """The request, or nothing of one that the versions will refuse anyway."""
    try:
        request = json.loads(body)
    except ValueError:
        return {}
    return request if isinstance(request, dict) else {}
