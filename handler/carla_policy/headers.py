"""Request headers as a front end hands them over: their names in any case, so that one may be there twice.

TorchServe keeps a header for each spelling of its name, and of equal spellings the last one. What is there in two
spellings is refused where it decides about the answer: whoever looked at the request before, such as a proxy, may
have believed the other one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from carla_policy.errors import InvalidOption, UnsupportedMediaType

_OF_THE_BODY = ("content-type", "content-encoding")
_OPTION_PREFIX, _OPTIONS = "x-policy-", ("x-request-start",)


def by_lower_case(received: Mapping[str, Any]) -> tuple[dict[str, str], frozenset[str]]:
    """Headers by name in lower case, and the names of those that came in several spellings.

    A parameter's own headers, which TorchServe mixes in, are left out.
    """
    named = [(name.lower(), value) for name, value in received.items() if isinstance(value, str)]
    headers = dict(named)
    if len(headers) == len(named):
        return headers, frozenset()
    counts = Counter(name for name, _ in named)
    return headers, frozenset(name for name, count in counts.items() if count > 1)


def refuse_repeated(names: Collection[str]) -> None:
    """`UnsupportedMediaType` or `InvalidOption` if a header that a prediction depends on is among the repeated."""
    for name in sorted(names):
        message = "expected once, got several in different spellings; send one"
        if name in _OF_THE_BODY:
            raise UnsupportedMediaType(f"{name}: {message}")
        if name.startswith(_OPTION_PREFIX) or name in _OPTIONS:
            raise InvalidOption.at(ascii(name)[1:-1][:80], message, "repeated")
