"""Log events: JSON objects of bounded length, a line each, whatever is in them."""

from __future__ import annotations

import io
import json
import logging
import re
import time
from typing import Any

import pytest

from carla_policy.events import (
    MAX_LINE,
    METRICS_LOGGER,
    REQUESTS_LOGGER,
    Allowance,
    FloodFilter,
    JsonFormatter,
    level_of,
    tell,
    without_values,
)
from carla_policy.worker_events import WorkerEvents


class Logged:
    """A logger of events, and the lines that it has written."""

    def __init__(self, name: str = "carla_policy.test") -> None:
        self._stream = io.StringIO()
        self.handler = logging.StreamHandler(self._stream)
        self.formatter = JsonFormatter({"version": "v1.0.0", "pid": 7})
        self.handler.setFormatter(self.formatter)
        self.logger = logging.Logger(name, logging.INFO)
        self.logger.addHandler(self.handler)

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def logged() -> Logged:
    return Logged()


def test_event_says_when_how_grave_what_and_of_which_worker(logged: Logged) -> None:
    before = time.time()
    tell(logged.logger, logging.WARNING, "request_error", "answered 422", status=422, trace_id=None)
    (event,) = logged.events
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("time"))
    assert time.time() - before < 60
    assert event == {
        "level": "WARN",
        "event": "request_error",
        "message": "answered 422",
        "logger": "carla_policy.test",
        "version": "v1.0.0",
        "pid": 7,
        "status": 422,
    }


def test_time_is_utc_to_the_millisecond() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "text", None, None)
    record.created = 1_700_000_000.9996
    assert json.loads(JsonFormatter().format(record))["time"] == "2023-11-14T22:13:20.999Z"


