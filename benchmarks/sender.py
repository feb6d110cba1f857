"""The process that sends a load: `python benchmarks/sender.py`, started by `benchmarks.load.Load`.

Requests leave by a schedule that does not wait for answers (open loop), over keep-alive connections that carry one
request at a time. A request that finds all of them busy waits, and its latency counts from when it was due, so a
server that stalls cannot hide behind the requests that were not sent. At a rate of 0 a request leaves as soon as a
connection is free (closed loop). One thread and plain sockets: the sender shares the machine with what it measures.

Standard input: a line with the plan as JSON; sending stops when it ends. Standard output: a line for each request, a
JSON array of the fields of `benchmarks.load.Sent`. Needs the standard library only.
"""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import selectors
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

CHUNK = 1 << 16
FLUSH_S = 0.02
LONGEST_NOTE = 200
HEAD_END = b"\r\n\r\n"


@dataclass
class Job:
    """A request: which row it asks, and the monotonic times at which it was due and left."""

    number: int
    row: int
    due: float
    sent: float = 0.0


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    keep_alive: bool


class Connection:
    """A socket that carries one request at a time; opened when it is first needed, and again after it was closed."""

    def __init__(self, address: tuple[str, int], selector: selectors.BaseSelector) -> None:
        self._address = address
        self._selector = selector
        self._socket: socket.socket | None = None
        self._unsent = b""
        self._received = bytearray()
        self._connecting = False
        self.job: Job | None = None

    def send(self, job: Job, request: bytes) -> None:
        """Raises `OSError` where no connection comes about."""
        self.job, self._unsent, self._received = job, request, bytearray()
        job.sent = time.monotonic()
        if self._socket is None:
            self._open()
        if not self._connecting:
            self._write()

    def _open(self) -> None:
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE, self)
        code = self._socket.connect_ex(self._address)
        self._connecting = code == errno.EINPROGRESS
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))

    def _write(self) -> None:
        assert self._socket is not None
        with suppress(BlockingIOError):
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._selector.modify(self._socket, events, self)

    def on_event(self, events: int) -> Answer | None:
        """The answer once it is complete. `OSError` where the connection failed, `EOFError` where it was cut."""
        assert self._socket is not None
        if events & selectors.EVENT_WRITE:
            if self._connecting:
                code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, os.strerror(code))
                self._connecting = False
            self._write()
        if not events & selectors.EVENT_READ:
            return None
        data = self._socket.recv(CHUNK)
        if not data and self.job is None:
            self.close()
            return None
        if not data:
            raise EOFError("closed")
        self._received += data
        return self._complete()

    def _complete(self) -> Answer | None:
        head, found, body = bytes(self._received).partition(HEAD_END)
        if not found:
            return None
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if len(body) < int(headers["content-length"]):
            return None
        return Answer(int(status_line.split(" ")[1]), body, headers.get("connection", "").lower() != "close")

    @property
    def begun(self) -> bool:
        """A part of the answer has come."""
        return bool(self._received)

    def close(self) -> None:
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
        self._socket, self._connecting = None, False


