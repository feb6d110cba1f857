"""Tracing is off unless the environment wants it; where it is not to be had, that is told and harms nobody."""

from __future__ import annotations

import subprocess
import sys

import pytest

from carla_policy.loading import LoadedPolicy
from carla_policy.otel_environment import export_delay_s, is_wanted
from carla_policy.tracing import start_tracing

URL = "OTEL_EXPORTER_OTLP_ENDPOINT"
IMPORTED = """
import sys
import policy_handler
from carla_policy.tracing import start_tracing
assert start_tracing(None, "carla_policy") is None
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


@pytest.fixture
def _no_otel(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (URL, "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({URL: "http://x"}, True),
        ({URL: ""}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", URL: "http://x"}, False),
        ({"OTEL_TRACES_EXPORTER": "console", URL: "http://x"}, False),
        ({"OTEL_SDK_DISABLED": "TRUE", URL: "http://x"}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
    ],
)
def test_tracing_is_on_where_opentelemetry_s_variables_say_so(environment: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environment) == wanted


def test_delay_of_the_export_is_the_environment_s_if_it_is_one() -> None:
    assert [export_delay_s({"OTEL_BSP_SCHEDULE_DELAY": text}) for text in ("250", "x", "-5")] == [0.25, 1.0, 0.001]


@pytest.mark.usefixtures("_no_otel")
def test_worker_that_does_not_trace_imports_nothing_of_opentelemetry() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("_no_otel")
@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto"])
def test_missing_extra_is_told_and_requests_are_answered_without_it(
    synthetic: LoadedPolicy, missing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(URL, "http://127.0.0.1:9")
    monkeypatch.delitem(sys.modules, "carla_policy.spans", raising=False)
    for name in [name for name in sys.modules if name.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert start_tracing(synthetic, "carla_policy") is None
    assert "nothing is traced" in caplog.text
    assert "install the extra `tracing`" in caplog.text


@pytest.mark.usefixtures("_no_otel")
def test_protocol_that_is_not_spoken_is_told(
    synthetic: LoadedPolicy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(URL, "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert start_tracing(synthetic, "carla_policy") is None
    assert "asks for 'grpc'; spans are sent as http/protobuf only" in caplog.text
