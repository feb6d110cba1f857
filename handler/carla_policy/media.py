"""Which form a request's body is declared to have: JSON, or a `.npy` array."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from carla_policy.errors import UnsupportedMediaType

JSON_MEDIA_TYPE = "application/json"
NPY_MEDIA_TYPE = "application/x-npy"
_ADVICE = f"send the JSON body as it is, with the header 'Content-Type: {JSON_MEDIA_TYPE}'"


def media_type(headers: Mapping[str, str]) -> str:
    """The body's media type by its `headers` (names in lower case), JSON where none is declared.

    `UnsupportedMediaType` for any other; a compressed body is not inflated.
    """
    return _media_type(headers.get("content-type"), headers.get("content-encoding"))


@lru_cache(maxsize=64)
def _media_type(declared: str | None, encoding: str | None) -> str:
    if encoding and encoding.strip().lower() != "identity":
        raise UnsupportedMediaType(f"content-encoding: compressed bodies are not read; {_ADVICE}")
    kind, _, parameters = (declared or JSON_MEDIA_TYPE).lower().partition(";")
    kind, charset = kind.strip(), parameters.replace('"', "").replace(" ", "")
    if kind == NPY_MEDIA_TYPE:
        return NPY_MEDIA_TYPE
    if kind != JSON_MEDIA_TYPE or charset not in ("", "charset=utf-8"):
        raise UnsupportedMediaType(
            f"content-type: expected {JSON_MEDIA_TYPE} in UTF-8 or {NPY_MEDIA_TYPE}, got {declared!a:.80}; {_ADVICE}"
        )
    return JSON_MEDIA_TYPE
