"""Mirrored requests: what the collector gets, what the client never notices, and how two versions are compared."""

from __future__ import annotations

import http.client
import json
import socket
import time
from typing import Any

import pytest

from carla_policy_tools.routing.haproxy import ProxyError, find_haproxy
from carla_policy_tools.routing.mirror import MAX_WAITING, Collector, Copy
from carla_policy_tools.routing.proxy import Proxy
from carla_policy_tools.routing.routes import Routes
from carla_policy_tools.routing.shadow import Comparison
from tests.fake_upstream import OLD, PREDICTIONS, FakeUpstream, Vehicle

NEW, SHADOW = "v0.3.0", "v0.4.0"

try:
    find_haproxy()
    haproxy_missing = ""
except ProxyError as error:
    haproxy_missing = str(error)
needs_haproxy = pytest.mark.skipif(bool(haproxy_missing), reason=haproxy_missing)


@needs_haproxy
def test_a_copy_is_the_request_and_the_version_that_answers_it(proxy: Proxy, vehicle: Vehicle) -> None:
    proxy.mirror(100)
    bodies = [b"{}", bytes(range(256)) * 100, b"x" * 49_000]
    with Collector(proxy.mirror_socket) as collector:
        for body in bodies:
            assert vehicle.ask(body=body)[1]["bytes"] == len(body)
            assert collector.take(5) == Copy(OLD, body)
        proxy.apply(Routes(OLD, {NEW: 100}))
        vehicle.ask()
        assert collector.take(5) == Copy(NEW, b"{}")


@needs_haproxy
def test_only_predictions_with_a_body_and_without_a_version_are_copied(proxy: Proxy, vehicle: Vehicle) -> None:
    proxy.mirror(100)
    with Collector(proxy.mirror_socket) as collector:
        vehicle.ask("/ping")
        vehicle.ask(f"{PREDICTIONS}/{NEW}")
        vehicle.ask(method="GET", body=b"")
        vehicle.ask(body=b"")
        vehicle.ask(body=b"last")
        assert collector.take(5) == Copy(OLD, b"last")


@needs_haproxy
def test_a_share_is_copied_and_none_without_a_wish(proxy: Proxy, vehicle: Vehicle) -> None:
    with Collector(proxy.mirror_socket) as collector:
        counts = []
        for share in (0, 30, 0):
            proxy.mirror(share)
            taken = 0
            for _ in range(400):
                vehicle.ask()
                taken += collector.take(0) is not None
            while collector.take(0.2):
                taken += 1
            counts.append(taken)
    assert counts[0] == counts[2] == 0
    assert 70 < counts[1] < 170


@needs_haproxy
@pytest.mark.parametrize("size", [70_000, 2_000_000])
def test_what_is_too_large_is_not_copied_but_counted(proxy: Proxy, vehicle: Vehicle, size: int) -> None:
    proxy.mirror(100)
    with Collector(proxy.mirror_socket) as collector:
        assert vehicle.ask(body=b"x" * size)[1]["bytes"] == size
        assert collector.take(5) == Copy(OLD, None)


@needs_haproxy
def test_a_body_that_comes_in_pieces_is_copied_whole(proxy: Proxy) -> None:
    proxy.mirror(100)
    with Collector(proxy.mirror_socket) as collector, socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.sendall(f"POST {PREDICTIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\nabc".encode())
        time.sleep(0.1)
        client.sendall(b"def")
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert json.loads(answer.read())["bytes"] == 6
        assert collector.take(5) == Copy(OLD, b"abcdef")


@needs_haproxy
def test_without_a_collector_clients_notice_nothing(proxy: Proxy, vehicle: Vehicle) -> None:
    proxy.mirror(100)
    for _ in range(500):
        assert vehicle.ask()[0] == 200
    with Collector(proxy.mirror_socket) as collector:
        vehicle.ask()
        assert collector.take(5) == Copy(OLD, b"{}")


@needs_haproxy
def test_a_collector_that_does_not_read_delays_nobody(proxy: Proxy, vehicle: Vehicle) -> None:
    """It would take a second to give each copy up: 600 requests do not wait for that, nor for each other."""
    proxy.mirror(100)
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(proxy.mirror_socket))
        hanging.listen()
        started, slowest = time.monotonic(), 0.0
        for _ in range(600):
            asked = time.monotonic()
            assert vehicle.ask(body=b"x" * 40_000)[0] == 200
            slowest = max(slowest, time.monotonic() - asked)
        assert time.monotonic() - started < 60
    assert slowest < 10
    with Collector(proxy.mirror_socket) as collector:
        while collector.take(0.1) is None:
            vehicle.ask()
        assert vehicle.ask()[0] == 200


@needs_haproxy
def test_copies_that_nobody_takes_are_dropped_and_counted(proxy: Proxy, vehicle: Vehicle) -> None:
    proxy.mirror(100)
    asked = MAX_WAITING + 100
    with Collector(proxy.mirror_socket) as collector:
        for _ in range(asked):
            assert vehicle.ask()[0] == 200
        while collector.dropped < 100:
            time.sleep(0.01)
        taken = 0
        while collector.take(0.2):
            taken += 1
        assert taken + collector.dropped == asked


