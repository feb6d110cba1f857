"""A bad network on loopback: what is between a client and a server, and delays, loses, cuts or garbles answers.

It knows one thing of what it passes on: a client that sends has asked something, and what comes back until it sends
again is the answer. So each answer is delayed or lost as a whole, and the client's own deadline is what notices it.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from typing_extensions import Self

from carla_policy_tools.addresses import LOOPBACK, listening_socket

_PIECE = 65_536
_PATIENCE_S = 10.0
_Result = TypeVar("_Result")
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
_BODIES = (
    b'{"actions": [{"throttle": NaN, "brake": 0, "steer": 0}]}',
    b"[]",
    b'{"actions": 1e999}',
    b"<html>busy</html>",
)
JUNK = (b"\x00\xff" * 512, b"HTTP/1.1 200 OK\r\n\r\n{", *(_HEAD % (len(body), body) for body in _BODIES))
"""What comes in place of answers, turn by turn, where the link is told to garble them."""


@dataclass(frozen=True)
class Conditions:
    """How the network is: an answer takes so many seconds longer (from, to), a share of answers is lost.

    `cut`: all connections end, and new ones at once. `junk`: another thing comes back than what was answered.
    """

    latency_s: tuple[float, float] = (0.0, 0.0)
    loss: float = 0.0
    cut: bool = False
    junk: bool = False

    def __post_init__(self) -> None:
        low, high = self.latency_s
        if not 0.0 <= low <= high <= 60.0:
            raise ValueError(f"latency: expected 0 to 60 s, the smaller first, got {low:g} to {high:g}")
        if not 0.0 <= self.loss <= 1.0:
            raise ValueError(f"loss: expected a share from 0 to 1, got {self.loss:g}")


class _Exchange:
    """What becomes of the answer that a connection waits for."""

    def __init__(self) -> None:
        self.is_over = True
        self.delay_s = 0.0
        self.is_lost = self.is_junk = False
        self.due: float | None = None
        """When its first piece may leave; `None` before it has come."""


class Link:
    """Use as a context manager; `url` then leads through it to the server at the `url` that it was made with.

    Latency and loss are drawn from `seed` and the number of the prediction. Reports of episodes are neither late nor
    lost. `conditions` may be changed at any time, from any thread.
    """

    def __init__(self, url: str, conditions: Conditions | None = None, seed: int = 0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"a link needs to see where answers begin and end: expected http://..., got {url}")
        self._upstream, self._path = (parts.hostname, parts.port or 80), parts.path
        self._conditions, self._seed = conditions or Conditions(), seed
        self._counts: Counter[str] = Counter()
        self._numbers, self._junk = itertools.count(), itertools.cycle(JUNK)
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._server: asyncio.Server
        self.url = ""

    def __enter__(self) -> Self:
        listener = listening_socket(LOOPBACK, 0)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._relay, sock=listener))
        self.url = f"http://{LOOPBACK}:{listener.getsockname()[1]}{self._path}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def conditions(self) -> Conditions:
        return self._conditions

    @conditions.setter
    def conditions(self, conditions: Conditions) -> None:
        self._conditions = conditions
        if conditions.cut:
            self._run(self._cut())

    @property
    def counts(self) -> dict[str, int]:
        """Connections, those that were cut or that nobody answered; predictions, and answers: lost, junk, delayed."""
        names = ("connections", "cut", "refused", "predictions", "answers", "delayed", "lost", "junk")
        return {name: self._counts[name] for name in names}

    def _run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_PATIENCE_S)

    async def _end(self) -> None:
        self._server.close()
        await self._cut()

    async def _cut(self) -> None:
        open_now = list(self._connections)
        self._counts["cut"] += len(open_now)
        for task in open_now:
            task.cancel()
        await asyncio.gather(*open_now, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._counts["connections"] += 1
        writers = [writer]
        try:
            if self._conditions.cut:
                return
            server_reader, server_writer = await asyncio.open_connection(*self._upstream)
            writers.append(server_writer)
            exchange = _Exchange()
            ways = [
                asyncio.ensure_future(self._pass_questions(reader, server_writer, exchange)),
                asyncio.ensure_future(self._pass_answers(server_reader, writer, exchange)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            self._counts["refused"] += 1
        except asyncio.CancelledError:  # cut
            for each in writers:
                each.transport.abort()
        finally:
            self._connections.discard(task)
            for each in writers:
                each.close()

    async def _pass_questions(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: _Exchange
    ) -> None:
        while data := await reader.read(_PIECE):
            if exchange.is_over:
                self._decide(data, exchange)
            writer.write(data)
            await writer.drain()

    def _decide(self, question: bytes, exchange: _Exchange) -> None:
        """What will become of the answer to the question that begins with these bytes."""
        exchange.is_over, exchange.due = False, None
        exchange.delay_s, exchange.is_lost, exchange.is_junk = 0.0, False, False
        if b"/episodes " in question.split(b"\r\n", 1)[0]:
            return
        self._counts["predictions"] += 1
        conditions, chance = self._conditions, np.random.default_rng([self._seed, next(self._numbers)])
        exchange.delay_s = float(chance.uniform(*conditions.latency_s))
        exchange.is_lost, exchange.is_junk = bool(chance.random() < conditions.loss), conditions.junk

    async def _pass_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exchange: _Exchange
    ) -> None:
        while data := await reader.read(_PIECE):
            exchange.is_over = True
            is_first = exchange.due is None
            if is_first:
                exchange.due = self._loop.time() + exchange.delay_s
                self._count_answer(exchange)
            if exchange.is_lost or (exchange.is_junk and not is_first):
                continue
            await asyncio.sleep((exchange.due or 0.0) - self._loop.time())
            writer.write(next(self._junk) if exchange.is_junk else data)
            await writer.drain()

    def _count_answer(self, exchange: _Exchange) -> None:
        self._counts["answers"] += 1
        if exchange.is_lost or exchange.is_junk:
            self._counts["lost" if exchange.is_lost else "junk"] += 1
        elif exchange.delay_s:
            self._counts["delayed"] += 1
