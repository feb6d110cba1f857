"""Whether requests are traced: only if the environment asks for it in OpenTelemetry's own words.

Without that nothing of OpenTelemetry is imported, and a `traceparent` comes back as it came. With it each request has
a span of its own, see `spans`; the answer's `traceparent` names that one. Whatever is wrong with tracing is told once,
and requests are answered without it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from carla_policy.answers import Answer
from carla_policy.batch import Batch
from carla_policy.events import OWN_LOGGER, tell
from carla_policy.loading import LoadedPolicy
from carla_policy.otel_environment import is_wanted

PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"

logger = logging.getLogger(f"{OWN_LOGGER}.tracing")


class Trace(NamedTuple):
    """The span of one request."""

    trace_id: str
    span_id: str
    headers: Mapping[str, str] = MappingProxyType({})
    """For the answer."""


class Tracer(Protocol):
    """Traces the requests of one worker."""

    def record(self, batch: Batch, answers: Sequence[Answer], inferred: float) -> Sequence[Trace]:
        """The traces of a batch's requests, or none if that failed.

        `inferred` (`time.perf_counter()`) is when the encoding of `answers` began; now it has ended.
        """


def start_tracing(loaded: LoadedPolicy, model_name: str) -> Tracer | None:
    """A tracer if one is wanted and can be had. Starts a thread: to be called in the process that answers."""
    if not is_wanted(os.environ):
        return None
    protocol = next((os.environ[name] for name in PROTOCOLS if os.environ.get(name)), PROTOCOL)
    if protocol != PROTOCOL:
        reason = f"{PROTOCOLS[1]} asks for {protocol[:40]!a}; spans are sent as {PROTOCOL} only"
        tell(logger, logging.WARNING, "tracing_unavailable", f"nothing is traced: {reason}")
        return None
    try:
        from carla_policy.spans import SpanTracer

        tracer = SpanTracer(loaded.policy.card, model_name)
    except Exception as error:
        advice = " (install the extra `tracing`)" if isinstance(error, ImportError) else ""
        tell(logger, logging.WARNING, "tracing_unavailable", f"nothing is traced: {error}{advice}")
        return None
    tell(logger, logging.INFO, "tracing", "requests are traced", exporter=PROTOCOL)
    return tracer
