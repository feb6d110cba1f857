"""W3C Trace Context and a client's own request id: read from headers, refused unless they are exactly as specified.

https://www.w3.org/TR/trace-context/: a `traceparent` is `version-trace_id-parent_id-flags` in lower-case hexadecimal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

TRACEPARENT, TRACESTATE, CLIENT_ID = "traceparent", "tracestate", "x-request-id"
ECHOED = {TRACEPARENT: TRACEPARENT, CLIENT_ID: "x-client-request-id"}
"""Request header to response header; TorchServe answers with an x-request-id of its own."""
SAMPLED = 0x01
MAX_STATE, MAX_STATE_MEMBERS = 512, 32

_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_KEY = r"([a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
_MEMBER = re.compile(rf"[ \t]*{_KEY}=(?P<value>[ -+\--<>-~]{{0,255}}[!-+\--<>-~])[ \t]*")
_SAFE_VALUE = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class TraceContext(NamedTuple):
    """Where a request belongs to: the trace, the caller's span in it, and what the caller decided."""

    trace_id: str
    parent_id: str
    flags: int
    state: str = ""
    """The `tracestate`, empty where there is none or a broken one."""

    @property
    def is_sampled(self) -> bool:
        return bool(self.flags & SAMPLED)


def parse(headers: Mapping[str, str]) -> TraceContext | None:
    """The context in headers by lower-case name; `None` for none, or one that the specification says to ignore.

    A version of the future may have more behind the flags, which are read as far as version 00 knows them.
    """
    text = headers.get(TRACEPARENT)
    found = _PARENT.fullmatch(text.strip(" \t")) if text and len(text) <= MAX_STATE else None
    if not found or (found[1] == "00" and found[5] is not None):
        return None
    state = headers.get(TRACESTATE, "")
    return TraceContext(found[2], found[3], int(found[4], 16), state if is_state(state) else "")


def is_state(text: str) -> bool:
    """Whether `text` is a list of vendors' values as the specification has it, each vendor once."""
    if len(text) > MAX_STATE:
        return False
    members = [_MEMBER.fullmatch(member) for member in text.split(",") if member.strip(" \t")]
    keys = [member[1] for member in members if member]
    return len(keys) == len(members) <= MAX_STATE_MEMBERS and len(set(keys)) == len(keys)


def trace_id(headers: Mapping[str, str]) -> str | None:
    context = parse(headers)
    return context.trace_id if context else None


def echoed_id(headers: Mapping[str, str]) -> str | None:
    """A client's own `x-request-id`, if it is short and plain enough to be repeated."""
    return echoed(headers).get(ECHOED[CLIENT_ID])


def echoed(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers of an answer that repeat the request's own, where those are short and plain."""
    return {
        ECHOED[name]: headers[name] for name in ECHOED.keys() & headers.keys() if _SAFE_VALUE.fullmatch(headers[name])
    }
