"""The proxy in front of a stand-in for TorchServe: who is answered by which version, and that nobody is lost."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from threading import Event, Thread

import psutil
import pytest

from carla_policy_tools.routing.haproxy import ProxyError, find_haproxy
from carla_policy_tools.routing.proxy import Proxy
from carla_policy_tools.routing.routes import RouteMap, Routes
from carla_policy_tools.routing.traffic import Exchange, Traffic
from tests.fake_upstream import OLD, PREDICTIONS, FakeUpstream, Vehicle
from tests.hostile.http_client import first_reply

NEW, NEXT = "v0.3.0", "v0.10.0"
EPISODES = [f"episode-{number}" for number in range(1_000)]

try:
    find_haproxy()
except ProxyError as error:
    pytest.skip(str(error), allow_module_level=True)


def split(**shares: int) -> Routes:
    names = {"old": OLD, "new": NEW, "next": NEXT}
    return Routes(OLD, {names[name]: share for name, share in shares.items()})


@pytest.mark.parametrize(
    "path",
    [
        "/ping",
        f"{PREDICTIONS}/{NEXT}",
        f"{PREDICTIONS}/{NEXT}/healthz",
        f"{PREDICTIONS}/healthz/x",
        "/predictions/another_model",
        f"{PREDICTIONS}_2",
        "/v2/models/carla_policy/infer",
    ],
)
def test_only_requests_without_a_version_are_routed(proxy: Proxy, vehicle: Vehicle, path: str) -> None:
    proxy.apply(split(old=50, new=50))
    assert vehicle.ask(f"{path}?a=1")[1]["path"] == f"{path}?a=1"


def test_without_shares_the_server_chooses_the_version(vehicle: Vehicle) -> None:
    assert vehicle.ask(x_episode_id="7")[1]["path"] == PREDICTIONS


def test_asking_which_version_is_promoted_is_not_routed(proxy: Proxy, vehicle: Vehicle) -> None:
    proxy.apply(split(new=100))
    assert vehicle.ask(method="GET", body=b"")[1]["path"] == PREDICTIONS


@pytest.mark.parametrize("path", [PREDICTIONS, f"{PREDICTIONS}/"])
def test_a_routed_request_keeps_its_query(proxy: Proxy, vehicle: Vehicle, path: str) -> None:
    proxy.apply(split(new=100))
    assert vehicle.ask(f"{path}?a=1")[1]["path"] == f"{PREDICTIONS}/{NEW}?a=1"


def test_shares_are_kept_among_episodes(proxy: Proxy, vehicle: Vehicle) -> None:
    proxy.apply(split(old=70, new=20, next=10))
    counts = Counter(vehicle.version_of(episode) for episode in EPISODES)
    assert 650 < counts[OLD] < 750
    assert 150 < counts[NEW] < 250
    assert 60 < counts[NEXT] < 140


def test_without_headers_chance_decides_for_each_request(proxy: Proxy, vehicle: Vehicle) -> None:
    proxy.apply(split(old=50, new=50))
    counts = Counter(vehicle.ask()[1]["version"] for _ in range(400))
    assert set(counts) == {OLD, NEW}
    assert 120 < counts[NEW] < 280


def test_the_episode_decides_before_the_vehicle(proxy: Proxy, vehicle: Vehicle) -> None:
    proxy.apply(split(old=50, new=50))
    for number in range(40):
        chosen = vehicle.version_of(str(number))
        assert vehicle.ask(x_episode_id=str(number), x_vehicle_id=f"car-{number}")[1]["version"] == chosen
    by_vehicle = [vehicle.ask(x_vehicle_id=f"car-{number}")[1]["version"] for number in range(40)]
    assert by_vehicle == [vehicle.ask(x_vehicle_id=f"car-{number}")[1]["version"] for number in range(40)]
    assert set(by_vehicle) == {OLD, NEW}


def test_an_episode_keeps_its_version_whatever_happens_to_the_shares(proxy: Proxy, vehicle: Vehicle) -> None:
    proxy.apply(split(old=90, new=10))
    first = {episode: vehicle.version_of(episode) for episode in EPISODES}
    for routes in (split(old=10, new=90), split(old=1, new=1, next=98), split(old=50, new=50)):
        proxy.apply(routes)
        assert {episode: vehicle.version_of(episode) for episode in EPISODES} == first
    assert vehicle.version_of("begun later") in {OLD, NEW}


def test_a_split_leaves_episodes_that_have_begun_with_the_promoted_version(proxy: Proxy, vehicle: Vehicle) -> None:
    for episode in EPISODES[:100]:
        assert vehicle.version_of(episode) is None
    proxy.apply(split(old=1, new=99))
    assert {vehicle.version_of(episode) for episode in EPISODES[:100]} == {OLD}
    assert NEW in {vehicle.version_of(episode) for episode in EPISODES[100:200]}


@pytest.mark.parametrize("rest", [split(old=60, next=40), split(old=60, new=0, next=40)])
def test_only_episodes_of_a_version_that_is_taken_out_move(proxy: Proxy, vehicle: Vehicle, rest: Routes) -> None:
    proxy.apply(split(old=40, new=40, next=20))
    before = {episode: vehicle.version_of(episode) for episode in EPISODES}
    proxy.apply(rest)
    after = {episode: vehicle.version_of(episode) for episode in EPISODES}
    moved = {episode for episode in EPISODES if before[episode] != after[episode]}
    assert moved == {episode for episode in EPISODES if before[episode] == NEW}
    assert {after[episode] for episode in moved} == {OLD, NEXT}
    proxy.apply(split(old=40, new=40, next=20))
    assert {episode: vehicle.version_of(episode) for episode in EPISODES} == after


def test_versions_come_and_go_and_an_index_never_means_another(proxy: Proxy, vehicle: Vehicle) -> None:
    proxy.apply(split(old=50, new=50))
    before = {episode: vehicle.version_of(episode) for episode in EPISODES[:200]}
    for minor in range(20, 40):
        proxy.apply(Routes(OLD, {OLD: 50, f"v0.{minor}.0": 50}))
    after = {episode: vehicle.version_of(episode) for episode in EPISODES[:200]}
    assert all(after[episode] == OLD for episode in before if before[episode] == OLD)
    assert set(after.values()) == {OLD, "v0.39.0"}


def test_nothing_is_lost_while_shares_change_two_hundred_times(proxy: Proxy) -> None:
    proxy.apply(split(old=50, new=50))
    stop, problems, counts = Event(), list[object](), Counter[str]()

    def drive(number: int) -> None:
        seen = set()
        try:
            with Vehicle(proxy.port) as vehicle:
                while not stop.is_set():
                    seen.add(vehicle.version_of(f"drive-{number}"))
                    counts["requests"] += 1
            if len(seen) != 1:
                problems.append(seen)
        except Exception as error:
            problems.append(error)

    drivers = [Thread(target=drive, args=(number,)) for number in range(8)]
    for driver in drivers:
        driver.start()
    for change in range(200):
        share = 1 + change * 37 % 98
        proxy.apply(split(old=share, new=100 - share) if change % 3 else split(old=1, new=1, next=98))
    stop.set()
    for driver in drivers:
        driver.join()
    assert not problems
    assert counts["requests"] > 200


def test_the_time_at_which_a_request_came_is_the_proxy_s_and_no_client_s(
    upstream: FakeUpstream, vehicle: Vehicle
) -> None:
    before = time.time()
    for headers in ({}, {"x_request_start": "t=1000000000000"}):
        assert vehicle.ask(**headers)[0] == 200
        start = upstream.asked_headers[-1]["x-request-start"]
        assert start.startswith("t=")
        assert before - 1 <= int(start[2:]) / 1e3 <= time.time() + 1


@pytest.mark.parametrize(
    "name",
    ["content-type", "content-encoding", "x-policy-seed", "x-policy-deadline-ms", "x-policy-deterministic"],
)
def test_a_header_that_matters_is_there_once_or_refused(upstream: FakeUpstream, proxy: Proxy, name: str) -> None:
    """Behind the proxy all names are in lower case, and the server keeps the last of two."""
    own = [f"POST {PREDICTIONS} HTTP/1.1", "host: a", "content-length: 2", f"{name}: 1", f"{name.upper()}: 2", "", "{}"]
    reply = first_reply(proxy.port, "\r\n".join(own).encode())
    assert (reply.told, upstream.asked) == ((400, "PROXY_BAD_REQUEST"), [])


def test_a_body_of_16_mib_passes(proxy: Proxy, vehicle: Vehicle) -> None:
    proxy.apply(split(new=100))
    size = 16 * 2**20
    assert vehicle.ask(body=b" " * size)[1]["bytes"] == size


def test_a_server_that_is_gone_is_a_503_in_the_project_s_words(upstream: FakeUpstream, proxy: Proxy) -> None:
    upstream.stop()
    with Vehicle(proxy.port) as vehicle:
        status, answer = vehicle.ask()
    assert (status, answer["code"], answer["type"]) == (503, 503, "PROXY_NO_SERVER")
    assert "carla-policy serve" in answer["message"]


def test_a_connection_that_closes_under_a_request_costs_nobody_an_answer(
    upstream: FakeUpstream, vehicle: Vehicle
) -> None:
    assert vehicle.ask()[0] == 200
    upstream.hang_ups = 1
    vehicle.connection.putrequest("POST", PREDICTIONS)
    vehicle.connection.putheader("content-length", "40000")
    vehicle.connection.endheaders()
    time.sleep(0.1)  # the body may come later than the headers
    vehicle.connection.send(b"x" * 40_000)
    assert json.loads(vehicle.connection.getresponse().read())["bytes"] == 40_000


def test_a_server_that_only_hangs_up_is_a_502_in_the_project_s_words(upstream: FakeUpstream, vehicle: Vehicle) -> None:
    upstream.hang_ups = 10
    status, answer = vehicle.ask()
    assert (status, answer["code"], answer["type"]) == (502, 502, "PROXY_BAD_GATEWAY")


def test_a_server_that_was_started_again_elsewhere_is_followed(upstream: FakeUpstream, proxy: Proxy) -> None:
    with FakeUpstream() as other, Vehicle(proxy.port) as vehicle:
        vehicle.ask()
        proxy.move(f"http://{other.address}")
        assert vehicle.ask()[0] == 200
        assert (len(upstream.asked), len(other.asked)) == (1, 1)


def test_a_proxy_that_was_killed_is_noticed(proxy: Proxy) -> None:
    assert proxy.pid
    psutil.Process(proxy.pid).kill()
    with pytest.raises(ProxyError, match="HAProxy ended with status -9"):
        _check_forever(proxy)


def test_a_server_that_does_not_answer_in_time_is_a_504_in_the_project_s_words(upstream: FakeUpstream) -> None:
    with Proxy(upstream.address, Routes(OLD), server_timeout_s=0.2) as proxy, Vehicle(proxy.port) as vehicle:
        status, answer = vehicle.ask(x_hold="1")
        upstream.held.set()
    assert (status, answer["code"], answer["type"]) == (504, 504, "PROXY_SERVER_TIMEOUT")


def test_stopping_answers_what_is_in_flight_and_takes_nothing_new(upstream: FakeUpstream, proxy: Proxy) -> None:
    answers = list[tuple[int, object]]()

    def ask() -> None:
        with Vehicle(proxy.port) as vehicle:
            answers.append(vehicle.ask(x_hold="1"))

    waiting = [Thread(target=ask) for _ in range(8)]
    for thread in waiting:
        thread.start()
    while proxy.runtime.command("show sess").count("fe=predictions") < len(waiting):
        time.sleep(0.01)
    stopping = Thread(target=proxy.stop)
    stopping.start()
    while _is_listening(proxy.port):
        time.sleep(0.01)
    assert not answers
    upstream.held.set()
    for thread in (*waiting, stopping):
        thread.join()
    assert [status for status, _ in answers] == [200] * len(waiting)


def test_a_kept_connection_gets_one_more_answer_while_the_proxy_stops(upstream: FakeUpstream, proxy: Proxy) -> None:
    with Vehicle(proxy.port) as holding, Vehicle(proxy.port) as idle:
        assert idle.ask()[0] == 200
        upstream.arrived.clear()
        thread = Thread(target=lambda: holding.ask(x_hold="1"))
        thread.start()
        assert upstream.arrived.wait(5)
        stopping = Thread(target=proxy.stop)
        stopping.start()
        while _is_listening(proxy.port):
            time.sleep(0.01)
        assert idle.ask()[0] == 200
        stopping.join(0.3)
        assert stopping.is_alive(), "the last request is still being worked on"
        upstream.held.set()
        thread.join()
        stopping.join()


def test_the_proxy_ends_with_its_parent(upstream: FakeUpstream, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from carla_policy_tools.routing.proxy import Proxy\n"
        "from carla_policy_tools.routing.routes import Routes\n"
        "with Proxy(sys.argv[1], Routes('v0.1.0'), run_dir=Path(sys.argv[2])) as proxy:\n"
        "    print(proxy.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, upstream.address, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
        child.wait(10)
    assert not child.is_running()


def test_a_port_that_is_taken_is_named(upstream: FakeUpstream) -> None:
    taken = int(upstream.address.rpartition(":")[2])
    proxy = Proxy(upstream.address, Routes(OLD), port=taken)
    with pytest.raises(OSError, match=f"port {taken} on 127.0.0.1 cannot be used.*--port"):
        proxy.__enter__()
    assert not proxy.run_dir.exists()


def test_each_prediction_leaves_a_record(upstream: FakeUpstream, proxy: Proxy, vehicle: Vehicle) -> None:
    upstream.headers[NEW] = {"x-policy-interventions": "bounds, ood", "x-policy-ood": "2", "x-policy-version": NEW}
    upstream.statuses[NEXT] = 500
    with Traffic(proxy.traffic_socket) as traffic:
        vehicle.ask("/ping")
        vehicle.ask(f"{PREDICTIONS}/{NEXT}", x_vehicle_id='caf\xe9 "7"')
        vehicle.ask(x_episode_id="a")
        proxy.apply(split(new=100))
        vehicle.ask(x_vehicle_id="b", x_episode_id="a")
        records = _read(traffic, 3)
    named, promoted, routed = records
    assert (named.version, named.route, named.status, named.failed) == (NEXT, "named", 500, True)
    assert (promoted.version, promoted.route, promoted.key) == (OLD, "promoted", "episode:a")
    assert (routed.version, routed.route, routed.status) == (NEW, "split", 200)
    assert (routed.interventions, routed.ood, routed.failed) == (("bounds", "ood"), 2, False)
    assert routed.response_ms is not None
    assert 0 < routed.response_ms <= routed.total_ms


def test_two_listeners_get_the_same_and_none_disturbs_nobody(proxy: Proxy, vehicle: Vehicle) -> None:
    vehicle.ask(x_episode_id="before")
    with Traffic(proxy.traffic_socket) as one, Traffic(proxy.traffic_socket) as other:
        vehicle.ask(x_episode_id="during")
        for listener in (one, other):
            while "episode:during" not in [record.key for record in _read(listener, 1)]:
                pass
    assert vehicle.ask(x_episode_id="after")[0] == 200


def test_a_listener_that_does_not_read_misses_records_and_is_told(proxy: Proxy, vehicle: Vehicle) -> None:
    with Traffic(proxy.traffic_socket) as traffic:
        for _ in range(3_000):
            assert vehicle.ask(x_episode_id="e" * 128)[0] == 200
        read = 0
        while read + traffic.lost < 3_000:
            vehicle.ask(x_episode_id="one more, that brings the news")
            read += len(traffic.read(0.2))
    assert traffic.lost > 0


def test_an_answer_that_ends_early_is_a_failure(upstream: FakeUpstream, proxy: Proxy, vehicle: Vehicle) -> None:
    upstream.cut.add(OLD)
    with Traffic(proxy.traffic_socket) as traffic:
        with pytest.raises(http.client.IncompleteRead):
            vehicle.ask(f"{PREDICTIONS}/{OLD}")
        (record,) = _read(traffic, 1)
    assert (record.status, record.failed) == (200, True)


def test_shares_have_to_add_up() -> None:
    with pytest.raises(
        ValueError, match=r"v0.2.0=90 \+ v0.3.0=20: expected shares that add up to 100 percent, got 110"
    ):
        split(old=90, new=20)
    with pytest.raises(ValueError, match=r"v0.3.0=-10: expected a share from 0 to 100"):
        split(new=-10, old=110)


def test_every_bucket_has_an_owner_and_shares_are_exact() -> None:
    entries = RouteMap().entries(split(old=1, new=33, next=66))
    owners = Counter(value.partition(" ")[2] for key, value in entries.items() if key.startswith("bucket/"))
    assert owners == {OLD: 1, NEW: 33, NEXT: 66}


def test_without_haproxy_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("carla_policy_tools.routing.haproxy.shutil.which", lambda *_, **__: None)
    monkeypatch.setattr("carla_policy_tools.routing.haproxy.UNPACKED", tmp_path)
    with pytest.raises(ProxyError, match="make proxy"):
        find_haproxy()


def _read(traffic: Traffic, count: int) -> list[Exchange]:
    records: list[Exchange] = []
    while len(records) < count:
        found = traffic.read(5)
        assert found, f"{len(records)} of {count} records came"
        records += found
    return records


def _check_forever(proxy: Proxy) -> None:
    while True:
        proxy.check()


def _is_listening(port: int) -> bool:
    return any(
        connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
        for connection in psutil.net_connections("tcp4")
    )
