"""Requests as a front end hands them over, and a batch of them on its way to answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from carla_policy.answers import Outcome
from carla_policy.errors import BatchTooLarge, InternalFailure, RequestError
from carla_policy.policy import Evaluation
from carla_policy.prediction import Prediction
from carla_policy.resources import Resource

STAGES = ("parse", "preprocess", "infer", "decide")
"""That a batch goes through, in this order, before its answers are encoded."""


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
    evaluations: Sequence[Evaluation] = ()
    """What the policy made of the predictions that it was asked."""


@dataclass
class Work:
    """What the passes for one batch took and gave so far."""

    stage_ms: dict[str, float] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)


def error_type(item: Outcome | RequestError) -> str:
    """The type of the error that `item` was answered with; an outcome is refused only when its answer is too large."""
    return item.type if isinstance(item, RequestError) else BatchTooLarge.type


def guarded(step: Callable[..., Any], *arguments: Any) -> Any:
    """What `step` returns, or the error that its request is answered with; nothing else is raised."""
    try:
        return step(*arguments)
    except RequestError as error:
        return error
    except Exception as error:
        failure = InternalFailure("the service failed on this request; its log says why")
        failure.__cause__ = error
        return failure
