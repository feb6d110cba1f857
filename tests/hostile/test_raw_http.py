"""Garbage on the socket: the front end and its workers live on, and good requests beside it are answered to the bit."""

from __future__ import annotations

import re
import socket

import psutil

from tests.hostile.garbage import payloads
from tests.hostile.http_client import Bystander, Target
from tests.hostile.subject import Subject

SEED = 20261121
PAYLOADS = 400
SILENCE_S = 0.5
"""After which a payload counts as not answered, which it need not be."""
_ANSWER = re.compile(rb"^HTTP/1\.[01] 5.*?\r\n\r\n", re.MULTILINE | re.DOTALL)
"""Status line and headers of a server error; the front end has its own for what it cannot route or decode."""


def test_garbage_kills_nobody_and_disturbs_nobody(target: Target, served: Subject) -> None:
    workers, front = target.workers(), front_ends(target)
    failures = []
    with Bystander(target, served.good()) as bystander:
        for number, payload in enumerate(payloads(served, target.path, PAYLOADS, SEED)):
            said = target.send(payload, wait_s=SILENCE_S)
            if any(b"x-policy-version" in error for error in _ANSWER.findall(said)):
                failures.append((number, payload[:300], said[:300]))
    assert not failures, failures[:5]
    assert bystander.answered > 0
    assert (target.workers(), front_ends(target)) == (workers, front)


def test_connections_that_never_finish_a_request_hold_nobody_up(target: Target, served: Subject) -> None:
    workers = target.workers()
    head = f"POST {target.path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n".encode()
    starts = [
        b"",
        b"P",
        head,
        head + b"content-length: 1000\r\n\r\n{",
        head + b"transfer-encoding: chunked\r\n\r\n5\r\n{",
    ]
    expected = target.ask(served.good(5)).actions
    connections = []
    try:
        for start in starts * 20:
            connections.append(socket.create_connection(("127.0.0.1", target.port)))
            connections[-1].sendall(start)
        assert [target.ask(served.good(5)).actions for _ in range(20)] == [expected] * 20
    finally:
        for connection in connections:
            connection.close()
    assert target.ask(served.good(5)).actions == expected
    assert target.workers() == workers


def front_ends(target: Target) -> list[int]:
    """The pids of the Java processes."""
    return sorted(process.pid for process in target.server.descendants() if _is_java(process))


def _is_java(process: psutil.Process) -> bool:
    return "java" in process.name()
