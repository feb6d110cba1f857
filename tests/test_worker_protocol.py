"""What replaces TorchServe's reading of its socket reads the same, however the bytes arrive."""

from __future__ import annotations

import importlib.util
import inspect
import socket
import struct
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ts.context import Context, RequestProcessor
from ts.protocol import otf_message_handler

from carla_policy.worker_protocol import CHUNK, READERS, install, make_readers, make_receive, make_writer


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


@pytest.fixture
def service(protocol: ModuleType) -> ModuleType:
    module = ModuleType("service")
    module.create_predict_response = protocol.create_predict_response  # type: ignore[attr-defined]
    return module


def _replace(protocol: ModuleType) -> None:
    assert install(protocol, ModuleType("service"))


def test_the_functions_of_this_torchserve_are_the_known_ones_and_are_replaced(
    protocol: ModuleType, service: ModuleType
) -> None:
    names = (*READERS, "create_predict_response")
    before = [getattr(module, name) for module, name in zip((protocol, protocol, service), names, strict=True)]

    assert install(protocol, service)
    after = [getattr(module, name) for module, name in zip((protocol, protocol, service), names, strict=True)]
    assert not {*map(id, before)} & {*map(id, after)}


def test_another_torchserve_stays_as_it_is(tmp_path: Path, service: ModuleType) -> None:
    source = Path(inspect.getsourcefile(otf_message_handler) or "").read_text()
    changed = tmp_path / "changed_protocol.py"
    changed.write_text(source + "\n")
    spec = importlib.util.spec_from_file_location("changed_protocol", changed)
    assert spec
    assert spec.loader
    other = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    before, writer = {name: getattr(other, name) for name in READERS}, service.create_predict_response

    assert not install(other, service)
    assert not install(ModuleType("nothing"), service)
    assert {name: getattr(other, name) for name in READERS} == before
    assert service.create_predict_response is writer


def test_a_batch_cut_at_any_position_is_read_as_torchserve_reads_it(protocol: ModuleType) -> None:
    data = _message(2)
    expected = _read(protocol, Fragments(data))
    _replace(protocol)

    for position in range(len(data) + 1):
        assert _read(protocol, Fragments(data[:position], data[position:])) == expected


def test_a_batch_that_arrives_byte_by_byte_is_read_as_torchserve_reads_it(protocol: ModuleType) -> None:
    data = _message(3)
    expected = _read(protocol, Fragments(data))
    _replace(protocol)

    assert _read(protocol, Fragments(*(data[index : index + 1] for index in range(len(data))))) == expected


def test_values_have_the_type_that_torchserve_gives_them(protocol: ModuleType) -> None:
    _replace(protocol)
    _, (request,) = _read(protocol, Fragments(_message(1)))

    (parameter,) = request["parameters"]
    assert (type(parameter["value"]), parameter["value"]) == (bytearray, bytearray(BODY))


def test_messages_that_arrive_together_are_read_one_after_the_other(protocol: ModuleType) -> None:
    _replace(protocol)
    connection = Fragments(_message(1, b"first") + _message(2, b"second"))

    bodies = [[r["parameters"][0]["value"] for r in _read(protocol, connection)[1]] for _ in range(2)]
    assert bodies == [[b"first"], [b"second", b"second"]]


def test_a_body_of_many_pieces_comes_whole_over_a_real_socket(protocol: ModuleType) -> None:
    _replace(protocol)
    body = bytes(5 * CHUNK + 7)
    front_end, worker = socket.socketpair()
    with front_end, worker:
        sender = threading.Thread(target=front_end.sendall, args=(_message(1, body),))
        sender.start()
        _, (request,) = _read(protocol, worker)
        sender.join()
    assert request["parameters"][0]["value"] == body


def test_nothing_left_of_one_connection_is_read_from_the_next() -> None:
    read, _ = make_readers()
    assert read(Fragments(b"abcdef"), 2) == b"ab"  # type: ignore[arg-type]
    assert read(Fragments(b"uvw"), 2) == b"uv"  # type: ignore[arg-type]


def test_a_worker_ends_when_the_front_end_is_gone() -> None:
    with pytest.raises(SystemExit) as end:
        make_readers()[0](Fragments(b"abc"), 4)  # type: ignore[arg-type]
    assert end.value.code == 0


def test_a_worker_ends_when_the_front_end_is_gone_within_a_batch() -> None:
    with pytest.raises(SystemExit) as end:
        make_readers()[1](Fragments(_message(2)[1:-9]))  # type: ignore[arg-type]
    assert end.value.code == 0


