"""A server that stops takes no new connections, goes on with those it has, and loses nothing that it was asked."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from carla_policy_tools.addresses import LOOPBACK
from carla_policy_tools.lifecycle.draining import pass_queue, wait_until_unused
from carla_policy_tools.lifecycle.management import Management
from carla_policy_tools.lifecycle.registry import RegistryError
from carla_policy_tools.lifecycle.stopping import _connections, close_listener
from carla_policy_tools.ports import reserved_port
from tests.declared import PretendedServer
from tests.elsewhere import ended, running, started


def echo(ports: list[int], family: int, report: Connection) -> None:
    """Listen, and answer every connection with what it sends, whatever becomes of the listener."""

    def answer(connection: socket.socket) -> None:
        while data := connection.recv(100):
            connection.sendall(data)

    def listen(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    listeners = []
    for port in ports:
        dual = family == socket.AF_INET6
        listener = socket.create_server(
            (f"::ffff:{LOOPBACK}" if dual else LOOPBACK, port), family=family, dualstack_ipv6=dual
        )
        listeners.append(listener)
        threading.Thread(target=listen, args=(listener,), daemon=True).start()
    report.send([listener.getsockname()[1] for listener in listeners])
    signal.pause()


def said(connection: socket.socket, text: bytes) -> bytes:
    connection.sendall(text)
    return connection.recv(100)


@pytest.fixture
def ports() -> list[int]:
    return [reserved_port(), reserved_port()]


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6])
def server(request: pytest.FixtureRequest, ports: list[int]) -> Iterator[int]:
    """The pid of a server at both ports."""
    with running(echo, ports, request.param) as process:
        assert process.pid is not None
        yield process.pid


def test_closed_listener_refuses_new_connections_and_established_ones_go_on(server: int, ports: list[int]) -> None:
    with socket.create_connection((LOOPBACK, ports[0]), 5) as established:
        assert said(established, b"before") == b"before"
        assert close_listener(server, ports[0])
        for _ in range(20):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((LOOPBACK, ports[0]), 5)
        assert said(established, b"after") == b"after"
    with socket.create_connection((LOOPBACK, ports[1]), 5) as other:
        assert said(other, b"another port") == b"another port"


def test_listener_can_be_closed_twice_and_where_there_is_none(server: int, ports: list[int]) -> None:
    assert not close_listener(server, reserved_port())
    assert close_listener(server, ports[0])
    close_listener(server, ports[0])
    assert not close_listener(os.getpid(), ports[1])


def test_listener_of_a_process_that_is_gone_needs_no_closing() -> None:
    process = started(int)
    ended(process)
    assert process.pid is not None
    assert not close_listener(process.pid, reserved_port())


def test_open_connections_are_counted_by_port(server: int, ports: list[int]) -> None:
    assert _connections(server, ports[0]) == 0
    with socket.create_connection((LOOPBACK, ports[0]), 5) as first:
        said(first, b"x")
        assert (_connections(server, ports[0]), _connections(server, ports[1])) == (1, 0)


@pytest.fixture
def pretended() -> Iterator[PretendedServer]:
    server = PretendedServer(["v1.0.0"], "v1.0.0")
    with server.running():
        yield server


def test_queue_has_passed_when_every_ready_worker_has_answered(
    pretended: PretendedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended.workers["v1.0.0"] = ["READY", "UNLOADING", "READY"]
    answering = iter([100, 100, None, 102, 102])
    asked = []

    def next_worker(_: Management, version: str, timeout_s: float) -> int | None:
        assert 0 < timeout_s <= 30
        asked.append(version)
        return next(answering)

    monkeypatch.setattr(Management, "barrier", next_worker)
    with Management(pretended.url) as management:
        assert pass_queue(management, "v1.0.0", 30)
    assert asked == ["v1.0.0"] * 4


def test_queue_of_a_worker_that_does_not_answer_has_not_passed(pretended: PretendedServer) -> None:
    pretended.answering_worker = None
    with Management(pretended.url) as management:
        assert not pass_queue(management, "v1.0.0", 0.1)


@pytest.mark.parametrize("version", ["v1.0.0", "v9.0.0"])
def test_version_without_ready_workers_has_nothing_to_wait_for(pretended: PretendedServer, version: str) -> None:
    pretended.workers["v1.0.0"] = ["UNLOADING"]
    pretended.answering_worker = None
    with Management(pretended.url) as management:
        assert pass_queue(management, version, 0)


def metrics(**counts: int) -> str:
    """TorchServe's page of counts by version, `v1_0_0` for v1.0.0, which was tried out before it had its own name."""
    line = 'ts_inference_requests_total{model_name="%s",model_version="%s",} %d.0'
    lines = [line % ("carla_policy-candidate-v1.0.0", "v1.0.0", 32)]
    lines += [line % ("carla_policy", name.replace("_", "."), count) for name, count in counts.items()]
    return "# HELP\n" + "\n".join(lines) + "\n"


def test_version_is_unused_when_nobody_asks_for_it_though_others_are_asked(
    pretended: PretendedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = (metrics(v1_0_00=number, v1_0_0=3, default=number, v11_0_0=number) for number in range(10_000))
    monkeypatch.setattr(pretended, "answer", lambda *_: (200, next(pages)))
    wait_until_unused(pretended.url, "v1.0.0", 0)


def test_version_that_has_never_been_asked_for_is_unused(pretended: PretendedServer) -> None:
    wait_until_unused(pretended.url, "v1.0.0", 0)


def test_version_that_is_asked_for_all_the_time_is_in_use(
    pretended: PretendedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = (metrics(v1_0_0=number) for number in range(10_000))
    monkeypatch.setattr(pretended, "answer", lambda *_: (200, next(pages)))
    with pytest.raises(RegistryError, match=r"clients still ask .*/carla_policy/v1\.0\.0 by name.* --force"):
        wait_until_unused(pretended.url, "v1.0.0", 0.5)


def test_version_whose_last_client_has_just_left_is_unused(
    pretended: PretendedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = (metrics(v1_0_0=min(number, 4)) for number in range(10_000))
    monkeypatch.setattr(pretended, "answer", lambda *_: (200, next(pages)))
    wait_until_unused(pretended.url, "v1.0.0", 30)
    assert next(pages).endswith(" 4.0\n")
