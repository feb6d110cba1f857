"""Ports are reserved: no other program is given one by chance, and a server still gets the one that it asks for."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from carla_policy_tools.addresses import LOOPBACK, listening_socket
from carla_policy_tools.ports import choose_ports, reserved_port

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_server_that_asks_for_the_reserved_port_gets_it() -> None:
    port = reserved_port()
    with listening_socket(LOOPBACK, port) as server:
        server.listen()
        with socket.create_connection((LOOPBACK, port)) as client, server.accept()[0] as accepted:
            client.sendall(b"hello")
            assert accepted.recv(5) == b"hello"


def test_port_can_be_reserved_again_for_what_this_process_starts_next() -> None:
    port = reserved_port()
    assert reserved_port(port) == port


def test_a_reserved_port_is_given_to_nobody_who_asks_for_any() -> None:
    first, last = map(int, RANGE.read_text().split())
    kept, given = {reserved_port() for _ in range(20)}, set()
    sockets = []
    try:
        while len(sockets) < 800:
            sockets.append(socket.socket())
            if len(sockets) % 2:
                sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sockets[-1].bind((LOOPBACK, 0))
            given.add(sockets[-1].getsockname()[1])
    finally:
        for each in sockets:
            each.close()
    assert all(first <= port <= last for port in kept)
    assert not kept & given


def test_a_reserved_port_cannot_be_bound_by_who_does_not_ask_to_share_it() -> None:
    with socket.socket() as other, pytest.raises(OSError, match="already in use"):
        other.bind((LOOPBACK, reserved_port()))


def test_port_that_a_server_listens_on_is_refused() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        taken = server.getsockname()[1]
        with pytest.raises(OSError, match=rf"port {taken} on {LOOPBACK} cannot be used: .*--management-port"):
            choose_ports(0, taken)
