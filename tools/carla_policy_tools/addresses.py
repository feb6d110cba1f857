"""Where a server listens: the address that clients use, and the one by which this machine reaches it."""

from __future__ import annotations

import socket

LOOPBACK = "127.0.0.1"
ANY_IPV4 = "0.0.0.0"
ANY = "::"
"""All addresses of this machine, IPv6 and IPv4."""


def parse_host(text: str) -> str:
    """An IPv4 address, `::` for all addresses, or `localhost`, which is 127.0.0.1; `ValueError` for anything else.

    Names are refused, since they may mean another address tomorrow; and TorchServe can name no single IPv6 address.
    """
    from ipaddress import IPv4Address

    if text == "localhost":
        return LOOPBACK
    if text == ANY:
        return text
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise ValueError("expected an IPv4 address, such as 0.0.0.0, or :: for all IPv4 and IPv6 addresses") from None


def is_local(host: str) -> bool:
    """Whether only this machine can connect to what listens there."""
    from ipaddress import ip_address

    return ip_address(host).is_loopback


def reached_at(host: str) -> str:
    """The address by which this machine reaches what listens at `host`."""
    return LOOPBACK if host in (ANY_IPV4, ANY) else host


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket bound to `host`, port 0 for any free one; `::` takes IPv4 as well. Raises `OSError` as `bind` does."""
    family = socket.AF_INET6 if host == ANY else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == ANY:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    return listener
