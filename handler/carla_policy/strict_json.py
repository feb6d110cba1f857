"""JSON as RFC 8259 has it and no more, for bodies whose sender may be mistaken or mean harm.

Python's own reader also takes NaN, `1e999`, a key twice, half a surrogate pair, a byte order mark and UTF-16; some
readers take the first of two equal keys, some the last. What two programs may read differently is refused here.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from carla_policy.errors import DuplicateKey, InvalidEncoding, InvalidJson

MAX_DEPTH = 32
"""Levels of arrays and objects; a request has four."""

_ESCAPE = re.compile(r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}|u([0-9a-fA-F]{4})|.)")
"""One escape sequence, or the two that make up a surrogate pair."""


def parse(body: bytes | bytearray) -> Any:
    """The one document in `body`; `InvalidEncoding`, `InvalidJson` or `DuplicateKey` says what is wrong with it.

    What a document is at all comes first, so a body with several faults is answered by the most basic one.
    """
    text = _decode(bytes(body))
    repeated: list[str] = []

    def to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs) and not repeated:
            repeated.append(Counter(key for key, _ in pairs).most_common(1)[0][0])
        return found

    try:
        document = json.loads(text, object_pairs_hook=to_object, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        reason = str(error).split(";")[0]  # Python's advice on how it could be made to accept more
        raise InvalidJson(f"body: not a JSON document: {reason}") from None
    _check_depth(document)
    _check_surrogates(text)
    if repeated:
        raise DuplicateKey(f"body: the key {repeated[0]!r:.80} is twice in one object; send it once")
    return document


def _decode(body: bytes) -> str:
    if body.startswith(b"\xef\xbb\xbf"):
        raise InvalidEncoding("body: starts with a byte order mark; send UTF-8 without one")
    encoding = json.detect_encoding(body)
    if encoding != "utf-8":
        raise InvalidEncoding(f"body: expected UTF-8, got what looks like {encoding}; send JSON encoded in UTF-8")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidEncoding(f"body: not UTF-8 at byte {error.start}; send JSON encoded in UTF-8") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number:.40} is beyond what a float64 holds")
    return value


def _check_depth(document: Any) -> None:
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, list | dict)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, list | dict)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> InvalidJson:
    return InvalidJson(f"body: nested deeper than {MAX_DEPTH} levels; a request has 4")


def _check_surrogates(text: str) -> None:
    if "\\u" not in text:
        return
    for escape in _ESCAPE.finditer(text):
        if escape[2] and "d800" <= escape[2].lower() <= "dfff":
            raise InvalidEncoding(f"body: \\u{escape[2]} at character {escape.start()} is half a surrogate pair")
