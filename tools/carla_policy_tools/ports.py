"""The ports of a server, and where on this machine they are."""

from __future__ import annotations

from dataclasses import dataclass

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

    Each is reserved as `reserved_port` says. Raises `OSError` naming the port that is taken, before anything starts.
    """
    wanted = {"port": inference}
    others = {"management-port": management, "metrics-port": metrics, "health-port": health}
    for offset, (option, port) in enumerate(others.items(), start=1):
        wanted[option] = port if port is not None else (inference + offset if inference else 0)
    fixed = [port for port in wanted.values() if port]
    if len(set(fixed)) != len(fixed):
        listed = ", ".join(map(str, fixed))
        raise ValueError(f"predictions, management, metrics and health need a port each, got {listed}")
    addresses = (*wanted.items(), ("grpc", 0), ("grpc", 0))
    loopback_only = ("management-port", "grpc")
    inference, management, metrics, health, grpc, grpc_management = [
        reserved_port(port, option, LOOPBACK if option in loopback_only else host) for option, port in addresses
    ]
    return Ports(inference, management, metrics, health, grpc, grpc_management, host)


def reserved_port(port: int = 0, option: str = "port", host: str = LOOPBACK) -> int:
    """`port` at `host`, 0 for any free one, that no other program is given by chance until this process ends.

    A socket stays bound to it that never listens. The system hands such a port to nobody who asks for any port, for a
    connection or a server; who asks for this very one may still listen there, if it sets `SO_REUSEADDR` as servers do.
    A port that was only looked at is often taken by another program's connection before a server has come up. Raises
    `OSError` that names the port and its option.
    """
    try:
        with listening_socket(host, port) as holder:
            number = int(holder.getsockname()[1])
            holder.detach()
            return number
    except (OSError, OverflowError) as error:
        reason = f"port {port} on {host} cannot be used: {getattr(error, 'strerror', None) or error}"
        raise OSError(f"{reason}; choose another with --{option}") from None
