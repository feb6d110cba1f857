"""The load of the drills, sent to servers that misbehave on purpose."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks.archives import ask_policies
from benchmarks.load import Load, Pace, Questions, Sent, figures
from carla_policy.card import GOLDEN_FILE
from carla_policy_tools.paths import ARTIFACTS

VERSION = "v1.0.0"
ACTIONS = [{"throttle": 0.25 * row, "brake": 0.0, "steer": 0.0} for row in range(4)]
QUESTIONS = Questions([json.dumps({"row": row}) for row in range(4)], {VERSION: ACTIONS})
ENOUGH = 40


def http(content: object, status: str = "200 OK", headers: str = "") -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


def right_answer(body: bytes) -> bytes:
    return http({"actions": [ACTIONS[json.loads(body)["row"]]], "version": VERSION})


@contextmanager
def serving(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """A server that answers each request with the bytes of `answer`; none means to close the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while head := stream.readline():
                length = 0
                while (line := stream.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                data = answer(stream.read(length))
                assert head.startswith(b"POST /predictions/carla_policy")
                if not data:
                    return
                try:
                    connection.sendall(data)
                except OSError:
                    return
                if not data.endswith(b"}"):
                    return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def send(base: str, *, timeout_s: float = 30.0, connections: int = 4, rate: float = 400.0) -> list[Sent]:
    """What became of at least `ENOUGH` requests."""
    with Load(base, QUESTIONS, pace=Pace(rate, connections, timeout_s)) as load:
        deadline = time.monotonic() + 60
        while len(load.sent) < ENOUGH and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(load.sent) >= ENOUGH
    return load.stop()


def test_right_answers_are_neither_lost_nor_wrong() -> None:
    with serving(right_answer) as base:
        sent = send(base)
    assert {(r.outcome, r.version, r.right) for r in sent} == {("200", VERSION, True)}
    assert {r.row for r in sent} == {0, 1, 2, 3}
    assert all(r.due <= r.sent <= r.ended for r in sent)
    assert figures(sent).rate == pytest.approx(400, rel=0.01)


def test_answer_of_another_action_or_version_is_wrong() -> None:
    answers = [{"actions": [ACTIONS[3]], "version": VERSION}, {"actions": [ACTIONS[0]], "version": "v2.0.0"}]
    for content in answers:
        with serving(lambda body, content=content: http(content) if b"0" in body else right_answer(body)) as base:
            sent = send(base)
        assert {r.row for r in sent if r.wrong} == {0}
        assert not [r for r in sent if r.lost]


@pytest.mark.parametrize(
    ("data", "outcome", "note"),
    [
        (http({"message": "busy"}, "503 Service Unavailable", "connection: close\r\n"), "503", "busy"),
        (http(b"no JSON}", "503 Service Unavailable"), "503", ""),
        (b"", "closed", "closed"),
        (http({"actions": []})[:-3], "cut", "closed"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "cut", "'content-length'"),
    ],
)
def test_refused_and_cut_answers_are_told_apart(data: bytes, outcome: str, note: str) -> None:
    with serving(lambda _: data) as base:
        sent = send(base)
    assert {(r.outcome, r.note) for r in sent} == {(outcome, note)}
    assert all(r.lost for r in sent)


def test_server_that_is_gone_refuses() -> None:
    with serving(right_answer) as base:
        pass
    assert {r.outcome for r in send(base)} == {"refused"}


def test_latency_counts_from_when_a_request_was_due_although_no_connection_was_free() -> None:
    stalled = threading.Event()

    def stall_once(body: bytes) -> bytes:
        if not stalled.is_set():
            stalled.set()
            time.sleep(0.5)
        return right_answer(body)

    with serving(stall_once) as base:
        sent = send(base, connections=1)
    assert not [r for r in sent if r.lost]
    delayed = [r for r in sent if r.sent - r.due > 0.1]
    assert len(delayed) > 20
    assert all(r.latency_s >= r.ended - r.sent + 0.1 for r in delayed)


def test_closed_loop_sends_the_next_request_when_it_has_the_last_answer_and_no_sooner() -> None:
    with serving(right_answer) as base:
        sent = send(base, connections=3, rate=0)
    assert {(r.outcome, r.right) for r in sent} == {("200", True)}
    ends = sorted(r.ended for r in sent)
    for number, due in enumerate(sorted(r.due for r in sent)[3:]):
        assert due >= ends[number]
    assert figures(sent).longest_ms < 30_000


def test_requests_without_an_answer_are_given_up_sent_or_not() -> None:
    with serving(lambda _: time.sleep(3) or b"") as base:
        sent = send(base, timeout_s=0.2, connections=2)
    assert {r.outcome for r in sent} == {"timeout", "unsent"}
    assert all(r.latency_s >= 0.2 for r in sent)


def test_expected_answers_are_the_golden_actions_of_training(store: Path) -> None:
    """v0.2.0 has no limits in its card."""
    questions = ask_policies(store, ["v0.2.0"], rows=32)
    golden = np.load(ARTIFACTS / "v0.2.0" / GOLDEN_FILE)["deterministic_actions"][:32]
    assert questions.expected["v0.2.0"] == [
        {"throttle": max(float(a), 0.0), "brake": max(-float(a), 0.0), "steer": float(s)} for a, s in golden
    ]