HOSTILE = {
    "a line that looks like an event": '"}\n{"time":"2026-01-01T00:00:00.000Z","level":"ERROR","event":"forged"}',
    "every control character": "".join(map(chr, range(32))) + "\x7f\x85\x9b",
    "other ends of lines": "a\u2028b\u2029c\x0bd\x1ce",
    "half a surrogate pair": "\ud800 and \udfff",
    "escape sequences": "\x1b[2J\x1b]0;title\x07",
    "format characters": "%s %d %(name)s {0} ${env:HOME} %m",
    "right to left": "\u202eabc\U000e0041",
    "megabytes": "\u00e9" * 3_000_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_text_breaks_a_line_or_forges_an_event(logged: Logged, text: str) -> None:
    tell(logged.logger, logging.ERROR, "request_error", text, name=text, names=[text] * 3, own={text: text})
    lines = logged.text.splitlines()
    assert len(lines) == 1
    assert lines[0].isascii()
    assert lines[0].isprintable()
    assert len(lines[0]) <= MAX_LINE
    event = json.loads(lines[0])
    assert event["event"] == "request_error"
    json.dumps(event).encode().decode()
    assert "\ud800" not in event["message"]


def test_field_cannot_take_the_place_of_what_every_event_has(logged: Logged) -> None:
    logged.logger.info("text", extra={"event": "real", "fields": {"event": "forged", "time": 0, "level": "FORGED"}})
    (event,) = logged.events
    assert (event["event"], event["level"]) == ("real", "INFO")


def test_values_that_are_no_json_are_written_as_what_every_reader_takes(logged: Logged) -> None:
    deep: list[Any] = []
    deep.append(deep)
    values = {"nan": float("nan"), "infinite": float("-inf"), "huge": 10**400, "bytes": b"x", "many": list(range(1000))}
    tell(logged.logger, logging.INFO, "x", "y", deep=deep, **values)
    (event,) = logged.events
    assert (event["nan"], event["infinite"], event["bytes"]) == (None, None, "bytes")
    assert event["huge"].startswith("1000")
    assert len(event["many"]) == 50


def test_exception_is_one_line_and_its_words_are_left_out_once_requests_come(logged: Logged) -> None:
    def fail() -> None:
        raise ValueError("canary\nof several lines")

    for quoting in (True, False):
        logged.formatter.quotes_exceptions = quoting
        try:
            fail()
        except ValueError:
            logged.logger.exception("it failed")
    quoted, unquoted = logged.events
    assert quoted["error"]["message"] == "canary\nof several lines"
    assert unquoted["error"]["type"] == "ValueError"
    assert re.fullmatch(r"tests/test_events\.py:\d+ fail", unquoted["error"]["stack"][-1])
    assert "canary" not in json.dumps(unquoted)


def test_metrics_stay_the_lines_that_torchserve_looks_for() -> None:
    logged = Logged(METRICS_LOGGER)
    logged.logger.info("[METRICS]policy_rows_total.unit:1|#l:v|#type:COUNTER")
    assert logged.text == "[METRICS]policy_rows_total.unit:1|#l:v|#type:COUNTER\n"


def test_message_whose_arguments_do_not_fit_is_told_as_it_is(logged: Logged) -> None:
    logged.logger.info("%d %d", "one")
    assert logged.events[0]["message"] == "%d %d"


def test_flood_of_one_kind_is_cut_off_and_counted_and_others_pass(logged: Logged) -> None:
    logged.handler.addFilter(FloodFilter(per_s=1e-9, burst=3))
    for number in range(100):
        logged.logger.info("the same %d", number)
    logged.logger.info("another")
    assert [event["message"] for event in logged.events] == ["the same 0", "the same 1", "the same 2", "another"]


def test_events_of_requests_are_not_held_back_twice() -> None:
    logged = Logged(REQUESTS_LOGGER)
    logged.handler.addFilter(FloodFilter(per_s=1e-9, burst=1))
    for _ in range(10):
        tell(logged.logger, logging.ERROR, "request_error", "answered 500")
    assert len(logged.events) == 10


@pytest.mark.parametrize("level", ["debug", "critical"])
def test_reason_of_a_failed_load_is_told_at_every_level(level: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(level_of(level), "carla_policy"):
        caplog.clear()
        WorkerEvents.tell_failed_load(object.__new__(WorkerEvents), ValueError("model.pt: content has changed"))
    assert [record.getMessage() for record in caplog.records] == ["model.pt: content has changed"]


def test_next_event_of_a_kind_says_how_many_were_not_told(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    logged.handler.addFilter(FloodFilter(per_s=1.0, burst=2))
    for _ in range(10):
        tell(logged.logger, logging.INFO, "x", "y")
    now = 1.5
    tell(logged.logger, logging.INFO, "x", "y")
    assert [event.get("suppressed_before") for event in logged.events] == [None, None, 8]


def test_kinds_without_end_do_not_fill_the_memory() -> None:
    logged = Logged()
    logged.handler.addFilter(FloodFilter(per_s=1e-9, burst=1))
    for number in range(1_000):
        logged.logger.info(f"kind {number}")
    assert len(logged.events) == FloodFilter.MAX_KINDS + 1


def test_allowance_refills_with_time_and_not_beyond_its_burst() -> None:
    allowance = Allowance(per_s=2.0, burst=3)
    assert [allowance.take(0.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert (allowance.settle(), allowance.settle()) == (2, None)
    assert [allowance.take(0.5) for _ in range(2)] == [True, False]
    assert [allowance.take(1_000.0) for _ in range(4)] == [True] * 3 + [False]


@pytest.mark.parametrize(
    ("name", "level"), [("debug", 10), ("Warning", 30), ("WARN", 30), ("critical", 50), ("", 20), (None, 20), ("x", 20)]
)
def test_level_is_named_in_any_case_and_is_info_otherwise(name: str | None, level: int) -> None:
    assert level_of(name) == level


def test_words_of_a_network_keep_shapes_and_lose_values() -> None:
    said = "mat1 and mat2 shapes cannot be multiplied (1x7 and 5x2), got [0.25, -1e-05, 3.] in v1.2 at line 12"
    kept = "mat1 and mat2 shapes cannot be multiplied (1x7 and 5x2), got [#, #, #] in v# at line 12"
    assert without_values(said) == kept
