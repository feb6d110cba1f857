"""Requests that must be refused, each with the status and the type that are documented for it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.locust_users.served import Served
from carla_policy.media import JSON_MEDIA_TYPE, NPY_MEDIA_TYPE
from carla_policy.wire import max_body_bytes
from carla_policy_tools.client import request_body

TOO_DEEP = 100_000
TOO_MANY_DIGITS = 5_000


@dataclass(frozen=True)
class Fault:
    """A request that `status` and `kind` must answer."""

    name: str
    status: int
    kind: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": JSON_MEDIA_TYPE})
    resource: str = ""
    """Behind the version in the path."""


def faults(served: Served, most_bytes: int = 1 << 24) -> list[Fault]:
    """Every fault that there is for the version; none is longer than `most_bytes`, which the server reads."""
    found = [*_documents(served), *_values(served), *_declared(served), *_arrays(served)]
    return [fault for fault in found if len(fault.body) <= most_bytes]


def _request(served: Served, **changes: Any) -> dict[str, Any]:
    return {**request_body(served.rows(1), episode_start=served.is_recurrent), **changes}


def _observing(served: Served, **changes: Any) -> bytes:
    (observation,) = request_body(served.rows(1))["observations"]
    return json.dumps(_request(served, observations=[{**observation, **changes}])).encode()


def _documents(served: Served) -> Iterator[Fault]:
    """Bodies that are no request's document."""
    good = json.dumps(_request(served)).encode()
    invalid = {
        "truncated": good[:-1],
        "two documents": good + good,
        "NaN": _observing(served, speed=float("nan")),
        "infinity": _observing(served, speed=float("inf")),
        "beyond float64": good.replace(b'"speed": ', b'"speed": 1e999, "x": ', 1),
        "too deep": b"[" * TOO_DEEP,
        "too many digits": b'{"seed": ' + b"9" * TOO_MANY_DIGITS + b"}",
        "single quotes": good.replace(b'"', b"'"),
        "trailing garbage": good + b" x",
    }
    for name, body in invalid.items():
        yield Fault(name, 400, "INVALID_JSON", body)
    for name, body in {
        "byte order mark": b"\xef\xbb\xbf" + good,
        "UTF-16": good.decode().encode("utf-16"),
        "invalid UTF-8": good[:-1] + b', "\xff": 1}',
        "lone surrogate": good[:-1] + rb', "\ud800": 1}',
    }.items():
        yield Fault(name, 400, "INVALID_ENCODING", body)
    for name, body in {
        "key twice": good[:-1] + b', "deterministic": false}',
        "key twice by an escape": good[:-1] + rb', "determinis\u0074ic": false}',
    }.items():
        yield Fault(name, 400, "DUPLICATE_KEY", body)
    yield Fault("whitespace", 400, "EMPTY_BODY", b" \n")
    yield Fault("larger than any request", 422, "BATCH_TOO_LARGE", b"[" * (max_body_bytes(served.card) + 1))


def _values(served: Served) -> Iterator[Fault]:
    """Documents whose fields are wrong."""
    (observation,) = request_body(served.rows(1))["observations"]
    speed = served.card.observation.fields[0]
    beyond = speed.high + max(1.0, abs(speed.high))
    for name, body in {
        "no object": [],
        "no observations": {"deterministic": True},
        "unknown field": _request(served, __proto__={}),
        "observations of null": _request(served, observations=None),
    }.items():
        yield Fault(name, 422, "SCHEMA", json.dumps(body).encode())
    yield Fault("number as text", 422, "SCHEMA", _observing(served, speed="1; DROP TABLE vehicles"))
    yield Fault("one sensor more", 422, "SHAPE", _observing(served, sensors=[*observation["sensors"], 0.0]))
    yield Fault("no row", 422, "SHAPE", json.dumps(_request(served, observations=[])).encode())
    yield Fault("out of bounds", 422, "OUT_OF_RANGE", _observing(served, speed=beyond))
    yield Fault("negative seed", 422, "INVALID_OPTION", json.dumps(_request(served, seed=-1)).encode())
    yield Fault("option as text", 422, "INVALID_OPTION", json.dumps(_request(served, deterministic="yes")).encode())
    state = _request(served, state="AAAA") | ({"episode_start": False} if served.is_recurrent else {})
    yield Fault("state of nobody", 422, "INVALID_STATE", json.dumps(state).encode())
    small = {"speed": 0, "steering": 0, "sensors": [0] * len(observation["sensors"])}
    many = _request(served, observations=[small] * (served.most_rows + 1))
    yield Fault("one row too many", 422, "BATCH_TOO_LARGE", json.dumps(many, separators=(",", ":")).encode())


def _declared(served: Served) -> Iterator[Fault]:
    """Headers that do not fit a good body, and a path that there is not."""
    good = json.dumps(_request(served)).encode()
    for kind in ("text/plain", "application/octet-stream", "application/json; charset=utf-16"):
        yield Fault(f"declared as {kind}", 415, "UNSUPPORTED_MEDIA_TYPE", good, {"Content-Type": kind})
    packed = {"Content-Type": JSON_MEDIA_TYPE, "Content-Encoding": "gzip"}
    yield Fault("declared as gzip", 415, "UNSUPPORTED_MEDIA_TYPE", good, packed)
    soon = {"Content-Type": JSON_MEDIA_TYPE, "x-policy-deadline-ms": "soon"}
    yield Fault("deadline of no number", 422, "INVALID_OPTION", good, soon)
    yield Fault("resource of nobody", 404, "UNKNOWN_RESOURCE", b"", resource="/passwd")  # a body makes it a prediction


def _arrays(served: Served) -> Iterator[Fault]:
    """Arrays that are none; a recurrent version refuses all, as they bring no state."""
    good = served.rows(3)
    shifted = good.copy()
    shifted[1, 0] = np.nan
    for name, status, kind, body in (
        ("no array", 400, "INVALID_NPY", b"{}"),
        ("truncated array", 400, "INVALID_NPY", _saved(good)[:-1]),
        ("array of float64", 422, "SCHEMA", _saved(good.astype(np.float64))),
        ("array of objects", 422, "SCHEMA", _saved(good.astype(object))),
        ("array of one column less", 422, "SHAPE", _saved(good[:, :-1])),
        ("array with NaN", 422, "OUT_OF_RANGE", _saved(shifted)),
        ("array of one row too many", 422, "BATCH_TOO_LARGE", _saved(served.rows(served.most_rows + 1))),
    ):
        told = (422, "INVALID_STATE") if served.is_recurrent else (status, kind)
        yield Fault(name, *told, body, {"Content-Type": NPY_MEDIA_TYPE})


def _saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array))
    return file.getvalue()
