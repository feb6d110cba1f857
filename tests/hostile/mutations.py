"""Hypothesis strategies for bodies: any bytes, any JSON, valid requests, and valid requests with something changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from tests.hostile.corpus import FILES, document
from tests.hostile.subject import Raw, Subject, nested

TOKENS = [
    *(
        b"{}",
        b"[]",
        b"null",
        b"true",
        b"-0",
        b"1e999",
        b"NaN",
        b"-Infinity",
        b'""',
        b'"speed"',
        b'"observations"',
        b"[[1]]",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"\\",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        rb"\ud800",
        rb"\u0073",
    ),
    *(
        b" ",
        b"\n",
        b"//",
        b"'",
        b"0",
        b"1",
        b"-",
        b".",
        b"e",
        b"E400",
        b"\x0c",
        rb'"\ud83d\ude00"',
        b"1" * 4_301,
        nested(40),
    ),
    *(
        b'"seed": 1, ',
        b'"seed": -1, ',
        b'"speed": 2, ',
        b'"gear": 1, ',
        b'"state": "AAAA", ',
        b'"episode_start": true, ',
    ),
]
"""What breaks, or nearly breaks, a JSON document wherever it is put."""

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**400), max_value=10**400),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["speed", "1", "NaN", "\0", "\N{ROBOT FACE}"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def rewritten(draw: st.DrawFn, value: Any) -> bytes:
    """`value` as any of the ways in which JSON can be written: spaces, escapes, or neither."""
    indent = draw(st.sampled_from([None, None, 0, 3]))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r\n")]))
    return json.dumps(value, ensure_ascii=draw(st.booleans()), indent=indent, separators=separators).encode(
        "utf-8", "surrogatepass"
    )


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container inside `value` with each of its keys."""
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


@st.composite
def near_requests(draw: st.DrawFn, subject: Subject) -> dict[str, Any]:
    """A valid request in which keys and numbers are kept, left out, or become something else."""
    request: dict[str, Any] = json.loads(subject.good(draw(st.integers(0, 30)), draw(st.integers(1, 3))))
    options = {"deterministic": st.booleans(), "seed": st.integers(0, 2**64 - 1), "log_prob": st.booleans()}
    for name in draw(st.lists(st.sampled_from(sorted(options)), unique=True)):
        request[name] = draw(options[name])
    for _ in range(draw(st.integers(0, 2))):
        container, key = draw(st.sampled_from(list(_places(request))))
        match draw(st.sampled_from(["number", "replace", "add", "remove"])):
            case "number":
                container[key] = draw(st.floats(-70, 130) | st.integers(-2, 100))
            case "replace":
                container[key] = draw(values)
            case "remove":
                del container[key]
            case _ if isinstance(container, list):
                container.append(draw(values))
            case _:
                container[draw(st.sampled_from(["Speed", "state", "episode_start", ""]) | st.text(max_size=8))] = draw(
                    values
                )
        if not request:
            break
    return request


@st.composite
def damaged(draw: st.DrawFn, body: bytes) -> bytes:
    """`body` with up to three cuts, insertions and changed bytes."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.sampled_from([0, 0, 1, 2, 20])))
        body = body[:start] + draw(st.sampled_from(TOKENS) | st.binary(max_size=4)) + body[end:]
    return body


@st.composite
def repeating(draw: st.DrawFn, subject: Subject) -> bytes:
    """A request with one more key, written before the others of its object, which is often one of them."""
    body = subject.good(draw(st.integers(0, 30)), draw(st.integers(1, 2)))
    place = draw(st.sampled_from([at + 1 for at, byte in enumerate(body) if byte == ord("{")]))
    key = draw(st.sampled_from([b'"speed"', b'"sensors"', b'"observations"', b'"seed"', rb'"\u0073peed"', b'"gear"']))
    return body[:place] + key + b": " + json.dumps(draw(values)).encode() + b", " + body[place:]


def bodies(subject: Subject) -> st.SearchStrategy[bytes]:
    """What may arrive in place of a request to `subject`'s version, valid ones among it."""
    corpus = st.sampled_from(FILES).map(document)
    spliced = corpus | values.map(lambda value: json.dumps(value).encode()) | st.sampled_from(TOKENS)
    near = near_requests(subject)
    kinds = st.one_of(
        near.flatmap(rewritten),
        near.flatmap(rewritten),
        near.flatmap(rewritten).flatmap(damaged),
        st.builds(subject.good, st.integers(0, 30)).flatmap(damaged),
        spliced.flatmap(
            lambda value: st.sampled_from(sorted(subject.anywhere(value).items())).map(lambda pair: pair[1])
        ),
        st.tuples(spliced, spliced).map(lambda pair: subject.request(extra={Raw(pair[0]): Raw(pair[1])})),
        repeating(subject),
        values.flatmap(rewritten),
        corpus.flatmap(damaged),
        st.lists(st.sampled_from(TOKENS), max_size=6).map(b"".join),
        st.binary(max_size=60),
    )

    @st.composite
    def body(draw: st.DrawFn) -> bytes:
        return draw(kinds)

    return body()  # whose repr is short: hypothesis writes out a strategy that rejects a draw
