"""What OpenTelemetry's environment variables ask for, read without OpenTelemetry."""

from __future__ import annotations

from collections.abc import Mapping

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
EXPORTER, DISABLED = "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"
EXPORT_DELAY, DEFAULT_EXPORT_DELAY_MS = "OTEL_BSP_SCHEDULE_DELAY", 1_000
"""So long spans are gathered; a fifth of OpenTelemetry's own default, since a worker may be killed at any time."""


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables ask for traces to be exported to a collector."""
    if environment.get(DISABLED, "").strip().lower() == "true":
        return False
    exporters = {name.strip() for name in environment.get(EXPORTER, "").split(",")} - {""}
    return "otlp" in exporters if exporters else any(environment.get(name) for name in ENDPOINTS)


def export_delay_s(environment: Mapping[str, str]) -> float:
    """How long a span may wait in a worker before it is sent."""
    try:
        return max(1, int(environment.get(EXPORT_DELAY, DEFAULT_EXPORT_DELAY_MS))) / 1e3
    except ValueError:
        return DEFAULT_EXPORT_DELAY_MS / 1e3
