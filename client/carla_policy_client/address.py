"""Where the policy is served, and as whom it is asked: checked once, so that nothing else gets into a request.

What ends up in a request line or a header is plain ASCII without spaces or line ends; anything else is refused.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
_SEGMENT = re.compile(r"[A-Za-z0-9._+-]{1,128}")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_TOKEN = re.compile(r"[!-~]{1,4096}")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?")


class Address(NamedTuple):
    """A server: `path` is that of predictions, of one version or of whichever is promoted."""

    host: str
    port: int
    is_tls: bool
    host_header: str
    root: str
    path: str

    def episodes_path(self, version: str) -> str:
        """Where episodes that `version` drove are reported."""
        return f"{self.root}/{version}/episodes"


def parse(url: str, version: str | None, model: str) -> Address:
    """`url` is the server's base, such as `http://localhost:8080` or `https://[2001:db8::1]/fleet`."""
    _need_text("url", url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"url: {error} in {url!r:.80}") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"url: expected http://host:port or https://host:port, got {url!r:.80}")
    if "@" in parts.netloc or parts.query or parts.fragment or "?" in url or "#" in url:
        raise ValueError("url: expected no user, query or fragment; a key is given as token")
    if not _HOST.fullmatch(parts.hostname) or not _PATH.fullmatch(parts.path) or url != url.strip():
        raise ValueError(f"url: {url!r:.80} has characters that no address has")
    if port == 0:
        raise ValueError("url: port 0 is no port of a server")
    host = "[{}]".format(parts.hostname.split("%")[0]) if ":" in parts.hostname else parts.hostname
    default = _PORTS[parts.scheme]
    root = "{}/predictions/{}".format(parts.path.rstrip("/"), segment("model", model))
    return Address(
        host=parts.hostname,
        port=port or default,
        is_tls=parts.scheme == "https",
        host_header=host if port in (None, default) else f"{host}:{port}",
        root=root,
        path=root if version is None else "{}/{}".format(root, segment("version", version)),
    )


def segment(name: str, value: str) -> str:
    """`value` as one part of a path."""
    _need_text(name, value)
    if not _SEGMENT.fullmatch(value) or value.strip(".") == "":
        raise ValueError(f"{name}: expected letters, digits, dots, plus and minus, got {value!r:.80}")
    return value


def identifier(name: str, value: str) -> str:
    """`value` as what a vehicle or an episode is called in headers and in the server's log."""
    _need_text(name, value)
    if not _ID.fullmatch(value):
        raise ValueError(f"{name}: expected up to 64 letters, digits, and any of . _ : -, got {value!r:.80}")
    return value


def bearer(token: str) -> str:
    """The value of the header `Authorization`; its error does not repeat the key."""
    _need_text("token", token)
    if not _TOKEN.fullmatch(token):
        raise ValueError("token: expected visible ASCII characters without spaces")
    return "Bearer " + token


def _need_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, got {type(value).__name__}")
