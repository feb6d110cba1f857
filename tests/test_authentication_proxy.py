"""`config/haproxy/authentication.cfg`, the example of a proxy that asks clients for a token."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from carla_policy_tools.addresses import LOOPBACK
from carla_policy_tools.paths import CONFIG
from carla_policy_tools.ports import reserved_port
from carla_policy_tools.routing.haproxy import ProxyError, find_haproxy
from tests.fake_upstream import FakeUpstream
from tests.hostile.http_client import first_reply

TOKEN = "a-token-of-a-client"
PATH = "/predictions/carla_policy/v0.2.0"
JSON = {"Content-Type": "application/json"}
ALLOWED = {"Authorization": f"Bearer {TOKEN}", **JSON}


@pytest.fixture
def gate(upstream: FakeUpstream, tmp_path: Path) -> Iterator[str]:
    """URL of the proxy, in front of `upstream`."""
    try:
        haproxy = find_haproxy()
    except ProxyError as error:
        pytest.skip(str(error))
    (tmp_path / "tokens").write_text(f"another-token\n{TOKEN}\n")
    port = reserved_port()
    own = {
        "CARLA_POLICY_GATE_ADDRESS": f"{LOOPBACK}:{port}",
        "CARLA_POLICY_GATE_SERVER": upstream.address,
        "CARLA_POLICY_GATE_TOKENS": str(tmp_path / "tokens"),
    }
    command = [str(haproxy.executable), "-db", "-f", str(CONFIG / "haproxy" / "authentication.cfg")]
    process = subprocess.Popen(command, env={**haproxy.environment, **own}, stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://{LOOPBACK}:{port}"
        deadline = time.monotonic() + 10
        while True:
            try:
                requests.get(url, timeout=5)
                break
            except requests.ConnectionError:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_request_with_a_token_passes_and_the_token_does_not(gate: str, upstream: FakeUpstream) -> None:
    answer = requests.post(f"{gate}{PATH}", data=b"{}", headers=ALLOWED, timeout=10)
    assert (answer.status_code, answer.json()["version"]) == (200, "v0.2.0")
    assert "authorization" not in upstream.asked_headers[-1]


@pytest.mark.parametrize("value", [None, "", "Bearer ", "Bearer wrong", f"bearer{TOKEN}", TOKEN, f"Bearer {TOKEN}x"])
def test_request_without_a_valid_token_is_refused(gate: str, upstream: FakeUpstream, value: str | None) -> None:
    headers = JSON if value is None else {**JSON, "Authorization": value}
    assert requests.post(f"{gate}{PATH}", data=b"{}", headers=headers, timeout=10).status_code == 401
    assert upstream.asked == []


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/models?url=x.mar", {}, 404),
        ("POST", "/predictions/other", {}, 404),
        ("DELETE", PATH, {}, 405),
        ("POST", PATH, {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("POST", PATH, {"Content-Type": "multipart/form-data; boundary=b"}, 415),
    ],
)
def test_only_predictions_pass(
    gate: str, upstream: FakeUpstream, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = requests.request(method, f"{gate}{path}", data=b"{}", headers={**ALLOWED, **headers}, timeout=10)
    assert (answer.status_code, upstream.asked) == (status, [])


def test_time_at_which_a_request_came_is_the_proxy_s_and_no_client_s(gate: str, upstream: FakeUpstream) -> None:
    before = time.time()
    for headers in ({}, {"X-Request-Start": "t=1000000000000"}):
        assert requests.post(f"{gate}{PATH}", data=b"{}", headers={**ALLOWED, **headers}, timeout=10).ok
        start = upstream.asked_headers[-1]["x-request-start"]
        assert start.startswith("t=")
        assert before - 1 <= int(start[2:]) / 1e3 <= time.time() + 1


@pytest.mark.parametrize(
    "lines",
    [
        ("content-type: application/json", "Content-Type: text/plain"),
        ("content-type: application/json", "content-type: application/json"),
        ("content-encoding: gzip", "Content-Encoding: identity"),
        ("x-policy-seed: 1", "X-Policy-Seed: 2"),
        ("x-policy-deadline-ms: 1", "X-Policy-Deadline-Ms: 2"),
        ("x-policy-deterministic: true", "X-Policy-Deterministic: false"),
    ],
)
def test_header_that_matters_is_there_once_or_refused(
    gate: str, upstream: FakeUpstream, lines: tuple[str, str]
) -> None:
    """Behind the proxy all names are in lower case, and the server keeps the last of two."""
    own = [f"POST {PATH} HTTP/1.1", "host: a", f"authorization: Bearer {TOKEN}", "content-length: 2", *lines, "", "{}"]
    reply = first_reply(int(gate.rpartition(":")[2]), "\r\n".join(own).encode())
    assert (reply.status, upstream.asked) == (400, [])


def test_body_of_more_than_a_mebibyte_or_of_unknown_size_is_refused(gate: str, upstream: FakeUpstream) -> None:
    large = requests.post(f"{gate}{PATH}", data=b" " * (2**20 + 1), headers=ALLOWED, timeout=10)
    chunked = requests.post(f"{gate}{PATH}", data=iter([b"{}"]), headers=ALLOWED, timeout=10)
    assert (large.status_code, chunked.status_code, upstream.asked) == (413, 411, [])
