"""W3C Trace Context, as the specification's own examples and its refusals have it."""

from __future__ import annotations

import pytest

from carla_policy.trace_context import TraceContext, echoed_id, is_state, parse

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_valid_traceparent_is_read() -> None:
    assert parse({"traceparent": f"00-{TRACE}-{CALLER}-01"}) == TraceContext(TRACE, CALLER, 1)
    assert parse({"traceparent": f" 00-{TRACE}-{CALLER}-00\t"}) == TraceContext(TRACE, CALLER, 0)
    unknown_flags = parse({"traceparent": f"00-{TRACE}-{CALLER}-ff"})
    assert unknown_flags
    assert unknown_flags.is_sampled


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{CALLER}-01",
        f"00-{TRACE[:-1]}-{CALLER}-01",
        f"00-{TRACE}0-{CALLER}-01",
        f"00-{TRACE}-{CALLER}-1",
        f"00-{TRACE}-{CALLER}-01-",
        f"00-{TRACE}-{CALLER}-01-more",
        f"00-{TRACE}-{CALLER}-0g",
        f"ff-{TRACE}-{CALLER}-01",
        f"FF-{TRACE}-{CALLER}-01",
        f"0-{TRACE}-{CALLER}-01",
        f"00_{TRACE}_{CALLER}_01",
        f"cc-{TRACE}-{CALLER}-01more",
        f"cc-{TRACE}-{CALLER}-01-\x1b[2J",
        f"00-{TRACE}-{CALLER}-01\n",
        f"00-\u0664bf92f3577b34da6a3ce929d0e0e473-{CALLER}-01",
        f"cc-{TRACE}-{CALLER}-01-{'a' * 1_000_000}",
    ],
)
def test_broken_traceparent_is_ignored(text: str) -> None:
    assert parse({"traceparent": text}) is None


def test_traceparent_of_a_future_version_is_read_up_to_its_flags() -> None:
    for more in ("", "-", "-what-comes"):
        assert parse({"traceparent": f"cc-{TRACE}-{CALLER}-01{more}"}) == TraceContext(TRACE, CALLER, 1)


def test_state_without_a_traceparent_is_nothing() -> None:
    assert parse({"tracestate": "a=1"}) is None


@pytest.mark.parametrize(
    "state", ["", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "a=1, b=2 ,,\tc=3", "0tenant@vendor=x y", "a*/-_=!"]
)
def test_valid_state_is_passed_on(state: str) -> None:
    context = parse({"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": state})
    assert context
    assert context.state == state


@pytest.mark.parametrize(
    "state",
    ["a", "a=", "=1", "A=1", "a=1,a=2", "a=1=2", "a=b\u00e9", "a=1\r\nset-cookie: b", "a" * 600, "a=" + "b" * 300],
)
def test_broken_state_is_dropped_and_the_trace_goes_on(state: str) -> None:
    assert not is_state(state)
    assert parse({"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": state}) == TraceContext(TRACE, CALLER, 1)


def test_state_of_more_vendors_than_are_allowed_is_dropped() -> None:
    assert is_state(",".join(f"k{number}=1" for number in range(32)))
    assert not is_state(",".join(f"k{number}=1" for number in range(33)))


def test_client_s_id_is_repeated_only_if_it_is_short_and_plain() -> None:
    assert echoed_id({"x-request-id": "car-7:42"}) == "car-7:42"
    for own in ("", "a" * 129, "a b", 'a"b', "a\nb", "\u00e9", "\ud800"):
        assert echoed_id({"x-request-id": own}) is None