@needs_haproxy
def test_stopping_while_copies_are_under_way_is_no_trouble(proxy: Proxy, vehicle: Vehicle) -> None:
    proxy.mirror(100)
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(proxy.mirror_socket))
        hanging.listen()
        for _ in range(20):
            assert vehicle.ask(body=b"x" * 40_000)[0] == 200
        vehicle.connection.close()
        proxy.stop()


OBSERVATIONS = [{"speed": float(speed), "steering": 0.0, "sensors": [1.0]} for speed in range(4)]


def actions(*steers: float) -> dict[str, Any]:
    return {"actions": [{"throttle": 0.5, "brake": 0.0, "steer": steer} for steer in steers]}


def compare(upstream: FakeUpstream, *requests: dict[str, Any], version: str = OLD) -> dict[str, Any]:
    with Comparison(f"http://{upstream.address}", SHADOW) as comparison:
        for request in requests:
            comparison.add(Copy(version, json.dumps(request).encode()))
        return comparison.report.to_json()


def test_the_worst_difference_tells_the_observation_that_caused_it(upstream: FakeUpstream) -> None:
    upstream.contents = {OLD: actions(0.0, 0.1, 0.2, 0.3), SHADOW: actions(0.0, 0.1, -0.3, 0.4)}
    report = compare(upstream, {"observations": OBSERVATIONS})
    assert (report["compared"], report["actions"], report["equal_actions"]) == (1, 4, 2)
    steer = report["differences"]["steer"]
    assert steer["mean"] == pytest.approx(0.15)
    assert steer["worst"] == pytest.approx(0.5)
    assert 0.48 < steer["p99"] <= 0.5
    assert steer["worst_case"]["observation"] == OBSERVATIONS[2]
    assert (steer["worst_case"]["baseline"]["steer"], steer["worst_case"]["shadow"]["steer"]) == (0.2, -0.3)
    assert report["differences"]["throttle"]["worst"] == 0.0
    assert report["differences"]["throttle"]["worst_case"] is None


def test_both_are_asked_the_bytes_that_the_client_sent(upstream: FakeUpstream) -> None:
    upstream.contents = {OLD: actions(0.0), SHADOW: actions(0.0)}
    body = b'{ "observations" :[{"speed": 1.00, "steering": 1e-3, "sensors": []}]}'
    with Comparison(f"http://{upstream.address}", SHADOW) as comparison:
        comparison.add(Copy(OLD, body))
    assert upstream.asked == [(OLD, body), (SHADOW, body)]


@pytest.mark.parametrize("seed", [None, 7])
def test_a_sampled_action_is_compared_under_one_seed(upstream: FakeUpstream, seed: int | None) -> None:
    upstream.contents = {OLD: actions(0.0), SHADOW: actions(0.0)}
    given = {} if seed is None else {"seed": seed}
    compare(upstream, {"observations": OBSERVATIONS[:1], "deterministic": False, **given})
    one, other = (json.loads(body)["seed"] for _, body in upstream.asked)
    assert one == other
    assert seed in (None, one)


def test_a_state_is_bound_to_its_version_and_not_compared(upstream: FakeUpstream) -> None:
    report = compare(upstream, {"observations": OBSERVATIONS, "state": "Y3BzMQ=="})
    assert (report["compared"], report["not_comparable"]) == (0, 1)
    assert not upstream.asked


def test_what_the_shadow_answered_itself_is_not_compared(upstream: FakeUpstream) -> None:
    report = compare(upstream, {"observations": OBSERVATIONS}, version=SHADOW)
    assert (report["compared"], report["same_version"]) == (0, 1)


def test_refusals_are_counted_by_who_and_why(upstream: FakeUpstream) -> None:
    upstream.contents = {OLD: actions(0.0), SHADOW: {"type": "OUT_OF_RANGE"}, NEW: {"type": "SHAPE"}}
    upstream.statuses = {SHADOW: 422, NEW: 422}
    with Comparison(f"http://{upstream.address}", SHADOW) as comparison:
        comparison.add(Copy(OLD, b'{"observations": []}'))
        comparison.add(Copy(NEW, b"no JSON"))
        comparison.add(Copy(OLD, None))
        report = comparison.report
    assert report.refused == {"baseline": {"SHAPE": 1}, "shadow": {"OUT_OF_RANGE": 2}}
    assert (report.refused_requests, report.too_large, report.requests, report.seen) == (2, 1, 0, 3)


def test_a_server_that_is_gone_is_counted_too(upstream: FakeUpstream) -> None:
    upstream.stop()
    report = compare(upstream, {"observations": OBSERVATIONS})
    assert report["refused"] == {"baseline": {"ConnectionError": 1}, "shadow": {"ConnectionError": 1}}