class Sender:
    """Runs a plan: `host`, `port`, `path`, `bodies`, `expected`, `tolerance`, `rate`, `connections`, `timeout_s`.

    `expected` holds the right actions by version; where it is empty, every answer of status 200 is right.
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        self.rate: float = plan["rate"]
        self.timeout_s: float = plan["timeout_s"]
        self.expected: dict[str, list[Any]] = plan["expected"]
        self.tolerance: float = plan["tolerance"]
        head = (
            f"POST {plan['path']} HTTP/1.1\r\nHost: {plan['host']}:{plan['port']}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        )
        self.requests = [f"{head}{len(body.encode())}\r\n\r\n{body}".encode() for body in plan["bodies"]]
        self.selector = selectors.SelectSelector()  # epoll rounds waits up to whole milliseconds
        self.idle = deque(Connection((plan["host"], plan["port"]), self.selector) for _ in range(plan["connections"]))
        self.busy: set[Connection] = set()
        self.waiting: deque[Job] = deque()
        self.lines: list[str] = []
        self.freed = time.monotonic()
        self.flushed = 0.0

    def run(self, commands: int) -> None:
        """Send until the descriptor `commands` is at its end; then wait for the answers."""
        self.selector.register(commands, selectors.EVENT_READ, None)
        start, number, stopping = time.monotonic(), 0, False
        while not stopping or self.busy or self.waiting:
            now = time.monotonic()
            while not stopping and (due := self.due(start, number)) <= now:
                self.waiting.append(Job(number, number % len(self.requests), due))
                number += 1
            self.dispatch()
            due = FLUSH_S if stopping else min(FLUSH_S, max(0.0, self.due(start, number) - time.monotonic()))
            for key, events in self.selector.select(due):
                if key.data is None:
                    stopping = True
                    self.selector.unregister(commands)
                else:
                    self.on_event(key.data, events)
            self.expire()
            self.flush()
        self.flush(at_once=True)

    def due(self, start: float, number: int) -> float:
        """When request `number` of a load that began at `start` is due; in a closed loop that says the connections."""
        if self.rate:
            return start + number / self.rate
        return self.freed if len(self.idle) > len(self.waiting) else math.inf

    def dispatch(self) -> None:
        while self.waiting and self.idle:
            job, connection = self.waiting.popleft(), self.idle.pop()
            self.busy.add(connection)
            try:
                connection.send(job, self.requests[job.row])
            except OSError as error:
                self.fail(connection, error)

    def on_event(self, connection: Connection, events: int) -> None:
        try:
            answer = connection.on_event(events)
        except (OSError, EOFError, KeyError, ValueError) as error:
            self.fail(connection, error)
            return
        if answer is not None:
            ended = time.monotonic()
            self.record(connection, str(answer.status), *self.judge(connection.job, answer), ended)
            if not answer.keep_alive:
                connection.close()

    def judge(self, job: Job | None, answer: Answer) -> tuple[str, bool, str]:
        """The version that answered, whether the action is that version's, and what the server said otherwise."""
        assert job is not None
        if answer.status == 200 and not self.expected:
            return "", True, ""
        try:
            content = json.loads(answer.body)
            if answer.status == 200:
                version = content["version"]
                right = version in self.expected and self.same(content["actions"], self.expected[version][job.row])
                return version, right, "" if right else answer.body[:LONGEST_NOTE].decode()
            return "", False, content["message"][:LONGEST_NOTE]
        except (ValueError, KeyError, TypeError):
            return "", False, ""

    def same(self, actions: list[dict[str, float]], expected: dict[str, float]) -> bool:
        """One action, and each of its numbers within the tolerance; 0 means the same bits."""
        if not self.tolerance:
            return actions == [expected]
        return len(actions) == 1 and all(
            abs(actions[0][control] - value) <= self.tolerance for control, value in expected.items()
        )

    def fail(self, connection: Connection, error: Exception) -> None:
        """A request without an answer; a connection that nobody was waiting for is only closed."""
        connection.close()
        if connection.job is not None:
            refused = isinstance(error, ConnectionRefusedError)
            outcome = "refused" if refused else "cut" if connection.begun else "closed"
            self.record(connection, outcome, "", False, str(error))

    def expire(self) -> None:
        """Give up what has waited too long, sent or not."""
        limit = time.monotonic() - self.timeout_s
        for connection in [c for c in self.busy if c.job is not None and c.job.due < limit]:
            connection.close()
            self.record(connection, "timeout", "", False, f"no answer within {self.timeout_s:g} s")
        while self.waiting and self.waiting[0].due < limit:
            job = self.waiting.popleft()
            self.write(job, "unsent", "", False, f"no connection became free within {self.timeout_s:g} s")

    def record(
        self, connection: Connection, outcome: str, version: str, right: bool, note: str, ended: float = 0.0
    ) -> None:
        job, connection.job = connection.job, None
        self.busy.discard(connection)
        self.idle.append(connection)
        assert job is not None
        self.write(job, outcome, version, right, note, ended)
        self.freed = time.monotonic()

    def write(self, job: Job, outcome: str, version: str, right: bool, note: str, ended: float = 0.0) -> None:
        sent, ended = job.sent or job.due, ended or time.monotonic()
        self.lines.append(json.dumps([job.row, job.due, sent, ended, outcome, version, right, note]))

    def flush(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if self.lines and (at_once or now - self.flushed > FLUSH_S):
            sys.stdout.write("\n".join(self.lines) + "\n")
            sys.stdout.flush()
            self.lines.clear()
            self.flushed = now


def main() -> None:
    sender = Sender(json.loads(sys.stdin.buffer.readline()))
    gc.freeze()
    sender.run(sys.stdin.fileno())


if __name__ == "__main__":
    main()
