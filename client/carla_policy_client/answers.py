"""From an HTTP answer to actions that may be executed, or to the reason why not.

Believed is only what fits the request: its id came back, there is an action for each observation, every control is a
finite number in range, and version, mode and seed are those that were asked for.
"""

from __future__ import annotations

import json
from typing import Any, Mapping, NamedTuple, Sequence

from carla_policy_client.actions import CONTROLS, checked_control
from carla_policy_client.http11 import Response
from carla_policy_client.misses import INVALID, LATE, REFUSED, UNAVAILABLE, Miss

ID_HEADER, ECHO_HEADER, VERSION_HEADER = "x-request-id", "x-client-request-id", "x-policy-version"
_MAX_TEXT, _MAX_DIGITS, _MAX_RETRY_S = 300, 20, 60.0
_BYTES_PER_ANSWER, _BYTES_PER_ACTION = 65536, 1024


class Asked(NamedTuple):
    """What an answer has to fit."""

    rows: int
    deterministic: bool
    seed: int | None
    version: str | None
    request_id: str

    @property
    def max_body_bytes(self) -> int:
        return _BYTES_PER_ANSWER + _BYTES_PER_ACTION * self.rows


class Answer(NamedTuple):
    """`controls` and `interventions` have an entry for each observation; `state` is a recurrent policy's."""

    controls: Sequence[tuple[float, float, float]]
    interventions: Sequence[tuple[str, ...]]
    version: str
    seed: int | None
    state: str | None


def read(response: Response, asked: Asked) -> Answer:
    """The answer in `response`; raises `Miss`."""
    echo = response.headers.get(ECHO_HEADER)
    if echo is not None and echo != asked.request_id:
        raise _invalid(f"{ECHO_HEADER} is {echo!r:.80}, of another request than {asked.request_id}")
    if response.status != 200:
        raise refusal(response)
    if echo is None:
        raise _invalid(f"no header {ECHO_HEADER}, so whose answer it is nobody knows")
    content = _parse(response)
    try:
        return _read(content, response.headers, asked)
    except (KeyError, TypeError, ValueError) as error:
        text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise _invalid(text) from None


def refusal(response: Response) -> Miss:
    """What an answer with a status other than 200 says."""
    status, kind, message = response.status, "", ""
    try:
        content = _parse(response)
        kind, message = _text(content.get("type")), _text(content.get("message"))
    except Miss:
        pass
    words = (f"{status} {kind}").strip()
    said = f"{words}: {message}" if message else words
    if status < 400:
        return _invalid(f"status {said}, which is not followed")
    if status < 500 and status not in (408, 429):
        return Miss(REFUSED, said, kind=words)
    reason = LATE if kind == "DEADLINE_EXCEEDED" else UNAVAILABLE
    return Miss(reason, said, retry_after_s=_retry_after_s(response.headers), kind=words)


def _read(content: Mapping[str, Any], headers: Mapping[str, str], asked: Asked) -> Answer:
    actions = content["actions"]
    if not isinstance(actions, list) or len(actions) != asked.rows:
        got = f"{len(actions)}" if isinstance(actions, list) else f"{actions!r:.40}"
        raise ValueError(f"actions: expected {asked.rows}, got {got}")
    version = content["version"]
    if not isinstance(version, str) or version != headers.get(VERSION_HEADER, version):
        raise ValueError(f"version: {version!r:.40}, but header says {headers.get(VERSION_HEADER)!r:.40}")
    if asked.version not in (None, version):
        raise ValueError(f"version: expected {asked.version}, got {version!r:.40}")
    if content["deterministic"] is not asked.deterministic:
        raise ValueError(f"deterministic: expected {asked.deterministic}, got {content['deterministic']!r:.40}")
    state = content.get("state")
    if not isinstance(state, (str, type(None))):
        raise TypeError(f"state: expected a string, got {state!r:.40}")
    return Answer(
        controls=[_controls(action) for action in actions],
        interventions=_interventions(content.get("interventions", []), asked.rows),
        version=version,
        seed=None if asked.deterministic else _seed(content["seed"], asked.seed),
        state=state,
    )


def _controls(action: Any) -> tuple[float, float, float]:
    if not isinstance(action, dict):
        raise TypeError(f"actions: expected objects, got {action!r:.40}")
    throttle, brake, steer = [checked_control(name, action[name], low, high) for name, low, high in CONTROLS]
    return throttle, brake, steer


def _interventions(notes: Any, rows: int) -> Sequence[tuple[str, ...]]:
    kinds: list[tuple[str, ...]] = [()] * rows
    for note in notes:
        row, kind = note["observation"], note["kind"]
        if not _is_int(row) or not 0 <= row < rows or not isinstance(kind, str):
            raise ValueError(f"interventions: {note!r:.80} is none")
        kinds[row] += (kind[:_MAX_TEXT],)
    return kinds


def _seed(seed: Any, wanted: int | None) -> int:
    if not _is_int(seed) or wanted not in (None, seed):
        raise ValueError(f"seed: expected {'an integer' if wanted is None else wanted}, got {seed!r:.40}")
    found: int = seed
    return found


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _parse(response: Response) -> dict[str, Any]:
    form = response.headers.get("content-type", "").split(";")[0].strip().lower()
    if form != "application/json" or "content-encoding" in response.headers:
        raise _invalid(f"content-type {form!r:.60} instead of plain application/json")
    try:
        content = json.loads(
            response.body.decode("utf-8"), parse_constant=_no_number, parse_int=_short_int, object_pairs_hook=_unique
        )
    except (ValueError, RecursionError) as error:
        raise _invalid(f"no JSON: {str(error)[:100]}") from None
    if not isinstance(content, dict):
        raise _invalid(f"no JSON object: {content!r:.40}")
    return content


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _short_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key is there twice")
    return content


def _text(value: Any) -> str:
    """What a server says, short and on one line."""
    text = value[:_MAX_TEXT] if isinstance(value, str) else ""
    return "".join([character if character.isprintable() else " " for character in text])


def _retry_after_s(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    return min(float(text), _MAX_RETRY_S) if text.isdigit() and text.isascii() and len(text) < 7 else 0.0


def _invalid(what: str) -> Miss:
    return Miss(INVALID, f"not an answer: {what}")