HEADERS = st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=4)
ANSWERS = st.lists(
    st.tuples(
        st.text(max_size=40),
        st.binary(max_size=30),
        st.one_of(st.none(), st.sampled_from((200, 422, 503))),
        st.one_of(st.none(), st.text(st.characters(codec="ascii"), max_size=9)),  # TorchServe counts its letters
        HEADERS,
        st.one_of(st.none(), st.just("application/json")),
    ),
    max_size=5,
)


@given(answers=ANSWERS, message=st.text(max_size=20))
def test_answers_are_written_as_torchserve_writes_them(answers: list[Any], message: str) -> None:
    context = Context("policy", "", {}, 1, None, "0.12.0")
    context.request_processor = []
    for _, _, status, phrase, headers, content_type in answers:
        processor = RequestProcessor({})
        processor.report_status(status, phrase)
        processor.get_response_headers().update(headers)
        if content_type:
            processor.add_response_property("content-type", content_type)
        context.request_processor.append(processor)
    ids, bodies = dict(enumerate(answer[0] for answer in answers)), [answer[1] for answer in answers]
    original = otf_message_handler.create_predict_response
    assert make_writer(original)(bodies, ids, message, 200, context=context) == original(
        bodies, ids, message, 200, context=context
    )


@pytest.mark.parametrize(
    ("bodies", "options"),
    [
        pytest.param([{"described": 1}], {}, id="no bytes"),
        pytest.param(None, {}, id="no answers"),
        pytest.param([b"{}"], {"context": None}, id="no context"),
        pytest.param([b"{}"], {"ts_stream_next": True}, id="part of a stream"),
    ],
)
def test_what_is_no_batch_of_bytes_is_left_to_torchserve(bodies: Any, options: dict[str, Any]) -> None:
    context = Context("policy", "", {}, 1, None, "0.12.0")
    context.request_processor = [RequestProcessor({})]
    seen: list[Any] = []

    def original(*arguments: Any) -> str:
        seen.append(arguments)
        return "TorchServe's"

    given_options = {"context": context, **options}
    assert make_writer(original)(bodies, {0: "id"}, "failed", 503, **given_options) == "TorchServe's"
    assert seen[0][:4] == (bodies, {0: "id"}, "failed", 503)


class Line:
    """A connection and its clock: what it receives arrives at set times, in seconds, and asking takes a tenth."""

    def __init__(self, *arrivals: float) -> None:
        self.now = 0.0
        self.asked: list[str] = []
        self._arrivals = list(arrivals)

    def clock(self) -> float:
        return self.now

    def recv(self, _: int, flags: int = 0) -> bytes:
        self.asked.append("ask" if flags & socket.MSG_DONTWAIT else "sleep")
        self.now += 0.1
        if flags & socket.MSG_DONTWAIT and self.now < self._arrivals[0]:
            raise BlockingIOError
        self.now = max(self.now, self._arrivals.pop(0))
        return b"x"


def _asked(line: Line, busy_poll_s: float, times: int) -> list[list[str]]:
    receive = make_receive(busy_poll_s, line.clock)
    turns = []
    for _ in range(times):
        line.asked = []
        receive(line, 1)  # type: ignore[arg-type]
        turns.append(line.asked)
    return turns


def test_a_worker_asks_again_only_while_batches_follow_one_another_fast() -> None:
    line = Line(0.5, 1.0, 1.5, 9.0, 20.0, 20.5, 20.9)
    first, fast, again, slow, after, back, fast_again = _asked(line, 1.0, 7)
    assert first == ["sleep"]
    assert set(fast) == set(again) == set(fast_again) == {"ask"}
    assert slow == ["ask"] * 10 + ["sleep"], "as long as it was told to, and then no more"
    assert after == ["sleep"], "the last wait was too long"
    assert back == ["sleep"]


def test_a_worker_that_asks_lets_all_others_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    yielded: list[float] = []
    line = Line(0.5, 1.0)
    monkeypatch.setattr("os.sched_yield", lambda: yielded.append(line.now))
    _, asked = _asked(line, 1.0, 2)
    assert len(yielded) == len(asked) - 1 > 0


def test_a_worker_that_is_not_told_to_sleeps_at_once() -> None:
    assert _asked(Line(0.0, 0.0, 0.0), 0.0, 3) == [["sleep"]] * 3
