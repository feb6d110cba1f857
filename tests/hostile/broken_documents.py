"""The table's first half: bodies that are not one JSON document in UTF-8 with unequal keys, all answered with 400.

Each class has a name, what it is answered with, and at least three bodies, written for the version that is asked.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from tests.hostile.subject import Raw, Subject, nested, written

Body = Callable[[Subject], bytes]
Table = dict[str, tuple[int, str, Sequence[Body]]]
"""Class -> status, type, bodies."""

MANY_DIGITS = b"1" * 4_301


def _everywhere(value: bytes) -> list[Body]:
    return [
        lambda s: s.speed(value),
        lambda s: s.sensor(value),
        lambda s: s.request(seed=Raw(value)),
        lambda s: s.request(extra={"extra": Raw(value)}),
        lambda _: value,
    ]


def _texts(value: bytes) -> list[Body]:
    """`value` between quotes, as a value, as a key, and deep inside."""
    quoted = Raw(b'"' + value + b'"')
    return [
        lambda s: s.request(state=quoted),
        lambda s: s.request(extra={quoted: 1}),
        lambda s: s.observing(extra={"extra": [[quoted]]}),
        lambda _: quoted.content,
    ]


def _bodies(*bodies: bytes) -> list[Body]:
    return [lambda _, body=body: body for body in bodies]


INVALID_JSON: dict[str, list[Body]] = {
    "truncated": [
        lambda s: s.good()[:-1],
        lambda s: s.good()[:20],
        lambda s: s.good()[: len(s.good()) // 2],
        lambda s: s.speed(b"1e"),
        lambda s: s.speed(b'"\\u12'),
    ],
    "trailing garbage": [
        lambda s: s.good() + b"x",
        lambda s: s.good() + b"}",
        lambda s: s.good() + b"\0",
        lambda s: s.good() + b" null",
    ],
    "two documents": [
        lambda s: s.good() + s.good(),
        lambda s: s.good() + b"\n" + s.good(),
        lambda s: s.good() + b"," + s.good(),
    ],
    "single quotes": [
        lambda s: s.good().replace(b'"', b"'"),
        lambda s: s.request(extra={Raw(b"'seed'"): 1}),
        lambda s: s.request(state=Raw(b"'a'")),
    ],
    "comments": [
        lambda s: s.good() + b"// end",
        lambda s: b"/* begin */" + s.good(),
        lambda s: s.speed(b"1 /* m/s */"),
        lambda s: s.good() + b"\n# end",
    ],
    "trailing comma": [
        lambda s: s.good()[:-1] + b",}",
        lambda s: s.request(observations=Raw(b"[" + written(s.observation()) + b",]")),
        lambda s: s.sensor(b"1,", place=s.sensors - 1),
    ],
    "leading zeros": [*_everywhere(b"01"), *_everywhere(b"-007"), *_everywhere(b"00.5")],
    "number of another language": [
        *_everywhere(b"+1"),
        *_everywhere(b".5"),
        *_everywhere(b"1."),
        *_everywhere(b"0x1"),
        *_everywhere(b"1_000"),
        *_everywhere(b"1e1.5"),
    ],
    "raw control character": [*_texts(b"a\nb"), *_texts(b"a\tb"), *_texts(b"\x1f"), *_everywhere(b"\x0c1")],
    "NaN": [*_everywhere(b"NaN"), *_everywhere(b"-NaN"), *_everywhere(b"nan")],
    "Infinity": [*_everywhere(b"Infinity"), *_everywhere(b"inf"), *_everywhere(b"+Infinity")],
    "-Infinity": [*_everywhere(b"-Infinity"), *_everywhere(b"-inf"), *_everywhere(b"-Inf")],
    "beyond float64": [*_everywhere(b"1e999"), *_everywhere(b"-1e999"), *_everywhere(b"0.1E+99999999999999999999")],
    "integer of too many digits": [
        *_everywhere(MANY_DIGITS),
        *_everywhere(b"-" + MANY_DIGITS),
        lambda s: s.speed(b"9" * 1_000_000),
    ],
    "nesting": [
        lambda s: s.request(extra={"extra": Raw(nested(32))}),
        lambda s: s.speed(nested(30)),
        lambda s: s.sensor(nested(31, opening=b'{"a":[', closing=b"]}")),
        lambda _: nested(33),
        lambda _: nested(33, opening=b'{"a":')[:-33] + b"1" + b"}" * 33,
        *_bodies(nested(250_000), b"[" * 250_000, b'[{"":' * 125_000, b'{"observations":' * 100_000),
    ],
}

INVALID_ENCODING: dict[str, list[Body]] = {
    "byte order mark": [
        lambda s: codecs.BOM_UTF8 + s.good(),
        lambda _: codecs.BOM_UTF8,
        lambda _: codecs.BOM_UTF8 + b" {",
    ],
    "UTF-16": [
        lambda s: s.good().decode().encode("utf-16"),
        lambda s: s.good().decode().encode("utf-16-le"),
        lambda s: s.good().decode().encode("utf-16-be"),
        lambda s: codecs.BOM_UTF16_BE + s.good().decode().encode("utf-16-be"),
    ],
    "UTF-32": [
        lambda s: s.good().decode().encode("utf-32"),
        lambda s: s.good().decode().encode("utf-32-le"),
        lambda s: s.good().decode().encode("utf-32-be"),
    ],
    "invalid UTF-8": [
        *_texts(b"\xff"),
        *_texts(b"\xe9"),
        *_texts(b"\x80"),
        *_texts(b"\xf4\x90\x80\x80"),
        lambda s: s.good() + b"\xc3",
        lambda s: s.speed(b"\xff"),
    ],
    "overlong UTF-8": [
        *_texts(b"\xc0\xaf"),
        *_texts(b"\xe0\x80\xaf"),
        *_texts(b"\xf0\x80\x80\xaf"),
        *_texts(b"\xc0\x80"),
    ],
    "encoded surrogate": [*_texts(b"\xed\xa0\x80"), *_texts(b"\xed\xbf\xbf"), *_texts(b"\xed\xa0\xbd\xed\xb8\x80")],
    "lone surrogate": [
        *_texts(rb"\ud800"),
        *_texts(rb"\uDFFF"),
        *_texts(rb"\udc00\ud800"),
        *_texts(rb"a\ud83dz"),
        *_texts(rb"\ud800\n"),
    ],
}

DUPLICATE_KEY: dict[str, list[Body]] = {
    "duplicate at the top": [
        lambda s: s.request(seed=1, extra={Raw(b'"seed"'): 1}),
        lambda s: s.request(extra={Raw(b'"observations"'): [s.observation()]}),
        lambda s: s.request(deterministic=True, extra={Raw(b'"deterministic"'): False}),
        lambda s: s.request(extra={Raw(b'"x"'): 1, Raw(b' "x"'): 1, Raw(b'"x" '): 2}),
    ],
    "duplicate nested": [
        lambda s: s.observing(extra={Raw(b'"speed"'): 1}),
        lambda s: s.observing(extra={Raw(b'"sensors"'): []}),
        lambda s: s.request(extra={"extra": {"a": {"b": 1, Raw(b'"b"'): 1}}}),
        lambda s: s.request(observations=[s.observation(), {**s.observation(), Raw(b'"steering"'): 0.0}]),
    ],
    "duplicate by an escape": [
        lambda s: s.observing(extra={Raw(rb'"\u0073peed"'): 1}),
        lambda s: s.request(seed=1, extra={Raw(rb'"se\u0065d"'): 1}),
        lambda s: s.request(extra={Raw(rb'"\/"'): 1, Raw(b'"/"'): 1}),
        lambda s: s.request(extra={Raw('"\U0001f600"'.encode()): 1, Raw(rb'"\ud83d\ude00"'): 1}),
    ],
    "duplicate of nothing": _bodies(b'{"": 1, "": 2}', rb'{"\u0000": 1, "\u0000": 2}', b'[{"a": null, "a": null}]'),
}

EMPTY_BODY: dict[str, list[Body]] = {
    "zero bytes": _bodies(b""),
    "whitespace only": _bodies(b" ", b"\n", b"\t\r\n ", b" " * 100_000),
}

BROKEN_DOCUMENTS: Table = {
    name: (400, kind, bodies)
    for kind, classes in {
        "INVALID_JSON": INVALID_JSON,
        "INVALID_ENCODING": INVALID_ENCODING,
        "DUPLICATE_KEY": DUPLICATE_KEY,
        "EMPTY_BODY": EMPTY_BODY,
    }.items()
    for name, bodies in classes.items()
}
