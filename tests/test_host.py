"""`serve --host`: predictions, metrics and probes for other machines; management and gRPC for this one only."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import psutil
import pytest
import requests

from carla_policy_tools.addresses import LOOPBACK, is_local, parse_host, reached_at
from carla_policy_tools.ports import choose_ports
from carla_policy_tools.routing.proxy import Proxy
from carla_policy_tools.routing.routes import Routes
from tests.servers import ServeProcess
from tests.test_serve_command import run

VERSION = "v1.9.0"
OBSERVATION = {"speed": 1.0, "steering": 0.0, "sensors": [0.0] * 5}


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def own_address() -> str | None:
    """An IPv4 address of this machine by which others may reach it."""
    found = (item for items in psutil.net_if_addrs().values() for item in items if item.family == socket.AF_INET)
    return next((item.address for item in found if not is_local(item.address)), None)


def becomes_ready(health: str) -> bool:
    """Whether the probe is green within ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if requests.get(f"{health}/readyz", timeout=10).ok:
            return True
        time.sleep(0.05)
    return False


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 5).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "host", "reached"),
    [
        ("0.0.0.0", "0.0.0.0", LOOPBACK),
        ("::", "::", LOOPBACK),
        ("localhost", LOOPBACK, LOOPBACK),
        ("127.0.0.2", "127.0.0.2", "127.0.0.2"),
        ("192.0.2.7", "192.0.2.7", "192.0.2.7"),
    ],
)
def test_addresses_and_how_this_machine_reaches_them(text: str, host: str, reached: str) -> None:
    assert (parse_host(text), reached_at(host)) == (host, reached)


@pytest.mark.parametrize("text", ["", "example.org", "::1", "fd00::1", "10.0.0.256", "0.0.0.0:8080", "*", "0"])
def test_names_and_single_ipv6_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected an IPv4 address, such as 0\.0\.0\.0, or ::"):
        parse_host(text)


def test_address_that_is_not_this_machine_s_is_named() -> None:
    with pytest.raises(OSError, match=r"on 192\.0\.2\.1 cannot be used.*--port"):
        choose_ports(0, host="192.0.2.1")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", pytest.param("::", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here"))]
)
def test_server_for_all_listens_everywhere_but_for_management(small_store: Path, host: str) -> None:
    with ServeProcess(small_store, VERSION, "--host", host) as server:
        assert server.ready["host"] == host
        assert all(f"{LOOPBACK}:" in server.ready[kind] for kind in ("inference", "metrics", "health", "management"))
        assert server.post(VERSION, {"observations": [OBSERVATION]}).status_code == 200
        assert becomes_ready(server.ready["health"])
        ports = {kind: int(server.ready[kind].rpartition(":")[2]) for kind in ("inference", "metrics", "health")}
        everywhere = [own_address(), "::1" if host == "::" else None]
        for address in filter(None, everywhere):
            assert {kind: answers(address, port) for kind, port in ports.items()} == dict.fromkeys(ports, True)
        if host == "0.0.0.0" and has_ipv6():
            assert [port for port in ports.values() if answers("::1", port)] == []
        java = psutil.Process(server.ready["server_pid"])
        listening = [c.laddr for c in java.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        beyond = {at.port for at in listening if at.ip.removeprefix("::ffff:") not in (LOOPBACK, "::1")}
        assert beyond == {ports["inference"], ports["metrics"]}
        assert len(listening) == 5
        with Proxy(server.base, Routes(VERSION)) as proxy:
            url = f"{proxy.url}/predictions/carla_policy"
            assert requests.post(url, json={"observations": [OBSERVATION]}, timeout=10).status_code == 200
        where = ("--store", str(small_store), "--registry", str(server.registry))
        assert run("predict", *where).stdout.count(VERSION) == 1
        assert run("health", *where).returncode == 0
        status, errors = server.stop()
    assert status == 0
    assert f"note: listens on {host}: whoever reaches it can ask for predictions" in errors


def test_single_address_is_what_commands_and_printed_urls_name(small_store: Path) -> None:
    with ServeProcess(small_store, VERSION, "--host", "127.0.0.2", "--token-auth") as server:
        port = int(server.base.rpartition(":")[2])
        assert server.base == f"http://127.0.0.2:{port}"
        assert not answers(LOOPBACK, port)
        assert server.ready["management"].startswith(f"http://{LOOPBACK}:")
        where = ("--store", str(small_store), "--registry", str(server.registry))
        assert run("predict", *where).stdout.count(VERSION) == 1
        status, errors = server.stop()
    assert (status, errors) == (0, "")
