"""TorchServe's token mode, from the side of who asks: where the keys are, how a request gets one, how they are renewed.

A server in token mode keeps a key for predictions, one for its management port, and one for renewing these two, in
`key_file.json` of its run directory. The first two expire. A renewed key holds at once and the old one no more, so a
key is read for each request anew, and never kept, printed or logged.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import requests
from requests.auth import AuthBase
from typing_extensions import Self

from carla_policy_tools.urls import local_session

RENEW_AT = 0.75
"""Of their lifetime: what is left is for a server that is busy."""
_WRITTEN_WITHIN_S = 0.5
_POLL_S = 0.02
_RETRY_S = 0.2
_TIMEOUT_S = 5.0

Kind = Literal["inference", "management", "API"]


class KeyFileError(OSError):
    """The keys of a server in token mode cannot be read."""


class Tokens(AuthBase):
    """Gives each request of a session the key that holds now."""

    def __init__(self, key_file: Path, kind: Kind) -> None:
        self._key_file = key_file
        self._kind: Kind = kind

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._header()
        request.register_hook("response", self._once_more)  # type: ignore[no-untyped-call]
        return request

    @property
    def key(self) -> str:
        """The key that holds now, for who cannot ask each time."""
        return read_key(self._key_file, self._kind)

    def _header(self) -> str:
        return f"Bearer {self.key}"

    def _once_more(self, response: requests.Response, **how: Any) -> requests.Response:
        """Ask again with the new key if keys were renewed while the request was on its way."""
        if response.status_code != 400 or b"InvalidKeyException" not in response.content:
            return response
        used, deadline = response.request.headers.get("Authorization"), time.monotonic() + _WRITTEN_WITHIN_S
        while (header := self._header()) == used:
            if time.monotonic() > deadline:
                return response
            time.sleep(_POLL_S)
        request = response.request.copy()
        request.headers["Authorization"] = header
        connection: requests.adapters.HTTPAdapter = response.connection
        response.close()
        return connection.send(request, **how)


def read_key(key_file: Path, kind: Kind) -> str:
    """The key that holds now; `KeyFileError` says why there is none, without its content."""
    deadline = time.monotonic() + _WRITTEN_WITHIN_S
    while True:
        try:
            return str(json.loads(key_file.read_bytes())[kind]["key"])
        except OSError as error:
            raise KeyFileError(
                f"{key_file}: the server's keys cannot be read: {error.strerror}; run this as the user that the server "
                "runs as, on its machine"
            ) from None
        except (ValueError, LookupError, TypeError):  # being written at this moment
            if time.monotonic() > deadline:
                raise KeyFileError(f"{key_file}: holds no {kind} key; start the server again") from None
        time.sleep(_POLL_S)


class Renewal:
    """Renews a server's keys before they expire, from entering until leaving, also while it starts and drains."""

    def __init__(self, management: str, key_file: Path, minutes: float) -> None:
        """`management` is the URL of the server's management port, `minutes` what keys live for."""
        self._url = f"{management}/token"
        self._auth = Tokens(key_file, "API")
        self._interval_s = RENEW_AT * 60 * minutes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="key-renewal", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        # The server's clock is the machine's, which may jump where a monotonic one does not.
        due = time.time() + self._interval_s
        while not self._stop.wait(_RETRY_S):
            if time.time() >= due:
                # What fails is tried again: the key for renewing does not expire.
                with suppress(OSError):
                    self._renew()
                    due = time.time() + self._interval_s

    def _renew(self) -> None:
        with local_session(self._auth) as session:
            for kind in ("management", "inference"):
                session.get(self._url, params={"type": kind}, timeout=_TIMEOUT_S).raise_for_status()
