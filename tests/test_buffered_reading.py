"""What replaces TorchServe's reading of its socket reads the same, however the bytes arrive."""

from __future__ import annotations

import importlib.util
import socket
import struct
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from carla_policy.buffered_reading import CHUNK, REPLACED, install, make_retrieve


def _text(content: bytes) -> bytes:
    return struct.pack("!i", len(content)) + content


END = struct.pack("!i", -1)
BODY = bytes(range(256))


def _message(requests: int, body: bytes = BODY) -> bytes:
    """A batch as the front end sends it."""
    one = b"".join(
        [
            _text(b"request-1"),
            *(_text(name) + _text(value) for name, value in ((b"content-type", b"application/json"), (b"empty", b""))),
            END,
            _text(b"body") + _text(b"application/octet-stream") + _text(body),
            END,
        ]
    )
    return b"I" + requests * one + END


class Fragments:
    """A connection on which the bytes arrive in pieces, each as one packet."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [piece for piece in pieces if piece]

    def recv(self, size: int) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces[0][:size]
        self._pieces[0] = self._pieces[0][size:]
        if not self._pieces[0]:
            del self._pieces[0]
        return piece


@pytest.fixture
def protocol() -> ModuleType:
    """TorchServe's module as it comes, whatever a handler in this process has done to the one that is imported."""
    spec = importlib.util.find_spec("ts.protocol.otf_message_handler")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _read(protocol: ModuleType, connection: Any) -> Any:
    return protocol.retrieve_msg(connection)


def test_the_function_of_this_torchserve_is_the_known_one_and_is_replaced(protocol: ModuleType) -> None:
    original = getattr(protocol, REPLACED)

    assert install(protocol)
    assert getattr(protocol, REPLACED) is not original


def test_another_function_stays_as_it_is() -> None:
    def _retrieve_buffer(_connection: object, _length: int) -> bytes:
        return b""

    other = SimpleNamespace(_retrieve_buffer=_retrieve_buffer)

    assert not install(other)  # type: ignore[arg-type]
    assert other._retrieve_buffer is _retrieve_buffer
    assert not install(SimpleNamespace())  # type: ignore[arg-type]


def test_a_batch_cut_at_any_position_is_read_as_torchserve_reads_it(protocol: ModuleType) -> None:
    data = _message(2)
    expected = _read(protocol, Fragments(data))
    assert install(protocol)

    for position in range(len(data) + 1):
        assert _read(protocol, Fragments(data[:position], data[position:])) == expected


def test_a_batch_that_arrives_byte_by_byte_is_read_as_torchserve_reads_it(protocol: ModuleType) -> None:
    data = _message(3)
    expected = _read(protocol, Fragments(data))
    assert install(protocol)

    assert _read(protocol, Fragments(*(data[index : index + 1] for index in range(len(data))))) == expected


def test_values_have_the_type_that_torchserve_gives_them(protocol: ModuleType) -> None:
    assert install(protocol)
    _, (request,) = _read(protocol, Fragments(_message(1)))

    (parameter,) = request["parameters"]
    assert (type(parameter["value"]), parameter["value"]) == (bytearray, bytearray(BODY))


def test_messages_that_arrive_together_are_read_one_after_the_other(protocol: ModuleType) -> None:
    assert install(protocol)
    connection = Fragments(_message(1, b"first") + _message(2, b"second"))

    bodies = [[r["parameters"][0]["value"] for r in _read(protocol, connection)[1]] for _ in range(2)]
    assert bodies == [[b"first"], [b"second", b"second"]]


def test_a_body_of_many_pieces_comes_whole_over_a_real_socket(protocol: ModuleType) -> None:
    assert install(protocol)
    body = bytes(5 * CHUNK + 7)
    front_end, worker = socket.socketpair()
    with front_end, worker:
        sender = threading.Thread(target=front_end.sendall, args=(_message(1, body),))
        sender.start()
        _, (request,) = _read(protocol, worker)
        sender.join()
    assert request["parameters"][0]["value"] == body


def test_nothing_left_of_one_connection_is_read_from_the_next() -> None:
    retrieve = make_retrieve()
    assert retrieve(Fragments(b"abcdef"), 2) == b"ab"  # type: ignore[arg-type]
    assert retrieve(Fragments(b"uvw"), 2) == b"uv"  # type: ignore[arg-type]


def test_a_worker_ends_when_the_front_end_is_gone() -> None:
    with pytest.raises(SystemExit) as end:
        make_retrieve()(Fragments(b"abc"), 4)  # type: ignore[arg-type]
    assert end.value.code == 0
