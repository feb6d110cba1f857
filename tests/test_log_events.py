"""What a server logs: events in every file and on the console, and `carla-policy logs` to read them."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from carla_policy_tools.log_reading import Filter, as_text, new_events, past_events
from tests.servers import COMMAND, ServeProcess

VERSION, OTHER = "v1.9.0", "v1.10.0"
GOOD = {"observations": [{"speed": 1.0, "steering": 0.0, "sensors": [0.0] * 5}]}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def serving(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    registry = tmp_path_factory.mktemp("logged") / "registry.json"
    environment = {"CARLA_POLICY_ACCESS_EVENTS_PER_S": "20"}
    options = ("--promote", VERSION, "--log-console")
    with ServeProcess(small_store, VERSION, OTHER, *options, registry=registry, environment=environment) as server:
        yield server


def events_in(server: ServeProcess) -> list[dict[str, Any]]:
    """Of all files, each of whose lines must be one."""
    events = []
    for path in Path(server.ready["run_dir"], "logs").glob("*.log"):
        for line in path.read_bytes().decode("ascii").split("\n")[:-1]:
            event = json.loads(line)
            assert {"time", "level", "event", "message", "logger", "pid"} <= event.keys()
            events.append(event)
    return events


def wait_for(server: ServeProcess, **wanted: Any) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for event in events_in(server):
            if wanted.items() <= event.items():
                return event
        assert time.monotonic() < deadline, f"no {wanted}"
        time.sleep(0.05)


def run_logs(server: ServeProcess, *options: str) -> list[str]:
    command = [*COMMAND, "logs", "--registry", str(server.registry), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


def test_worker_tells_of_its_load_and_how_close_its_self_test_came(serving: ServeProcess) -> None:
    for version in (VERSION, OTHER):
        loaded = wait_for(serving, event="load", version=version)
        tested = wait_for(serving, event="self_test", version=version)
        ready = wait_for(serving, event="worker_ready", version=version)
        assert loaded["runtime"] == "model.pt"
        assert tested["vectors"] == 256
        assert tested["stages"]["controls"] == {"bit_equal_share": 1.0, "max_abs_difference": 0.0, "max_ulp": 0}
        assert ready["pid"] in [process.pid for process in serving.descendants()]
        assert f"carla_policy_{version}" in ready["thread"]


def test_serve_itself_tells_of_its_start(serving: ServeProcess) -> None:
    ready = wait_for(serving, event="ready", logger="carla_policy.serve")
    assert (ready["pid"], ready["url"]) == (serving.process.pid, serving.base)
    assert ready["startup_s"].keys() == {"started", "verified", "loaded", "warm"}


def test_access_event_says_by_which_ids_how_long_and_how_many(serving: ServeProcess) -> None:
    traceparent = f"00-{TRACE}-00f067aa0ba902b7-01"
    time.sleep(0.06)
    answer = serving.post(
        VERSION,
        {"observations": GOOD["observations"] * 3},
        traceparent=traceparent,
        x_request_id="car-7",
        x_request_start=f"t={int(time.time() * 1e3) - 40}",
    )
    event = wait_for(serving, event="access", request_id=answer.headers["x-request-id"])
    assert (event["client_request_id"], event["trace_id"], event["version"]) == ("car-7", TRACE, VERSION)
    assert (event["status"], event["rows"], event["batch"]) == (200, 3, 1)
    assert event["stage_ms"].keys() == {"parse", "preprocess", "infer", "decide"}
    assert 0.0 < sum(event["stage_ms"].values()) < event["duration_ms"]
    assert 35.0 < event["queue_ms"] < 5_000.0


def test_access_events_are_sampled_and_count_what_they_stand_for(serving: ServeProcess) -> None:
    before = [event for event in events_in(serving) if event["event"] == "access"]
    began = time.monotonic()
    for _ in range(200):
        assert serving.post(VERSION, GOOD).status_code == 200
    took = time.monotonic() - began
    time.sleep(0.06)
    last = serving.post(VERSION, GOOD).headers["x-request-id"]
    wait_for(serving, event="access", request_id=last)
    told = [event for event in events_in(serving) if event["event"] == "access"][len(before) :]
    assert len(told) <= 20 * (took + 1.0)
    assert sum(event["answered"] for event in told) >= 200


def test_refused_requests_are_told_at_a_bounded_rate_with_their_kind(serving: ServeProcess) -> None:
    answers = [serving.post(VERSION, {"observations": "canary"}).json() for _ in range(60)]
    told = [event for event in events_in(serving) if event["event"] == "request_error"]
    assert 1 <= len(told) <= 30
    assert told[0]["request_id"] in [answer["requestId"] for answer in answers]
    assert (told[0]["level"], told[0]["status"], told[0]["error_type"]) == ("WARN", 422, "SCHEMA")
    assert told[0]["findings"] == ["list_type"]
    time.sleep(1.1)
    serving.post(VERSION, {"observations": "canary"})
    deadline = time.monotonic() + PATIENCE_S
    while sum(event.get("suppressed_before", 0) for event in events_in(serving)) < 60 - len(told):
        assert time.monotonic() < deadline
        serving.post(VERSION, GOOD)
        time.sleep(0.1)
    assert "canary" not in json.dumps(events_in(serving))


HOSTILE_HEADERS = {
    "X-Request-Id": b'car"}\x0c{"event":"forged"',
    "Traceparent": b"00-" + b"f" * 5_000,
    "X-Request-Start": b"t=1\xe2\x80\xa8{}",
    "X-\xff\xfe": b"\xed\xa0\x80",
    "Authorization": b"Bearer canary",
    '{"time":"2026-01-01T00:00:00.000Z","level":"ERROR","event":"forged"}': b"x",
}


@pytest.mark.parametrize("name", HOSTILE_HEADERS)
def test_hostile_header_breaks_no_line_and_forges_no_event(serving: ServeProcess, name: str) -> None:
    parts = urlsplit(serving.base)
    header = name.encode("latin-1") + b": " + HOSTILE_HEADERS[name]
    for model in (f"carla_policy/{VERSION}", name.replace(" ", ""), f"carla_policy/{VERSION}/x"):
        head = f"POST /predictions/{model} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n".encode("latin-1")
        head += b"Content-Type: application/json\r\n" + header + b"\r\n\r\n{}"
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
            connection.sendall(head)
            connection.recv(64)
    assert serving.post(VERSION, GOOD).status_code == 200
    events = events_in(serving)
    assert [event for event in events if event["event"] == "forged"] == []
    assert "canary" not in json.dumps(events)


def test_change_of_the_registry_is_told_with_who_and_why(serving: ServeProcess) -> None:
    where = ["--registry", str(serving.registry)]
    subprocess.run([*COMMAND, "promote", OTHER, "--reason", 'it "won"\n', *where], check=True, capture_output=True)
    subprocess.run([*COMMAND, "rollback", "--reason", "it lost", *where], check=True, capture_output=True)
    promoted = wait_for(serving, event="promote", logger="carla_policy.serve", version=OTHER)
    assert (promoted["previous"], promoted["reason"]) == (VERSION, 'it "won"\n')
    assert "@" in promoted["by"]
    assert wait_for(serving, event="rollback")["version"] == VERSION


def test_logs_shows_events_for_people_and_for_machines(serving: ServeProcess) -> None:
    refused = serving.post(OTHER, b"{", x_request_id="car-9").json()["requestId"]
    wait_for(serving, event="request_error", request_id=refused)
    (line,) = run_logs(serving, "--request-id", refused)
    assert line.split()[2:4] == ["WARN", "request_error"]
    assert f"{OTHER}  answered 400 INVALID_JSON" in line
    (event,) = map(json.loads, run_logs(serving, "--request-id", "car-9", "--json"))
    assert event["request_id"] == refused
    ready = [json.loads(line) for line in run_logs(serving, "--event", "worker_ready", "--version", OTHER, "--json")]
    assert ready
    assert {event["version"] for event in ready} == {OTHER}
    everything = [json.loads(line) for line in run_logs(serving, "--lines", "0", "--json")]
    assert [event["time"] for event in everything] == sorted(event["time"] for event in everything)
    assert {event["level"] for event in map(json.loads, run_logs(serving, "--level", "warn", "--json"))} <= {
        "WARN",
        "ERROR",
    }
    assert len(run_logs(serving, "--lines", "3")) == 3


def test_logs_follows_what_comes(serving: ServeProcess) -> None:
    command = [*COMMAND, "logs", "--registry", str(serving.registry), "-f", "--json", "--event", "request_error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            process.stdout.readline()  # it shows what was there, so it follows now
            time.sleep(1.1)
            refused = serving.post(OTHER, b"{").json()["requestId"]
            while json.loads(process.stdout.readline())["request_id"] != refused:
                pass
        finally:
            process.terminate()


def test_logs_without_a_server_says_where_else_to_look(tmp_path: Path) -> None:
    command = [*COMMAND, "logs", "--registry", str(tmp_path / "registry.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no server serves this registry; for one that has ended name its --run-dir" in done.stderr


def test_console_has_the_same_events_and_the_last_one_says_that_it_stopped(small_store: Path) -> None:
    with ServeProcess(small_store, VERSION, "--log-console") as server:
        refused = server.post(VERSION, b"{").json()["requestId"]
        wait_for(server, event="request_error", request_id=refused)
        status, printed = server.stop()
    events = [json.loads(line) for line in printed.splitlines()]
    named = [event["event"] for event in events]
    assert (status, named[-1]) == (0, "stopped")
    assert {"starting", "worker_ready", "ready", "draining"} <= set(named)
    assert [event["version"] for event in events if event.get("request_id") == refused] == [VERSION]


def test_level_and_rate_are_those_of_the_environment(small_store: Path) -> None:
    environment = {"CARLA_POLICY_LOG_LEVEL": "error", "CARLA_POLICY_ACCESS_EVENTS_PER_S": "1000"}
    with ServeProcess(small_store, VERSION, environment=environment) as server:
        server.post(VERSION, GOOD)
        server.post(VERSION, b"{")
        told = {event["event"] for event in events_in(server)}
    assert told.isdisjoint({"access", "load", "ready", "request_error"})
    environment = {"CARLA_POLICY_ACCESS_EVENTS_PER_S": "0"}
    with ServeProcess(small_store, VERSION, environment=environment) as server:
        server.post(VERSION, GOOD)
        server.post(VERSION, b"{")
        wait_for(server, event="request_error")
        assert "access" not in {event["event"] for event in events_in(server)}


def line(moment: str, **fields: Any) -> str:
    return json.dumps({"time": moment, "level": "INFO", "event": "x", "message": "y", **fields}) + "\n"


def test_files_that_were_begun_anew_are_read_in_the_order_of_time(tmp_path: Path) -> None:
    (tmp_path / "torchserve.1.log").write_text(line("1"))
    (tmp_path / "torchserve.2.log").write_text(line("2") + "no event\n" + "[1]\n" + "{\n" + "[" * 100_000 + "\n")
    (tmp_path / "torchserve.log").write_text(line("4") + line("5")[:20])
    (tmp_path / "serve.log").write_text(line("3"))
    assert [event["time"] for event in past_events(tmp_path, Filter())] == ["1", "2", "3", "4"]


def test_following_goes_on_in_a_file_that_was_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "torchserve.log"
    path.write_text(line("0"))
    coming = new_events(tmp_path)
    assert next(coming) is None
    with path.open("a") as file:
        file.write(line("1") + line("2")[:9])
    assert (next(coming) or {})["time"] == "1"
    with path.open("a") as file:
        file.write(line("2")[9:] + line("3"))
    path.rename(tmp_path / "torchserve.1.log")
    path.write_text(line("4"))
    seen: list[str] = []
    while len(seen) < 3:
        event = next(coming)
        if event:
            seen.append(event["time"])
    coming.close()
    assert seen == ["2", "3", "4"]


def test_event_for_people_does_not_steer_their_terminal() -> None:
    error = {"type": "E\x1b[2J", "message": "a\nb", "stack": ["f\u202e:1 g"]}
    text = as_text({"time": "t", "message": "\x1b]0;x\x07\u2028", "name": "\r\x9b", "error": error})
    assert len(text.splitlines()) == 3
    assert text.replace("\n", "").isprintable()
