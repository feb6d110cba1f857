"""OpenTelemetry spans of requests; imports `opentelemetry`, so only `tracing` imports this, where it is wanted.

A request's span is the server's: `POST /predictions/<model>/{version}`, with a child for each stage. Requests that were
answered in one batch went through its stages together: each has children of the same times in its own trace, and
`carla_policy.batch.requests` says among how many. Stages follow one another, so that their lengths give their times.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from carla_policy import episodes
from carla_policy.answers import Answer, Outcome
from carla_policy.batch import STAGES, Batch, Request, error_type
from carla_policy.card import ModelCard
from carla_policy.deadline import queued_s
from carla_policy.events import OWN_LOGGER, tell
from carla_policy.otel_environment import EXPORT_DELAY, export_delay_s
from carla_policy.resources import NAMES
from carla_policy.trace_context import TRACEPARENT, TRACESTATE, echoed_id, parse
from carla_policy.tracing import Trace

DEFAULT_SERVICE_NAME = "carla-policy"

_OTHERS = logging.getLogger("opentelemetry")

logger = logging.getLogger(f"{OWN_LOGGER}.tracing")


class SpanTracer:
    """Makes spans of what has been answered, and sends them from a thread of its own."""

    def __init__(self, card: ModelCard, model_name: str) -> None:
        """Sampling, limits, the collector and its keys are as OpenTelemetry's environment variables say."""
        self._trouble = _Once()
        _OTHERS.addHandler(self._trouble)
        _OTHERS.propagate = False
        self._version = card.version
        self._route = f"/predictions/{model_name}/{{version}}"
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        delay_ms = None if os.environ.get(EXPORT_DELAY) else export_delay_s(os.environ) * 1e3
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=delay_ms))
        self._tracer = self._provider.get_tracer("carla_policy", card.version)
        self._failed = False

    def record(self, batch: Batch, answers: Sequence[Answer], inferred: float) -> Sequence[Trace]:
        """As `tracing.Tracer` says."""
        try:
            clock = _Clock()
            stages = list(_stages(batch, inferred, clock.now))
            return [
                self._record(request, item, answer, batch, stages, clock)
                for request, item, answer in zip(batch.requests, batch.items, answers, strict=True)
            ]
        except Exception:
            if not self._failed:
                self._failed = True
                logger.exception("requests are not traced")
            return ()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
        _OTHERS.removeHandler(self._trouble)
        _OTHERS.propagate = True

    def _record(
        self,
        request: Request,
        item: Any,
        answer: Answer,
        batch: Batch,
        stages: Sequence[tuple[str, float, float]],
        clock: _Clock,
    ) -> Trace:
        queued = queued_s(request.headers, clock.now - batch.started)
        method, route = self._method_and_route(request)
        began = clock.ns(batch.started - (queued or 0.0))
        span = self._tracer.start_span(
            f"{method} {route}",
            _parent(request),
            SpanKind.SERVER,
            {"http.request.method": method, "http.route": route, "url.scheme": "http"},
            start_time=began,
        )
        if span.is_recording():
            span.set_attributes(self._attributes(request, item, answer, batch, route))
            if answer.status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            inside = trace.set_span_in_context(span, Context())
            if queued:
                self._tracer.start_span("queue", inside, start_time=began).end(clock.ns(batch.started))
            for name, start, end in stages:
                self._tracer.start_span(name, inside, start_time=clock.ns(start)).end(clock.ns(end))
        span.end(clock.ns(clock.now))
        return _trace(span.get_span_context())

    def _method_and_route(self, request: Request) -> tuple[str, str]:
        """TorchServe does not say which method it was asked by: the service's own contract does."""
        if request.resource == episodes.RESOURCE:
            return "POST", f"{self._route}/{episodes.RESOURCE}"
        if request.body or not request.resource:
            return "POST", self._route
        return "GET", f"{self._route}/{request.resource if request.resource in NAMES else '{resource}'}"

    def _attributes(self, request: Request, item: Any, answer: Answer, batch: Batch, route: str) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            "url.path": route.replace("{version}", self._version),
            "http.response.status_code": answer.status,
            "http.response.body.size": len(answer.body),
            "http.request.body.size": len(request.body),
            "carla_policy.version": self._version,
            "carla_policy.request_id": request.request_id,
            "carla_policy.batch.requests": len(batch.items),
        }
        client_id = echoed_id(request.headers)
        if client_id:
            attributes["carla_policy.client_request_id"] = client_id
        if isinstance(item, Outcome):
            attributes["carla_policy.rows"] = len(item.decision.controls)
            attributes["carla_policy.deterministic"] = item.deterministic
            kinds = sorted({note.kind for note in item.decision.interventions})
            attributes["carla_policy.interventions.count"] = len(item.decision.interventions)
            if kinds:
                attributes["carla_policy.interventions.kinds"] = kinds
            if item.novelty is not None:
                attributes["carla_policy.ood.rows"] = int(item.novelty.is_ood.sum())
        if answer.status >= 400:
            kind = error_type(item)
            attributes["carla_policy.error.type"] = kind
            if answer.status >= 500:
                attributes["error.type"] = kind
        return attributes


class _Clock:
    """Times of `time.perf_counter()` as nanoseconds since 1970."""

    def __init__(self) -> None:
        self.now = time.perf_counter()
        self._now_ns = time.time_ns()

    def ns(self, moment: float) -> int:
        return self._now_ns - round((self.now - moment) * 1e9)


class _Once(logging.Handler):
    """Makes one event of what OpenTelemetry has to say, at first; a collector that is down would fill the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._told:
            self._told = True
            message = f"spans may be lost, which is not told again: {record.getMessage()}"
            tell(logger, logging.WARNING, "tracing_trouble", message)


def _stages(batch: Batch, inferred: float, answered: float) -> Iterator[tuple[str, float, float]]:
    """Name, begin and end of each stage that the batch went through."""
    begin = batch.started
    for stage in STAGES:
        if stage in batch.stage_ms:
            end = min(begin + batch.stage_ms[stage] / 1e3, inferred)
            yield stage, begin, end
            begin = end
    yield "encode", inferred, answered


def _parent(request: Request) -> Context:
    """What the request's headers say that its span belongs to; nothing of this process."""
    received = parse(request.headers)
    if received is None:
        return Context()
    state = TraceState.from_header([received.state]) if received.state else None
    caller = SpanContext(
        int(received.trace_id, 16), int(received.parent_id, 16), True, TraceFlags(received.flags), state
    )
    return trace.set_span_in_context(NonRecordingSpan(caller), Context())


def _trace(context: SpanContext) -> Trace:
    trace_id, span_id = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
    headers = {TRACEPARENT: f"00-{trace_id}-{span_id}-{context.trace_flags & TraceFlags.SAMPLED:02x}"}
    if context.trace_state:
        headers[TRACESTATE] = context.trace_state.to_header()
    return Trace(trace_id, span_id, headers)


def _resource() -> Resource:
    """Who sends the spans; what the environment names prevails."""
    own: dict[str, str | int] = {
        "service.name": DEFAULT_SERVICE_NAME,
        "service.instance.id": str(uuid.uuid4()),
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
    }
    given = Resource.create()
    named = {name: value for name, value in given.attributes.items() if value != "unknown_service"}
    return Resource({**own, **named}, given.schema_url)
