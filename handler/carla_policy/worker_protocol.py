"""Read what the front end sends and write what it gets back in one go, instead of a call for each field.

TorchServe's worker asks the kernel for each field of a request, and builds its answer a few bytes at a time: at a batch
of 64 requests that is most of what a worker does. TorchServe 0.12.0 is the last release and has no setting for it, so
three of its functions are replaced, but only where their module is, letter for letter, the one that this was written
for.
"""

from __future__ import annotations

import inspect
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

from carla_policy.digests import sha256

KNOWN_SOURCE = "sha256:83e82dc62b4a95a362efe4518786c6b389b895b85acaf37721aaff042ec9989a"
"""Of `ts.protocol.otf_message_handler`."""
READERS = ("_retrieve_buffer", "_retrieve_inference_msg")
CHUNK = 1 << 16
MAX_BUSY_POLL_US = 10_000

Receive = Callable[[socket.socket, int], bytes]
Read = Callable[[socket.socket, int], bytearray]
ReadBatch = Callable[[socket.socket], list[dict[str, Any]]]
_LENGTH = struct.Struct("!i")
_read_length = _LENGTH.unpack_from
_END = _LENGTH.pack(-1)


def install(protocol: ModuleType, service: ModuleType, busy_poll_s: float = 0.0) -> bool:
    """Replace functions of `ts.protocol.otf_message_handler` and `ts.service`; False where they stay as they are.

    `busy_poll_s` is for `make_readers`. Bodies are then bytes whatever their type, as with TorchServe's own
    `TS_DECODE_INPUT_REQUEST=false`.
    """
    try:
        source = inspect.getsource(protocol)
    except (OSError, TypeError):
        return False
    if sha256(source.encode()) != KNOWN_SOURCE:
        return False
    vars(protocol).update(zip(READERS, make_readers(busy_poll_s), strict=True))
    vars(service)["create_predict_response"] = make_writer(protocol.create_predict_response)
    return True


def make_readers(busy_poll_s: float = 0.0) -> tuple[Read, ReadBatch]:
    """Functions that return the next bytes of a connection, and the next batch of requests.

    Both end the process when the connection is closed, and may read ahead: whoever reads it has to read all of it
    through them from then on. Before they sleep they ask the kernel for `busy_poll_s`, if the last wait was shorter:
    waking up takes as long as a good part of a request, and what was in the processor's caches is gone.
    """
    pending, start, source = bytearray(), 0, None
    receive = make_receive(busy_poll_s)

    def fill(connection: socket.socket, length: int) -> None:
        """Have `length` bytes from `start` on, which becomes 0."""
        nonlocal pending, start
        pending, start = pending[start:], 0
        while len(pending) < length:
            part = receive(connection, max(CHUNK, length - len(pending)))
            if not part:
                logging.info("Frontend disconnected.")
                sys.exit(0)
            pending += part

    def read(connection: socket.socket, length: int) -> bytearray:
        nonlocal pending, start, source
        if connection is not source:
            pending, start, source = bytearray(), 0, connection
        if length <= 0:
            return bytearray()
        if start + length > len(pending):
            fill(connection, length)
        start += length
        return pending[start - length : start]

    def read_batch(connection: socket.socket) -> list[dict[str, Any]]:
        nonlocal start
        batch: list[dict[str, Any]] = []
        while True:
            fields, end = _split(pending, start)
            if fields is None:
                fill(connection, end - start)
                continue
            start = end
            if not fields:
                return batch
            batch.append(_request(fields))

    return read, read_batch


def make_receive(busy_poll_s: float, clock: Callable[[], float] = time.perf_counter) -> Receive:
    """As `socket.recv`, which does not sleep for up to `busy_poll_s` while it is used as often as that.

    Meanwhile it lets all others go first who want the processor.
    """
    polls = False

    def receive(connection: socket.socket, size: int) -> bytes:
        nonlocal polls
        began = clock()
        while polls and clock() - began < busy_poll_s:
            try:
                return connection.recv(size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                os.sched_yield()
        part = connection.recv(size)
        polls = clock() - began < busy_poll_s
        return part

    return receive


def _split(data: bytearray, start: int) -> tuple[list[bytearray | None] | None, int]:
    """The fields of a request from `start` on, with `None` at the end of each of its lists, and where they end.

    At the end of a batch there are none; where `data` ends too soon it is `None`, and up to where more is needed.
    """
    fields: list[bytearray | None] = []
    lists = -1
    try:
        while lists < 2:
            (length,) = _read_length(data, start)
            start += 4
            if length >= 0:
                end = start + length
                fields.append(data[start:end])
                start = end
                if lists < 0:  # that was the request's id; its headers and its parameters follow
                    lists = 0
            elif lists < 0:
                break
            else:
                fields.append(None)
                lists += 1
    except struct.error:
        return None, start + 4
    return fields, start


def _request(fields: Iterable[Any]) -> dict[str, Any]:
    """As TorchServe has it; keys and media types of parameters are text."""
    following = iter(fields)
    request_id, until_end = next(following), partial(iter, following.__next__, None)
    return {
        "requestId": request_id,
        "headers": [{"name": name, "value": next(following)} for name in until_end()],
        "parameters": [
            {"name": name.decode(), "contentType": next(following).decode(), "value": next(following)}
            for name in until_end()
        ],
    }


def make_writer(original: Callable[..., Any]) -> Callable[..., Any]:
    """`create_predict_response`, which leaves to the `original` all but a batch of answers in bytes."""

    def create_predict_response(
        ret: Sequence[Any] | None,
        req_id_map: Mapping[int, str],
        message: str,
        code: int,
        context: Any = None,
        ts_stream_next: bool = False,
    ) -> Any:
        if ret is None or context is None or ts_stream_next or context.stopping_criteria:
            return original(ret, req_id_map, message, code, context, ts_stream_next)
        parts = [_LENGTH.pack(code), _text(message)]
        for index, request_id in req_id_map.items():
            processor, body = context.request_processor[index], ret[index]
            if type(body) is not bytes:
                return original(ret, req_id_map, message, code, context)
            headers = processor.get_response_headers()
            status, phrase = processor.get_response_status_code(), processor.get_response_status_phrase()
            parts += (
                _text(request_id),
                _text(headers.get("content-type") or ""),
                _LENGTH.pack(200 if status is None else status),
                _text(phrase or ""),
                _LENGTH.pack(len(headers)),
            )
            for name, value in headers.items():
                parts += (_text(name), _text(value))
            parts += (_LENGTH.pack(len(body)), body)
        parts.append(_END)
        return b"".join(parts)

    return create_predict_response


@lru_cache(maxsize=256)
def _text(text: str) -> bytes:
    """With its length before it. Most texts of an answer are those of the one before."""
    encoded = text.encode("utf-8")
    return _LENGTH.pack(len(encoded)) + encoded
