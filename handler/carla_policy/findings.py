"""What is wrong with a JSON document, in words that name its fields as the sender knows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from carla_policy.errors import RequestError, SchemaMismatch
from carla_policy.prediction import listing

MAX_FINDINGS = 1_000
"""A body with more is refused without looking at each: that would take longer than reading it."""


def refusal(error: ValidationError, class_of: Callable[[ErrorDetails], type[RequestError]]) -> RequestError:
    """The answer to a document that does not fit its type; `class_of` the first finding decides its kind."""
    if error.error_count() > MAX_FINDINGS:
        return SchemaMismatch(f"body: {error.error_count()} fields do not fit a request; send observations and options")
    errors = error.errors(include_url=False)
    findings = [(_path(error["loc"]) or "body", _finding(error), error["type"]) for error in errors]
    return listing(class_of(errors[0]), findings, len(findings))


_KINDS = {"dict_type": "an object", "list_type": "an array"}
"""What JSON calls what pydantic names as Python does."""


def _path(loc: Sequence[int | str]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    path = path.removeprefix(".")[:200]
    return path if path.isprintable() else ascii(path)  # a client may call a field what it likes


def _finding(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return "this field is required, but missing"
    if error["type"] == "extra_forbidden":
        return "not a field of a request; remove it"
    wanted = _KINDS.get(error["type"]) or error["msg"].removeprefix("Input should be ")
    return f"expected {wanted}, got {_what(error['input'])}"


def _what(value: Any) -> str:
    kind = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kind.get(type(value), f"{value!r:.40}")
