"""Bytes that are no HTTP, or HTTP that no client sends; drawn by a seeded generator."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tests.hostile.broken_documents import BROKEN_DOCUMENTS
from tests.hostile.subject import Subject

LINES = [
    b"Content-Length: -1",
    b"Content-Length: 18446744073709551616",
    b"Content-Length: 1e3",
    b"Content-Length: 5, 6",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding : chunked",
    b"Expect: 200-nothing",
    b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    b": no name",
    b"no colon",
    b" folded",
    b"\tfolded",
    b"a\0b: c",
    b"x: \xff\xfe\0\x01",
    b"content-encoding: gzip",
    b"describe: True",
    b"url_path: healthz",
    b"x: " + b"a" * 20_000,
    *(b"x-%d: y" % number for number in range(5)),
]
METHODS = [b"POST", b"GET", b"PUT", b"", b"\0", b"POST POST", b"P\xd6ST", b"CONNECT", b"PRI"]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9.9", b"", b"http/1.1", b"HTTP/1.1 x", b"ICY"]
CHUNKS = [
    b'5\r\n{"a":\r\n0\r\n\r\n',
    b"ffffffffffffffff\r\na",
    b"-1\r\n\r\n",
    b"zz\r\na\r\n0\r\n\r\n",
    b"5;a=b\r\nabc",
    b"0\r\nx: y\r\n\r\n",
]
FIXED = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"\r\n" * 5_000,
    b"\n",
    b"GET\r\n\r\n",
    b"*" * 100_000,
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5_000 + b"\r\n",
]


def payloads(subject: Subject, path: str, count: int, seed: int) -> Iterator[bytes]:
    """`count` payloads for a server that answers `subject`'s requests at `path`."""
    random = Random(seed)
    bodies = [make(subject) for _, _, makers in BROKEN_DOCUMENTS.values() for make in makers]
    bodies = [subject.good(), *(body for body in bodies if len(body) < 5_000), *CHUNKS]
    yield from FIXED
    for number in range(count - len(FIXED)):
        if number % 4 == 0:
            yield random.randbytes(random.choice([1, 10, 100, 5_000]))
            continue
        head, body = _head(random, path), random.choice(bodies)
        if random.random() < 0.6:
            head += b"Content-Length: %d\r\n" % max(0, len(body) + random.choice([0, 0, -5, 7, 100_000]))
        request = head + b"\r\n" + body
        yield _damaged(random, request) if number % 4 == 1 else request


def _head(random: Random, path: str) -> bytes:
    places = [path.encode()] * 4 + [
        b"/",
        b"*",
        b"",
        b"/%00",
        b"//",
        b"http://[::1/",
        b"/predictions/\xff",
        path.encode() + b"/\0",
    ]
    first = [b"POST"] * 8 + METHODS
    versions = [b"HTTP/1.1"] * 8 + VERSIONS
    lines = [b" ".join([random.choice(first), random.choice(places), random.choice(versions)])]
    lines += [b"Host: a", b"Content-Type: application/json", *random.sample(LINES, random.choice([0, 1, 1, 2, 3]))]
    return random.choice([b"\r\n"] * 6 + [b"\n", b"\r"]).join(lines) + b"\r\n"


def _damaged(random: Random, request: bytes) -> bytes:
    content = bytearray(request)
    for _ in range(random.choice([1, 3, 10])):
        content[random.randrange(len(content))] = random.randrange(256)
    return bytes(content[: random.randrange(1, len(content) + 1)])
