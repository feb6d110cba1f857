"""What an answer must look like; nothing here trusts the serving code."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

LOW, HIGH = (0.0, 0.0, -1.0), (1.0, 1.0, 1.0)
CONTROLS = ("throttle", "brake", "steer")
LATE = "deadline"
"""The kind of intervention of an answer that came without the policy's own action, for want of time."""


class WrongAnswer(ValueError):
    """An answer that is not what its request must be answered with."""


class Reply(NamedTuple):
    """An answer over HTTP; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


def check_actions(reply: Reply, *, rows: int, versions: Collection[str], recurrent: bool) -> dict[str, Any]:
    """The JSON answer to `rows` observations of one of `versions`, asked for the deterministic action."""
    answer = _document(_good(reply, versions))
    actions = answer.get("actions")
    try:
        controls = np.array([[action[name] for name in CONTROLS] for action in actions or ()], np.float64)
    except (KeyError, TypeError, ValueError):
        raise WrongAnswer(f"actions: expected throttle, brake and steer of each, got {_short(actions)}") from None
    _check_controls(controls, rows)
    if answer.get("version") != reply.headers.get("x-policy-version"):
        raise WrongAnswer(f"version: the header says another one than the body, {_short(answer.get('version'))}")
    if answer.get("deterministic") is not True:
        raise WrongAnswer(f"deterministic: expected true, got {_short(answer.get('deterministic'))}")
    if recurrent != isinstance(answer.get("state"), str):
        raise WrongAnswer(f"state: expected {'one' if recurrent else 'none'}, got {_short(answer.get('state'))}")
    if any(note["kind"] == LATE for note in answer.get("interventions", ())):
        raise WrongAnswer("the deadline passed, and the safe action came instead of the policy's own")
    return answer


def check_array(reply: Reply, *, rows: int, versions: Collection[str]) -> None:
    """The `.npy` answer to `rows` observations of one of `versions`."""
    content = _good(reply, versions).content
    try:
        controls = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise WrongAnswer(f"expected a .npy file, got {_short(content)}") from None
    if controls.dtype != np.float32:
        raise WrongAnswer(f"expected an array of float32, got {controls.dtype}")
    _check_controls(controls, rows)


def check_refusal(reply: Reply, status: int, kind: str | None) -> None:
    """A refusal with this status and type; `None` is the front end's own, which has no body."""
    if reply.status != status:
        raise WrongAnswer(f"expected {status} {kind or ''}, got {told(reply)}")
    if kind is None:
        return
    error = _document(reply)
    if (error.get("code"), error.get("type")) != (status, kind):
        raise WrongAnswer(f"expected {status} {kind}, got {error.get('code')} {_short(error.get('type'))}")
    if not (error.get("message") and error.get("requestId") and isinstance(error.get("details"), list)):
        raise WrongAnswer("expected an error with message, details and requestId")


def told(reply: Reply) -> str:
    """Status and type of an answer, which many answers share."""
    try:
        return f"{reply.status} {_document(reply).get('type', '')}".strip()
    except WrongAnswer:
        return str(reply.status)


def _good(reply: Reply, versions: Collection[str]) -> Reply:
    if reply.status != 200:
        raise WrongAnswer(f"expected 200, got {told(reply)}")
    version = reply.headers.get("x-policy-version")
    if version not in versions:
        raise WrongAnswer(f"version: expected {' or '.join(sorted(versions))}, got {_short(version)}")
    return reply


def _document(reply: Reply) -> dict[str, Any]:
    try:
        document = json.loads(reply.content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise WrongAnswer(f"expected a JSON object, got {_short(reply.content)}")
    return document


def _check_controls(controls: Any, rows: int) -> None:
    if controls.shape != (rows, len(CONTROLS)):
        raise WrongAnswer(f"expected {rows} actions, got an array {list(controls.shape)}")
    if not np.isfinite(controls).all():
        raise WrongAnswer("an action is not finite")
    if ((controls < LOW) | (controls > HIGH)).any():
        raise WrongAnswer("an action is out of range: throttle and brake lie in [0, 1], steer in [-1, 1]")


def _short(value: object) -> str:
    return f"{value!a:.60}"
