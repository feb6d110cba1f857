"""HAProxy's runtime API: one command for each connection to its stats socket.

https://docs.haproxy.org/2.6/management.html, section 9.3
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from carla_policy_tools.routing.haproxy import ProxyError

TIMEOUT_S = 5.0


class RuntimeApi:
    """Commands to the proxy that listens at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def command(self, text: str) -> str:
        """The answer to one command; `OSError` if nothing listens."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(self._path))
            connection.sendall(f"{text}\n".encode())
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts).decode(errors="replace").strip()

    def replace_map(self, name: str, entries: Mapping[str, str]) -> None:
        """Put `entries` in the place of the whole map, at once: a request sees the old ones or the new ones."""
        answer = self.command(f"prepare map {name}")
        version = re.fullmatch(r"New version created: (\d+)", answer)
        if version is None:
            raise ProxyError(f"HAProxy does not prepare {name}: {answer}")
        lines = "".join(f"{key} {value}\n" for key, value in entries.items())
        for text in (f"add map @{version[1]} {name} <<\n{lines}", f"commit map @{version[1]} {name}"):
            answer = self.command(text)
            if answer:
                raise ProxyError(f"HAProxy does not change {name}: {answer}")


class RuntimeSession:
    """A connection for several commands, which stays open while the proxy is stopping."""

    _PROMPT = b"\n> "

    def __init__(self, path: Path) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.settimeout(TIMEOUT_S)
            self._connection.connect(str(path))
            self.command("prompt")
        except OSError:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def command(self, text: str) -> str:
        """The answer to one command; `OSError` when the proxy has ended."""
        self._connection.sendall(f"{text}\n".encode())
        answer = b""
        while not answer.endswith(self._PROMPT):
            part = self._connection.recv(65536)
            if not part:
                raise ConnectionResetError("HAProxy has ended")
            answer += part
        return answer.removesuffix(self._PROMPT).decode(errors="replace").strip()

    def connections(self) -> int:
        """How many connections of clients are open, idle ones included."""
        found = re.search(r"^CurrConns: (\d+)$", self.command("show info"), re.M)
        return int(found[1]) if found else 0
