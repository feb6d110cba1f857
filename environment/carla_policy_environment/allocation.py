"""Which ports and which GPU each of several services on this machine gets."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
CARLA_PORTS = 4
"""CARLA takes the port that it is given for commands, and the next two for sensors and for other servers."""


@dataclass(frozen=True)
class Slot:
    """The place of one service among several."""

    index: int
    port: int
    gpu: str | None = None
    """What CUDA_VISIBLE_DEVICES is set to; unset, all GPUs are visible."""
    carla_port: int | None = None
    carla_traffic_port: int | None = None

    def fill(self, template: str) -> str:
        """`template` with `{index}`, `{port}`, `{gpu}` and `{carla_traffic_port}`; here `{port}` is CARLA's."""
        values = {
            "index": self.index,
            "port": self.carla_port,
            "gpu": 0 if self.gpu is None else self.gpu,
            "carla_traffic_port": self.carla_traffic_port,
        }
        try:
            return template.format(**values)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"{template}: {error!r}; expected only {', '.join(f'{{{name}}}' for name in values)}"
            ) from None


@dataclass(frozen=True)
class Allocation:
    """How slots are given out. A first `port` of 0 takes free ones; `carla_port` is None without CARLA."""

    port: int = 0
    gpus: Sequence[str] = ()
    carla_port: int | None = None
    carla_traffic_port: int = 8000
    host: str = LOOPBACK

    def slot(self, index: int) -> Slot:
        """The slot `index`, which keeps its ports as long as this process lives; `OSError` if one is taken."""
        port = reserved_port(self.host, self.port + index if self.port else 0)
        gpu = self.gpus[index % len(self.gpus)] if self.gpus else None
        if self.carla_port is None:
            return Slot(index, port, gpu)
        return Slot(index, port, gpu, self.carla_port + CARLA_PORTS * index, self.carla_traffic_port + index)


def reserved_port(host: str, port: int = 0) -> int:
    """`port`, or any free one, that the system gives to nobody else by chance until this process ends.

    A socket that never listens stays bound to it. A server that sets `SO_REUSEADDR`, as uvicorn does, may still listen.
    """
    with socket.socket(socket.AF_INET) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(f"port {port} on {host} cannot be used: {reason}; choose another first port") from None
        number = int(holder.getsockname()[1])
        holder.detach()
        return number


def parse_gpus(text: str) -> list[str]:
    """`0,0,1` as the GPUs of the services in turn."""
    gpus = [part.strip() for part in text.split(",")] if text else []
    if not all(gpu.isdecimal() or gpu.startswith(("GPU-", "MIG-")) for gpu in gpus):
        raise ValueError(f"gpus: expected numbers or names such as 0,0,1, got {text!r}")
    return gpus
