"""Connecting: name resolution, TCP and TLS, which may each take long; only background threads do it."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

from carla_policy_client.address import Address
from carla_policy_client.connection import Connection
from carla_policy_client.misses import Miss

CONNECT_TIMEOUT_S = 2.0
_Known = "tuple[int, int, int, tuple[Any, ...]]"


class Dialler:
    """Connects to one server, first to where it was found last, so that a name server that is away does no harm."""

    def __init__(self, address: Address, context: ssl.SSLContext | None) -> None:
        """`context` is what TLS trusts and shows; the system's authorities by default."""
        self._address = address
        self._context = (context or ssl.create_default_context()) if address.is_tls else None
        self._last: list[Any] = []

    def dial(self) -> Connection:
        """A new connection; `OSError` says why there is none."""
        failure: OSError | None = None
        for place in self._last:
            try:
                return self._connect(place)
            except OSError as error:
                failure = error
        known, self._last = self._last, []
        for place in self._resolve():
            if place in known:
                continue
            try:
                connection = self._connect(place)
            except OSError as error:
                failure = error
            else:
                self._last = [place]
                return connection
        raise failure or OSError(f"{self._address.host} has no address")

    def _resolve(self) -> list[Any]:
        found = socket.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_STREAM)
        return [(family, kind, protocol, where) for family, kind, protocol, _, where in found]

    def _connect(self, place: Any) -> Connection:
        family, kind, protocol, where = place
        due = time.monotonic() + CONNECT_TIMEOUT_S
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(CONNECT_TIMEOUT_S)
            sock.connect(where)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                sock.setblocking(False)
                sock = self._context.wrap_socket(
                    sock, server_hostname=self._address.host, do_handshake_on_connect=False
                )
            connection = Connection(sock)
            connection.handshake(due)
        except Miss:
            sock.close()
            raise OSError(f"no TLS handshake in {CONNECT_TIMEOUT_S:g} s") from None
        except BaseException:
            sock.close()
            raise
        return connection
