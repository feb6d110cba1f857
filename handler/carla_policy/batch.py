"""Requests as a front end hands them over, and a batch of them on its way to answers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from carla_policy.answers import Outcome
from carla_policy.errors import InternalFailure, RequestError
from carla_policy.prediction import Prediction
from carla_policy.resources import Resource

logger = logging.getLogger(__name__)

INTERVENTIONS, OOD_OBSERVATIONS = COUNTERS = ("policy_interventions_total", "policy_ood_observations_total")


class Request(NamedTuple):
    """One request as a front end hands it over; `resource` is the path behind the version, empty for a prediction."""

    body: bytes | bytearray
    headers: Mapping[str, str] = MappingProxyType({})
    """By name in lower case."""
    repeated: frozenset[str] = frozenset()
    """Names of headers that came in several spellings, of which `headers` has one."""
    resource: str = ""
    request_id: str = ""


@dataclass(frozen=True)
class Batch:
    """Requests on their way: each `item` becomes, stage by stage, an outcome, a resource's content or an error.

    `stage_ms` holds the milliseconds of each stage so far; the stages do not overlap.
    """

    requests: Sequence[Request]
    items: Sequence[Prediction | Resource | Outcome | Mapping[str, Any] | RequestError]
    started: float
    stage_ms: Mapping[str, float]

    def counts(self) -> Counter[tuple[str, str]]:
        """By counter and kind: actions that the safety envelope changed, and observations unlike training."""
        counts: Counter[tuple[str, str]] = Counter()
        for item in self.items:
            if isinstance(item, Outcome):
                counts.update((INTERVENTIONS, note.kind) for note in item.decision.interventions)
                if item.novelty is not None and item.novelty.is_ood.any():
                    counts[OOD_OBSERVATIONS, ""] += int(item.novelty.is_ood.sum())
        return counts


def guarded(step: Callable[..., Any], *arguments: Any) -> Any:
    """What `step` returns, or the error that its request is answered with; nothing else is raised."""
    try:
        return step(*arguments)
    except RequestError as error:
        return error
    except Exception:
        logger.exception("a request failed in %s", step.__name__)
        return InternalFailure("the service failed on this request; its log says why")
