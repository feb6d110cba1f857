"""The table's second half: JSON that is no request to this version, answered with 422, and what only looks odd."""

from __future__ import annotations

from collections.abc import Sequence

from carla_policy.wire import max_body_bytes
from tests.hostile.broken_documents import Body, Table
from tests.hostile.subject import Raw, Subject, nested, written

HUGE_INTEGER = b"1" + b"0" * 400
"""A JSON number that Python reads as an integer and that no float64 holds."""


def _root(*documents: bytes) -> list[Body]:
    return [lambda _, document=document: document for document in documents]


def _fields(*values: bytes) -> list[Body]:
    """Each value as speed, as steering, and as a sensor."""
    bodies: list[Body] = []
    for value in values:
        bodies += [
            lambda s, value=value: s.speed(value),
            lambda s, value=value: s.observing(steering=Raw(value)),
            lambda s, value=value: s.sensor(value),
        ]
    return bodies


def _options(name: str, *values: bytes) -> list[Body]:
    return [lambda s, value=value: s.request(**{name: Raw(value)}) for value in values]


def _sensors(subject: Subject, change: int) -> list[float]:
    values = subject.observation()["sensors"]
    return [*values, *values][: len(values) + change]


def _many(subject: Subject, count: int, **options: object) -> bytes:
    return subject.request(observations=[subject.observation()] * count, **options)


def _spacious(subject: Subject, count: int) -> bytes:
    """`count` observations whose numbers have the most digits, one in a line."""
    number = Raw(b"-1.2345678901234567e-300")
    observation = {"speed": number, "steering": number, "sensors": [number] * subject.sensors}
    one = written(observation).replace(b", ", b",\n        ")
    return b'{\n  "observations": [\n' + b",\n    ".join([one] * count) + b"\n  ]\n}\n"


SCHEMA: dict[str, list[Body]] = {
    "root null": _root(b"null", b" null ", b"\nnull\n"),
    "root array": [*_root(b"[]", b"[null]", nested(32)), lambda s: b"[" + s.good() + b"]"],
    "root scalar": _root(b"0", b"-1.5e3", b'"observations"', b"true", b"false", b'""'),
    "missing field": [
        *_root(b"{}"),
        lambda s: s.good().replace(b'"observations"', b'"seeds"'),
        lambda s: s.without("speed"),
        lambda s: s.without("steering"),
        lambda s: s.without("sensors"),
        lambda s: s.request(observations=[{}]),
    ],
    "unknown field": [
        lambda s: s.request(extra={"observatons": []}),
        lambda s: s.request(extra={"": 1}),
        lambda s: s.request(extra={"Seed": 1}),
        lambda s: s.request(extra={"__proto__": {"seed": 1}, "constructor": 1}),
        lambda s: s.request(extra={"extra": Raw(nested(31))}),
        lambda s: s.observing(extra={"gear": 1}),
        lambda s: s.observing(extra={Raw(b'"\\u0000"'): 1}),
        lambda s: s.observing(extra={"x" * 100_000: 1}),
    ],
    "wrong type": [
        *_fields(b"{}", b'""'),
        *_options("observations", b"{}", b'"[]"', b"1", b"null", b"true"),
        lambda s: s.speed(b"[1]"),
        lambda s: s.observing(sensors=1.0),
        lambda s: s.observing(sensors=1),
        lambda s: s.observing(sensors="[1]"),
        lambda s: s.observing(sensors={"0": 1.0}),
        lambda s: s.request(observations=[1.0]),
        lambda s: s.request(observations=[[s.observation()]]),
    ],
    "boolean as number": _fields(b"true", b"false"),
    "numeric string": _fields(b'"1"', b'"1.5"', b'"NaN"', b'"0"'),
    "null element": [
        *_fields(b"null"),
        lambda s: s.request(observations=[None]),
        lambda s: s.request(observations=[s.observation(), None]),
        lambda s: s.observing(sensors=None),
    ],
    "object inside a vector": [
        lambda s: s.sensor(b"{}"),
        lambda s: s.sensor(b'{"value": 1.0}', place=0),
        lambda s: s.observing(sensors=[{}] * s.sensors),
    ],
}

