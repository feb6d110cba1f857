"""Asking a service in this process, as TorchServe's handler does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from carla_policy.answers import Answer
from carla_policy.batch import Request
from carla_policy.service import PolicyService

JSON = {"content-type": "application/json"}


def answer_all(service: PolicyService, bodies: Sequence[bytes], headers: Mapping[str, str] = JSON) -> list[Answer]:
    """The answers to `bodies` in one batch."""
    requests = [Request(body, headers=headers, request_id=str(n)) for n, body in enumerate(bodies)]
    return service.encode(service.infer(service.parse(requests)))


def told(answer: Answer) -> tuple[int, str | None]:
    """Status and type of error; the body's own `code` must be the status."""
    if answer.status == 200:
        return 200, None
    content = json.loads(answer.body)
    assert content["code"] == answer.status
    return answer.status, content["type"]


def actions(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return json.loads(answer.body)["actions"]


def shown(body: bytes) -> str:
    """A body in a failure's message."""
    return f"{body[:60]!r}... ({len(body)} bytes)" if len(body) > 60 else repr(body)
