"""What the logs of a server keep to themselves: anything of a request, and secrets of whoever started it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from carla_policy_tools.keys import PASSPHRASE_VARIABLE
from tests.servers import ServeProcess

VERSION = "v1.9.0"
PREDICTIONS = f"/predictions/carla_policy/{VERSION}"
CANARY = "canaryK7Q"
OBSERVATION = {"speed": 1.0, "steering": 0.0, "sensors": [0.0] * 5}
GOOD = json.dumps({"observations": [OBSERVATION]})
MAX_REQUEST_BYTES = 200_000
PROFILE = f"""
workers: 1
batch_size: 2
max_batch_delay_ms: 0
response_timeout_s: 10
startup_timeout_s: 60
max_request_bytes: {MAX_REQUEST_BYTES}
"""


@pytest.fixture(scope="module")
def logged(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    directory = tmp_path_factory.mktemp("logged")
    (directory / "own.yaml").write_text(PROFILE)
    secret = {PASSPHRASE_VARIABLE: f"{CANARY}-passphrase"}
    with ServeProcess(small_store, VERSION, "--profile", str(directory / "own.yaml"), environment=secret) as process:
        yield process


def form(path: str, body: str, *, method: str = "POST", kind: str = "application/json", more: str = "") -> bytes:
    """A request with canaries in its headers."""
    own = f"Authorization: Bearer {CANARY}\r\nCookie: {CANARY}\r\nX-Policy-Thing: {CANARY}\r\n{more}"
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{own}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


PREDICTION_REQUESTS = {
    "good": form(f"{PREDICTIONS}?token={CANARY}", GOOD),
    "not JSON": form(PREDICTIONS, f'{{"{CANARY}": tru'),
    "unknown field": form(PREDICTIONS, f'{GOOD[:-1]},"{CANARY}":1}}'),
    "text for a number": form(PREDICTIONS, GOOD.replace("1.0", f'"{CANARY}"')),
    "media type": form(PREDICTIONS, GOOD, kind=f"text/{CANARY}"),
    "unknown model": form(f"/predictions/{CANARY}", GOOD),
    "unknown version": form(f"/predictions/carla_policy/{CANARY}", GOOD),
    "unknown path": form(f"/{CANARY}", GOOD),
    "broken escape in the URL": form(f"{PREDICTIONS}/%zz{CANARY}", GOOD),
    "broken escape in a form": form(PREDICTIONS, f"{CANARY}=%zz{CANARY}", kind="application/x-www-form-urlencoded"),
    "broken multipart": form(PREDICTIONS, f"--b{CANARY}", kind="multipart/form-data; boundary=b"),
    "no HTTP": f"{CANARY}\r\n\r\n".encode(),
    "broken length": f"POST {PREDICTIONS} HTTP/1.1\r\nContent-Length: {CANARY}\r\n\r\n".encode(),
    "broken chunk": f"POST {PREDICTIONS} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{CANARY}\r\n".encode(),
    "long URL": form(f"/{CANARY}{'a' * 10_000}", GOOD),
    "long header": form(PREDICTIONS, GOOD, more=f"X-Long: {CANARY}{'a' * 20_000}\r\n"),
    "too large": form(PREDICTIONS, CANARY + " " * MAX_REQUEST_BYTES),
    "expectation": form(PREDICTIONS, GOOD, more=f"Expect: {CANARY}\r\n"),
}
MANAGEMENT_REQUESTS = {
    "register what is not there": form(f"/models?url={CANARY}.mar", ""),
    "register a URL": form(f"/models?url=http://{CANARY}/x.mar", ""),
    "broken registration": form("/models", f'{{"url": {CANARY}'),
    "unregister": form(f"/models/{CANARY}", "", method="DELETE"),
    "promote": form(f"/models/carla_policy/{CANARY}/set-default", "", method="PUT"),
}


def send(url: str, data: bytes) -> bytes:
    """The beginning of the answer to `data`, sent as it is."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection, suppress(OSError):
        connection.sendall(data)
        return connection.recv(64)
    return b""  # reset before all of it was read


def run_files(server: ServeProcess) -> list[Path]:
    return [path for path in Path(server.ready["run_dir"]).rglob("*") if path.is_file()]


def log_bytes(server: ServeProcess) -> int:
    return sum(path.stat().st_size for path in Path(server.ready["run_dir"], "logs").rglob("*"))


def test_nothing_of_a_request_is_in_any_file_of_the_run_or_in_a_metric(logged: ServeProcess) -> None:
    for data in PREDICTION_REQUESTS.values():
        send(logged.base, data)
    for data in MANAGEMENT_REQUESTS.values():
        send(logged.ready["management"], data)
    assert logged.post(VERSION, GOOD.encode()).status_code == 200
    failures = Path(logged.ready["run_dir"], "logs", "requests.log").read_text()
    assert "IllegalArgumentException at io.netty" in failures
    assert [path for path in run_files(logged) if CANARY.encode() in path.read_bytes()] == []
    assert CANARY not in requests.get(f"{logged.ready['metrics']}/metrics", timeout=10).text


def test_flood_of_requests_that_the_front_end_fails_on_does_not_fill_the_logs(logged: ServeProcess) -> None:
    before = log_bytes(logged)
    for _ in range(500):
        assert send(logged.base, PREDICTION_REQUESTS["broken escape in a form"]).startswith(b"HTTP/1.1 500")
    assert log_bytes(logged) - before < 20_000
    assert logged.post(VERSION, GOOD.encode()).status_code == 200


def test_passphrase_of_a_signing_key_does_not_reach_the_code_of_a_policy(logged: ServeProcess) -> None:
    assert [p for p in logged.descendants() if PASSPHRASE_VARIABLE in p.environ()] == []


def test_command_itself_prints_nothing_of_a_request(small_store: Path) -> None:
    with ServeProcess(small_store, VERSION) as server:
        for data in PREDICTION_REQUESTS.values():
            send(server.base, data)
        status, printed = server.stop()
    assert (status, CANARY in printed + json.dumps(server.ready)) == (0, False)
