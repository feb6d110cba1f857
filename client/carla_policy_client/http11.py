"""HTTP/1.1 as far as a vehicle needs it: one request's bytes, and a reader of answers that is bounded in every way.

The reader knows nothing of sockets. It takes what arrives in pieces of any size, and raises `Miss` as soon as that can
be no answer: a malformed or oversized head, a body beyond what was asked for, a length that is not certain.
"""

from __future__ import annotations

import re
from typing import Callable, Mapping, NamedTuple

from carla_policy_client.misses import INVALID, Miss

MAX_HEAD_BYTES, MAX_LINE_BYTES = 16384, 256
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n\0]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_LENGTH = re.compile(r"[0-9]{1,12}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n\0]{0,128})?")


class Response(NamedTuple):
    """A whole answer; the names of `headers` are in lower case, those sent twice are joined by a comma."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    keep_alive: bool


def request(method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """The bytes of a request; names and values of `headers` must have been checked."""
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("ascii") + body


class ResponseReader:
    """Reads one answer; `response` is there once it is whole."""

    def __init__(self, max_body_bytes: int) -> None:
        self.response: Response | None = None
        self.has_begun = False
        self._max_body = max_body_bytes
        self._buffer = bytearray()
        self._head_bytes = 0
        self._status = 0
        self._headers: dict[str, str] = {}
        self._keep_alive = False
        self._length: int | None = None  # None while the head is being read
        self._chunks: _Chunks | None = None

    def feed(self, data: bytes) -> bool:
        """Take what has arrived; whether the answer is whole. Raises `Miss` for what can be none."""
        self.has_begun = True
        self._buffer += data
        while self._length is None:
            if not self._read_head():
                return False
        body = self._chunks.read(self._buffer) if self._chunks else self._read_plainly(self._length)
        if body is None:
            return False
        if self._buffer:
            raise _invalid(f"{len(self._buffer)} bytes behind the end of the answer")
        self.response = Response(self._status, self._headers, body, self._keep_alive)
        return True

    def _read_head(self) -> bool:
        """Whether a head was there; that of an interim answer (100 to 199) is passed over."""
        end = self._buffer.find(b"\r\n\r\n")
        if self._head_bytes + (len(self._buffer) if end < 0 else end) > MAX_HEAD_BYTES:
            raise _invalid(f"more than {MAX_HEAD_BYTES} bytes of headers")
        if end < 0:
            if not b"HTTP/1.".startswith(bytes(self._buffer[:7])):
                raise _invalid(f"no HTTP/1.1: begins with {bytes(self._buffer[:20])!r}")
            return False
        lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        self._head_bytes += end + 4
        status = _STATUS.fullmatch(lines[0])
        if status is None:
            raise _invalid(f"no HTTP/1.1: begins with {lines[0][:20]!r}")
        self._headers = _fields(lines[1:])
        self._status = int(status.group(2))
        if self._status < 200:
            if self._status == 101:
                raise _invalid("it switches protocols")
            return True
        connection = self._headers.get("connection", "").lower()
        self._keep_alive = "close" not in connection and (status.group(1) == b"1" or "keep-alive" in connection)
        self._length = self._body_length()
        return True

    def _body_length(self) -> int:
        coding, length = self._headers.get("transfer-encoding"), self._headers.get("content-length")
        if coding is not None:
            if length is not None or coding.lower() != "chunked":
                raise _invalid(f"transfer-encoding {coding!r:.40}, content-length {length!r:.40}")
            self._chunks = _Chunks(self._max_body)
            return 0
        if self._status in (204, 304):
            return 0
        if length is None or not _LENGTH.fullmatch(length):
            raise _invalid(f"content-length {length!r:.40}, so nobody knows where the answer ends")
        if int(length) > self._max_body:
            raise _invalid(f"an answer of {length} bytes, of at most {self._max_body}")
        return int(length)

    def _read_plainly(self, length: int) -> bytes | None:
        if len(self._buffer) < length:
            return None
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return body


class _Chunks:
    """A body in chunks of a stated size each, and lines behind the last that nobody needs."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._body = bytearray()
        self._step: Callable[[bytearray], bool] = self._read_size
        self._left = 0
        self._trailer_bytes = 0

    def read(self, buffer: bytearray) -> bytes | None:
        """Take from `buffer` what is there; the body once it is whole."""
        while self._step(buffer):
            if self._step == self._done:
                return bytes(self._body)
        return None

    def _read_size(self, buffer: bytearray) -> bool:
        line = _line(buffer)
        if line is None:
            return False
        size = _CHUNK.fullmatch(line)
        if size is None:
            raise _invalid(f"a chunk of size {line[:20]!r}")
        self._left = int(size.group(1), 16)
        if len(self._body) + self._left > self._max_bytes:
            raise _invalid(f"an answer of more than {self._max_bytes} bytes")
        self._step = self._read_data if self._left else self._read_trailer
        return True

    def _read_data(self, buffer: bytearray) -> bool:
        taken = buffer[: self._left]
        self._body += taken
        self._left -= len(taken)
        del buffer[: len(taken)]
        if not self._left:
            self._step = self._read_end
        return not self._left

    def _read_end(self, buffer: bytearray) -> bool:
        line = _line(buffer)
        if line is None:
            return False
        if line:
            raise _invalid("a chunk that is longer than it says")
        self._step = self._read_size
        return True

    def _read_trailer(self, buffer: bytearray) -> bool:
        line = _line(buffer)
        if line is None:
            return False
        self._trailer_bytes += len(line)
        if self._trailer_bytes > MAX_HEAD_BYTES:
            raise _invalid(f"more than {MAX_HEAD_BYTES} bytes of headers")
        if not line:
            self._step = self._done
        return True

    def _done(self, _: bytearray) -> bool:
        return True


def _line(buffer: bytearray) -> bytes | None:
    """A line taken from the front of `buffer`, without its end; `None` if it is not whole yet."""
    end = buffer.find(b"\r\n")
    if max(end, len(buffer) if end < 0 else 0) > MAX_LINE_BYTES:
        raise _invalid(f"a line of a chunk of more than {MAX_LINE_BYTES} bytes")
    if end < 0:
        return None
    line = bytes(buffer[:end])
    del buffer[: end + 2]
    return line


def _fields(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise _invalid(f"a header {line[:40]!r}")
        name, value = field.group(1).decode("ascii").lower(), field.group(2).decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _invalid(what: str) -> Miss:
    return Miss(INVALID, f"not an answer: {what}")
