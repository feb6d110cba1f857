"""Which server a verb asks, and with which key: the one at a URL, or the store's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from carla_policy_tools.addresses import LOOPBACK

if TYPE_CHECKING:
    from carla_policy_tools.lifecycle.endpoint import Endpoint
    from carla_policy_tools.lifecycle.registry import RegistryFile
    from carla_policy_tools.tokens import Tokens

Url = Annotated[
    str | None,
    typer.Option("--url", help="Base URL for predictions; the store's own server's, else port 8080 here."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", help="key_file.json of a server with --token-auth; the store's own server's is found."),
]


@dataclass(frozen=True)
class AskedServer:
    """The base `url` of predictions, and what gives requests a key where the server asks for one."""

    url: str
    auth: Tokens | None


def asked_server(url: str | None, key_file: Path | None, store: Path, registry: Path | None) -> AskedServer:
    """The server at `url`, or the one that serves the registry of `store`, or else the one on port 8080 here."""
    from carla_policy_tools.lifecycle.registry import RegistryFile
    from carla_policy_tools.tokens import Tokens

    own = _own_server(RegistryFile.of(store, registry))
    if url is None:
        url = own.ports.url("inference") if own else f"http://{LOOPBACK}:8080"
    url = url if "://" in url else f"http://{url}"
    return AskedServer(url, Tokens(key_file, "inference") if key_file else _auth_of(url, own))


def _own_server(registry_file: RegistryFile) -> Endpoint | None:
    from carla_policy_tools.lifecycle.endpoint import find_server
    from carla_policy_tools.lifecycle.registry import RegistryError

    try:
        return find_server(registry_file)
    except RegistryError:
        return None


def _auth_of(url: str, server: Endpoint | None) -> Tokens | None:
    """The keys of a registry's own server, if it asks for them: they are for nobody else at another `url`."""
    if server is None:
        return None
    asked, own = urlsplit(url), urlsplit(server.ports.url("inference"))
    hosts = {own.hostname, "localhost"} if own.hostname == LOOPBACK else {own.hostname}
    return server.auth("inference") if asked.hostname in hosts and asked.port == own.port else None
