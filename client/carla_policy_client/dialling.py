"""Connecting: name resolution, TCP and TLS, which may each take long; only background threads do it."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any, NamedTuple

from carla_policy_client.address import Address
from carla_policy_client.connection import Connection
from carla_policy_client.misses import Miss

CONNECT_TIMEOUT_S = 2.0
"""For TCP, and as much for TLS."""


class Place(NamedTuple):
    """Where the server may be: what a name was resolved to."""

    family: int
    where: tuple[Any, ...]


class Dialler:
    """Connects to one server, first to where it was found last, so that a name server that is away does no harm."""

    def __init__(self, address: Address, context: ssl.SSLContext | None) -> None:
        """`context` is what TLS trusts and shows; the system's authorities by default."""
        self.address = address
        self.context = (context or ssl.create_default_context()) if address.is_tls else None
        self.known: list[Place] = []

    def dial(self) -> Connection:
        """A new connection; `OSError` says why there is none."""
        failure: OSError | None = None
        for is_resolved in (False, True):
            for place in self.resolve() if is_resolved else self.known:
                try:
                    connection = self._connect(place)
                except OSError as error:
                    failure = error
                else:
                    self.known = [place]
                    return connection
        raise failure or OSError(f"{self.address.host} has no address")

    def resolve(self) -> list[Place]:
        """Where the server's name leads; may take as long as the system's resolver likes."""
        found = socket.getaddrinfo(self.address.host, self.address.port, type=socket.SOCK_STREAM)
        return [Place(family, where) for family, _, _, _, where in found]

    def _connect(self, place: Place) -> Connection:
        due = time.monotonic() + CONNECT_TIMEOUT_S
        sock = socket.socket(place.family, socket.SOCK_STREAM)
        try:
            sock.settimeout(CONNECT_TIMEOUT_S)
            sock.connect(place.where)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.context is not None:
                sock.setblocking(False)
                sock = self.context.wrap_socket(sock, server_hostname=self.address.host, do_handshake_on_connect=False)
            connection = Connection(sock)
            connection.handshake(due)
        except Miss:
            sock.close()
            raise OSError(f"no TLS handshake in {CONNECT_TIMEOUT_S:g} s") from None
        except BaseException:
            sock.close()
            raise
        return connection
