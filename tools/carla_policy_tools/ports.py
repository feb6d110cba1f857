"""The ports of a server, and where on this machine they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from socket import socket

from carla_policy_tools.addresses import LOOPBACK, listening_socket, reached_at


@dataclass(frozen=True)
class Ports:
    """TorchServe's five ports, that of the probes, and the address at which predictions, metrics and probes are.

    Management stays on loopback, and so does gRPC, which cannot be switched off and gets free ports.
    """

    inference: int
    management: int
    metrics: int
    health: int
    grpc_inference: int
    grpc_management: int
    host: str = LOOPBACK

    def host_of(self, kind: str) -> str:
        """The address on which `inference`, `management`, `metrics` or `health` listens."""
        return LOOPBACK if kind == "management" else self.host

    def url(self, kind: str) -> str:
        """`http://<address>:<port>` by which this machine reaches `inference`, `management`, `metrics` or `health`."""
        return f"http://{reached_at(self.host_of(kind))}:{getattr(self, kind)}"


def choose_ports(
    inference: int,
    management: int | None = None,
    metrics: int | None = None,
    health: int | None = None,
    host: str = LOOPBACK,
) -> Ports:
    """Ports to listen on: 0 means any free one, and the others follow inference unless given.

    Raises `OSError` naming the port that is taken, before anything is started.
    """
    wanted = {"port": inference}
    others = {"management-port": management, "metrics-port": metrics, "health-port": health}
    for offset, (option, port) in enumerate(others.items(), start=1):
        wanted[option] = port if port is not None else (inference + offset if inference else 0)
    fixed = [port for port in wanted.values() if port]
    if len(set(fixed)) != len(fixed):
        listed = ", ".join(map(str, fixed))
        raise ValueError(f"predictions, management, metrics and health need a port each, got {listed}")
    sockets = []
    try:
        for option, port in (*wanted.items(), ("grpc", 0), ("grpc", 0)):
            sockets.append(bound(port, option, LOOPBACK if option in ("management-port", "grpc") else host))
        return replace(Ports(*(listener.getsockname()[1] for listener in sockets)), host=host)
    finally:
        for listener in sockets:
            listener.close()


def bound(port: int, option: str, host: str = LOOPBACK) -> socket:
    """A socket that has `port` at `host`, 0 for any free one; `OSError` names the port and its option."""
    try:
        return listening_socket(host, port)
    except (OSError, OverflowError) as error:
        reason = f"port {port} on {host} cannot be used: {getattr(error, 'strerror', None) or error}"
        raise OSError(f"{reason}; choose another with --{option}") from None
