"""Reports of driven episodes: what a policy earned, told by the clients that drove with it.

A server sees single observations; only who drives knows when an episode ends and what it was worth.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from carla_policy import strict_json
from carla_policy.errors import EmptyBody, SchemaMismatch, UnsupportedMediaType
from carla_policy.findings import refusal
from carla_policy.media import JSON_MEDIA_TYPE, media_type
from carla_policy.messages import EpisodeReport

RESOURCE = "episodes"
MAX_BODY_BYTES = 4_096
_REPORT = TypeAdapter(EpisodeReport)


def parse_report(body: bytes | bytearray, headers: Mapping[str, str]) -> EpisodeReport:
    """The report in `body`; a `RequestError` names what is wrong with it."""
    if media_type(headers) != JSON_MEDIA_TYPE:
        raise UnsupportedMediaType(f"content-type: a report is sent as {JSON_MEDIA_TYPE}")
    if not body.strip():
        raise EmptyBody("body: expected an object with 'return' and 'length', got nothing; POST the report as the body")
    if len(body) > MAX_BODY_BYTES:
        raise SchemaMismatch(f"body: a report has two numbers, got {len(body)} bytes")
    try:
        return _REPORT.validate_python(strict_json.parse(body))
    except ValidationError as error:
        raise refusal(error, lambda _: SchemaMismatch) from None
