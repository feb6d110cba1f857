"""The spans of a batch, without a server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `tracing` is not installed")

from carla_policy.batch import Request
from carla_policy.loading import LoadedPolicy
from carla_policy.service import PolicyService
from carla_policy.spans import SpanTracer
from carla_policy.tracing import Trace, start_tracing
from carla_policy.wire import JsonReader
from carla_policy_tools.client import request_body
from tests.otlp_collector import Collector
from tests.synthetic import observations

GOOD = json.dumps(request_body(observations(2, 5, seed=5))).encode()
URL = "OTEL_EXPORTER_OTLP_ENDPOINT"


def parent(number: int) -> dict[str, str]:
    return {"traceparent": f"00-{number:032x}-00f067aa0ba902b7-01"}


def record(tracer: SpanTracer, service: PolicyService, requests: Sequence[Request]) -> Sequence[Trace]:
    batch = service.infer(service.parse(requests))
    inferred = time.perf_counter()
    return tracer.record(batch, service.encode(batch), inferred)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture
def tracer(collector: Collector, synthetic: LoadedPolicy, monkeypatch: pytest.MonkeyPatch) -> Iterator[SpanTracer]:
    monkeypatch.setenv(URL, collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    started = start_tracing(synthetic, "carla_policy")
    assert isinstance(started, SpanTracer)
    yield started
    started.close()


def test_batch_mates_have_spans_and_stages_of_their_own(
    tracer: SpanTracer, collector: Collector, synthetic: LoadedPolicy
) -> None:
    requests = [Request(GOOD, parent(number), request_id=f"id-{number}") for number in (1, 2)]
    traces = record(tracer, PolicyService(synthetic), requests)
    spans = collector.wait_for(lambda _: True, 12)
    assert [trace.trace_id for trace in traces] == [f"{number:032x}" for number in (1, 2)]
    for trace in traces:
        own = [span for span in spans if span.trace_id == trace.trace_id]
        assert len(own) == 6
        (server,) = [span for span in own if span.span_id == trace.span_id]
        assert server.attributes["carla_policy.batch.requests"] == 2
        assert {span.parent_id for span in own} == {trace.span_id, "00f067aa0ba902b7"}
    first, second = ([(s.name, s.start, s.end) for s in spans if s.trace_id == t.trace_id] for t in traces)
    assert first == second
    assert len({span.span_id for span in spans}) == 12


def test_fault_of_the_service_is_an_error_of_the_span(
    tracer: SpanTracer, collector: Collector, synthetic: LoadedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JsonReader, "draft", lambda *_: 1 / 0)
    record(tracer, PolicyService(synthetic), [Request(GOOD, request_id="id-1")])
    (server,) = collector.wait_for(lambda span: span.attributes.get("carla_policy.request_id") == "id-1")
    assert (server.status, server.parent_id) == (2, "")
    assert server.attributes["http.response.status_code"] == 500
    assert server.attributes["error.type"] == server.attributes["carla_policy.error.type"] == "INTERNAL"


def test_sampler_is_the_environment_s(
    collector: Collector, synthetic: LoadedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL, collector.url)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    tracer = start_tracing(synthetic, "carla_policy")
    assert isinstance(tracer, SpanTracer)
    requests = [Request(GOOD, request_id="none"), Request(GOOD, parent(1), request_id="sampled")]
    unsampled, sampled = record(tracer, PolicyService(synthetic), requests)
    tracer.close()
    assert unsampled.headers["traceparent"].endswith("-00")
    assert sampled.headers["traceparent"].endswith("-01")
    assert {span.trace_id for span in collector.spans} == {sampled.trace_id}


def test_tracing_that_fails_harms_no_request_and_is_told_once(
    tracer: SpanTracer, synthetic: LoadedPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    service = PolicyService(synthetic)
    batch = service.infer(service.parse([Request(GOOD)]))
    answers = service.encode(batch)
    for _ in range(3):
        assert tracer.record(replace(batch, stage_ms=None), answers, time.perf_counter()) == ()
    assert caplog.text.count("requests are not traced") == 1