SHAPE: dict[str, list[Body]] = {
    "sensors too short": [
        lambda s: s.observing(sensors=_sensors(s, -1)),
        lambda s: s.observing(sensors=_sensors(s, 1 - s.sensors)),
        lambda s: s.request(observations=[s.observation(), s.observation(sensors=_sensors(s, -2))]),
    ],
    "sensors too long": [
        lambda s: s.observing(sensors=_sensors(s, 1)),
        lambda s: s.observing(sensors=_sensors(s, s.sensors)),
        lambda s: s.observing(sensors=_sensors(s, 0) * 10_000),
    ],
    "ragged": [
        lambda s: s.sensor(b"[1.0]"),
        lambda s: s.sensor(b"[]", place=0),
        lambda s: s.request(
            observations=[s.observation(sensors=_sensors(s, -1)), s.observation(sensors=_sensors(s, 1))]
        ),
    ],
    "extra dimension": [
        lambda s: s.observing(sensors=[_sensors(s, 0)]),
        lambda s: s.observing(sensors=[[value] for value in _sensors(s, 0)]),
        lambda s: s.observing(sensors=[[[]]] * s.sensors),
    ],
    "empty": [
        lambda s: s.observing(sensors=[]),
        lambda s: s.observing(sensors=Raw(b"[ \n ]")),
        lambda s: s.request(observations=[s.observation(), s.observation(sensors=[])]),
    ],
    "no observation": [
        lambda s: s.request(observations=[]),
        lambda s: s.request(observations=[], deterministic=False),
        lambda s: s.request(observations=Raw(b"[\n]"), seed=1),
    ],
}

OUT_OF_RANGE: dict[str, list[Body]] = {
    "overflows float32": _fields(b"1e308", b"-1e308", b"3.5e38", HUGE_INTEGER, b"-" + HUGE_INTEGER, b"1" * 4_300),
    "outside the card's bounds": [
        *_fields(b"1e6", b"-1e6"),
        lambda s: s.speed(b"60.1"),
        lambda s: s.observing(steering=1.0001),
        lambda s: s.request(observations=[s.observation(), s.observation(speed=-1.1)]),
    ],
}

BATCH_TOO_LARGE: dict[str, list[Body]] = {
    "more rows than the limit": [
        lambda s: _many(s, s.card.inference.max_observations + 1),
        lambda s: _many(s, s.card.inference.max_observations + 1, deterministic=False, seed=1),
        lambda s: _many(s, s.card.inference.max_observations * 3 // 2),
    ],
    "longer than any request": [
        lambda s: s.good() + b" " * max_body_bytes(s.card),
        lambda s: b"[" * (max_body_bytes(s.card) + 1),
        lambda s: s.request(extra={"extra": "x" * max_body_bytes(s.card)}),
    ],
}

_NO_BOOLEANS = (b"1", b"0", b'"yes"', b'"true"', b"null", b"[true]", b"{}", b"1.0")
INVALID_OPTION: dict[str, list[Body]] = {
    "unknown option value": [*_options("deterministic", *_NO_BOOLEANS), *_options("log_prob", *_NO_BOOLEANS)],
    "negative seed": _options("seed", b"-1", b"-9223372036854775809", b"-" + HUGE_INTEGER),
    "seed of 65 bits": _options("seed", b"18446744073709551616", HUGE_INTEGER, b"1" * 4_300),
    "seed that is no integer": _options("seed", b"1.5", b"1.0", b"1e3", b"true", b'"1"', b"null", b"[1]", b"-0.0"),
}

INVALID_STATE: dict[str, list[Body]] = {
    "state of a policy that keeps none": _options("state", b'""', b'"AAAA"', b"null", b"1", b"{}"),
    "start that is no boolean": _options("episode_start", b"1", b'"true"', b"null", b"[1]", b"[null]", b"{}"),
}

WRONG_REQUESTS: Table = {
    name: (422, kind, bodies)
    for kind, classes in {
        "SCHEMA": SCHEMA,
        "SHAPE": SHAPE,
        "OUT_OF_RANGE": OUT_OF_RANGE,
        "BATCH_TOO_LARGE": BATCH_TOO_LARGE,
        "INVALID_OPTION": INVALID_OPTION,
        "INVALID_STATE": INVALID_STATE,
    }.items()
    for name, bodies in classes.items()
}

ACCEPTED: dict[str, Sequence[Body]] = {
    "negative zero": _fields(b"-0.0", b"-0", b"-0e5", b"-1e-400"),
    "denormals": _fields(b"1e-40", b"5e-324", b"1e-46", b"0.0000000000000000000000000000000000000000001"),
    "underflow": _fields(b"1e-999", b"0e999", b"1e-99999999999999999999"),
    "whitespace around": [lambda s: b" \r\n\t" + s.good() + b"\n " * 1_000],
    "escaped keys": [lambda s: s.good().replace(b'"speed"', rb'"\u0073\u0070eed"')],
    "largest seed": _options("seed", b"18446744073709551615", b"0", b"-0"),
    "as many rows as the limit": [
        lambda s: _many(s, s.card.inference.max_observations),
        lambda s: _spacious(s, s.card.inference.max_observations),
    ],
}
