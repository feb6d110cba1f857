"""Requests are traced where OpenTelemetry's variables ask for it, by a real server to a real collector."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra `tracing` is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `tracing` is not installed")

from tests.otlp_collector import Collector, Span
from tests.servers import ServeProcess

VERSION = "v1.9.0"
GOOD = {"observations": [{"speed": 1.0, "steering": 0.0, "sensors": [0.0] * 5}] * 2}
ROUTE = "/predictions/carla_policy/{version}"
CALLER = "00f067aa0ba902b7"
SERVER_KIND, INTERNAL_KIND = 2, 1
ERROR = 2
STAGES = ["parse", "preprocess", "infer", "decide", "encode"]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(small_store: Path, collector: Collector) -> Iterator[ServeProcess]:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_SERVICE_NAME": "vehicle-policy",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with ServeProcess(small_store, VERSION, environment=environment) as server:
        yield server


def trace_of(number: int) -> str:
    return f"{number:032x}"


def parent(number: int, flags: str = "01", version: str = "00") -> str:
    return f"{version}-{trace_of(number)}-{CALLER}-{flags}"


def spans_of(collector: Collector, number: int, count: int) -> dict[str, Span]:
    found = collector.wait_for(lambda span: span.trace_id == trace_of(number), count)
    assert len(found) == count
    return {span.name: span for span in found}


def log_events(server: ServeProcess) -> list[dict[str, Any]]:
    text = Path(server.ready["run_dir"], "logs", "torchserve.log").read_text()
    return [json.loads(line) for line in text.split("\n") if line]


def test_request_has_a_span_below_the_caller_s_and_one_for_each_stage(
    traced: ServeProcess, collector: Collector
) -> None:
    before = time.time_ns()
    answer = traced.post(VERSION, GOOD, traceparent=parent(1), x_request_id="car-7")
    spans = spans_of(collector, 1, 1 + len(STAGES))
    server = spans[f"POST {ROUTE}"]
    assert (server.parent_id, server.kind, server.status) == (CALLER, SERVER_KIND, 0)
    assert server.attributes | {"http.response.body.size": 0} == {
        "http.request.method": "POST",
        "http.route": ROUTE,
        "url.scheme": "http",
        "url.path": f"/predictions/carla_policy/{VERSION}",
        "http.response.status_code": 200,
        "http.request.body.size": len(json.dumps(GOOD)),
        "http.response.body.size": 0,
        "carla_policy.version": VERSION,
        "carla_policy.request_id": answer.headers["x-request-id"],
        "carla_policy.client_request_id": "car-7",
        "carla_policy.batch.requests": 1,
        "carla_policy.rows": 2,
        "carla_policy.deterministic": True,
        "carla_policy.interventions.count": 0,
    }
    assert server.resource["service.name"] == "vehicle-policy"
    assert server.resource["deployment.environment.name"] == "test"
    stages = [spans[name] for name in STAGES]
    assert {(span.parent_id, span.kind) for span in stages} == {(server.span_id, INTERNAL_KIND)}
    times = [server.start, *(time for span in stages for time in (span.start, span.end)), server.end]
    assert times == sorted(times)
    assert before < times[0] < times[-1] < time.time_ns()


def test_answer_names_the_server_s_own_span_of_the_caller_s_trace(traced: ServeProcess, collector: Collector) -> None:
    answer = traced.post(VERSION, GOOD, traceparent=parent(2), tracestate="vendor=value,other=1")
    server = spans_of(collector, 2, 6)[f"POST {ROUTE}"]
    assert answer.headers["traceparent"] == f"00-{trace_of(2)}-{server.span_id}-01"
    assert answer.headers["tracestate"] == server.state == "vendor=value,other=1"


def test_trace_that_the_caller_does_not_sample_is_returned_and_not_sent(
    traced: ServeProcess, collector: Collector
) -> None:
    answer = traced.post(VERSION, GOOD, traceparent=parent(3, flags="00"))
    match = re.fullmatch(rf"00-{trace_of(3)}-([0-9a-f]{{16}})-00", answer.headers["traceparent"])
    assert match
    assert match[1] != CALLER
    traced.post(VERSION, GOOD, traceparent=parent(4))
    spans_of(collector, 4, 6)
    assert [span for span in collector.spans if span.trace_id == trace_of(3)] == []


@pytest.mark.parametrize(
    "broken",
    [
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{trace_of(5)}-{'0' * 16}-01",
        parent(5, version="ff"),
        parent(5) + "-more",
        parent(5).upper().replace("00-", "0G-", 1),
        parent(5)[:-1],
    ],
)
def test_broken_traceparent_begins_a_new_trace(traced: ServeProcess, broken: str) -> None:
    answer = traced.post(VERSION, GOOD, traceparent=broken)
    begun = re.fullmatch(r"00-([0-9a-f]{32})-[0-9a-f]{16}-01", answer.headers["traceparent"])
    assert begun
    assert begun[1] not in (trace_of(5), "0" * 32)


def test_traceparent_of_a_later_version_is_read_as_far_as_it_is_known(
    traced: ServeProcess, collector: Collector
) -> None:
    answer = traced.post(VERSION, GOOD, traceparent=parent(6, version="cc") + "-what-the-future-brings")
    assert answer.headers["traceparent"].startswith(f"00-{trace_of(6)}-")
    assert spans_of(collector, 6, 6)[f"POST {ROUTE}"].parent_id == CALLER


def test_time_in_a_queue_is_a_span_of_its_own(traced: ServeProcess, collector: Collector) -> None:
    start = f"t={int(time.time() * 1e3) - 50}"
    traced.post(VERSION, GOOD, traceparent=parent(7), x_request_start=start)
    spans = spans_of(collector, 7, 7)
    assert spans["queue"].start == spans[f"POST {ROUTE}"].start
    assert spans["queue"].end == spans["parse"].start
    assert spans["queue"].end - spans["queue"].start > 45e6


def test_failing_request_is_found_in_answer_log_and_trace(traced: ServeProcess, collector: Collector) -> None:
    """The client's mistake is an error to it, and none of the server's."""
    answer = traced.post(VERSION, {"observations": []}, traceparent=parent(8), x_request_id="car-8")
    request_id = answer.json()["requestId"]
    span = collector.wait_for(lambda span: span.attributes.get("carla_policy.request_id") == request_id)[0]
    assert span.trace_id == trace_of(8)
    assert (span.status, span.attributes["http.response.status_code"]) == (0, 422)
    assert span.attributes["carla_policy.error.type"] == answer.json()["type"]
    (event,) = [event for event in log_events(traced) if event.get("request_id") == request_id]
    assert (event["event"], event["status"], event["client_request_id"]) == ("request_error", 422, "car-8")
    assert (event["trace_id"], event["span_id"]) == (span.trace_id, span.span_id)


def test_sub_resource_is_traced_by_its_name_and_an_unknown_one_without(
    traced: ServeProcess, collector: Collector
) -> None:
    traced.get(VERSION, "healthz")
    traced.get(VERSION, "canaryX")
    collector.wait_for(lambda span: span.name == f"GET {ROUTE}/healthz")
    collector.wait_for(lambda span: span.name == f"GET {ROUTE}/{{resource}}")
    assert not any(b"canaryX" in body for body in collector.bodies)


def test_nothing_of_a_request_but_its_ids_is_in_its_spans(traced: ServeProcess, collector: Collector) -> None:
    canaries = {"authorization": "Bearer canaryY", "cookie": "canaryY", "x_policy_thing": "canaryY"}
    traced.post(VERSION, b'{"canaryY": 1}', traceparent=parent(9), **canaries)
    traced.post(VERSION, GOOD, traceparent=parent(10), x_request_id="canaryY\u00e9".encode(), **canaries)
    spans_of(collector, 10, 6)
    assert not any(b"canaryY" in body for body in collector.bodies)


def test_collector_that_is_down_is_told_once_and_harms_nobody(small_store: Path) -> None:
    with Collector() as gone:
        url = gone.url
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    with ServeProcess(small_store, VERSION, environment=environment) as server:
        deadline = time.monotonic() + 30
        while True:
            assert server.post(VERSION, GOOD).status_code == 200
            told = [event for event in log_events(server) if event["event"] == "tracing_trouble"]
            if told:
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for _ in range(30):
            assert server.post(VERSION, GOOD).status_code == 200
            time.sleep(0.05)
        workers = {event["pid"] for event in log_events(server) if event["event"] == "worker_ready"}
        told = [event for event in log_events(server) if event["event"] == "tracing_trouble"]
    assert len(told) <= len(workers)
