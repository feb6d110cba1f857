"""The table's rows about what a body is declared to be: headers of a request whose body is a valid one."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from tests.hostile.subject import Subject

FORM = "application/x-www-form-urlencoded"
BOUNDARY = "part"

UNSUPPORTED: dict[str, list[Mapping[str, str]]] = {
    "text": [{"content-type": kind} for kind in ("text/plain", "text/json", "text/html; charset=utf-8", "TEXT/PLAIN")],
    "form": [{"content-type": kind} for kind in (FORM, f"{FORM}; charset=utf-8", FORM.upper())],
    "multipart": [
        {"content-type": kind}
        for kind in ("multipart/form-data; boundary=x", "multipart/form-data", "multipart/mixed; boundary=x")
    ],
    "other media type": [
        {"content-type": kind}
        for kind in (
            "application/octet-stream",
            "application/problem+json",
            "application/jsonlines",
            "application/json, text/plain",
            "*/*",
            "json",
            "x" * 4_000,
        )
    ],
    "other charset": [
        {"content-type": f"application/json{charset}"}
        for charset in ("; charset=utf-16", ";charset=latin-1", "; charset=UTF-8; charset=utf-16", '; charset="utf-7"')
    ],
    "compressed": [
        {"content-type": "application/json", "content-encoding": coding}
        for coding in ("gzip", "deflate", "br", "GZIP", "gzip, identity", "identity, gzip", "x" * 4_000)
    ],
}

ACCEPTED: dict[str, list[Mapping[str, str]]] = {
    "JSON in any case": [
        {"content-type": kind}
        for kind in ("Application/JSON", "APPLICATION/JSON", "application/json;", "application/json ; Charset=UTF-8")
    ],
    "JSON in UTF-8": [
        {"content-type": kind} for kind in ('application/json; charset="utf-8"', "application/json;charset=utf-8")
    ],
    "no type": [{}, {"accept": "text/plain"}],
    "not compressed": [{"content-encoding": coding} for coding in ("identity", "Identity", " identity ")],
    "claims of being another kind of request": [
        {"describe": "True"},
        {"explain": "True"},
        {"url_path": "healthz"},
        {"url_path": "../../ping"},
        {"explain": "True", "url_path": "metadata", "describe": "True", "content-type": "application/json"},
    ],
}

ECHOED = {"traceparent": "traceparent", "x-request-id": "x-client-request-id"}
"""Request header to the response header that brings it back."""
UNSAFE_VALUES = [
    b"\xe9t\xe9",
    "\N{ROBOT FACE}".encode(),
    b"\xff\xfe",
    b"a" * 129,
    b"a" * 4_000,
    b"a b",
    b"a,b",
    b"a;b",
    b'"a"',
    b"<script>alert(1)</script>",
    b"${jndi:ldap://127.0.0.1/a}",
    b"%0d%0aset-cookie: a=b",
    b"a\tb",
    b"%s%n{0}",
]


def compressed(subject: Subject) -> dict[str, bytes]:
    """A valid request by how it is compressed."""
    packers = {coding: zlib.compressobj(wbits=wbits) for coding, wbits in {"gzip": 31, "deflate": 15}.items()}
    return {coding: packer.compress(subject.good()) + packer.flush() for coding, packer in packers.items()}


def multipart(parts: Mapping[str, bytes]) -> tuple[Mapping[str, str], bytes]:
    """Headers and body of a form with these parts."""
    sections = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in parts.items()
    ]
    return {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}, b"".join(
        sections
    ) + f"--{BOUNDARY}--".encode()
