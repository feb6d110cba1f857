"""Speaks HTTP to one environment service: one connection kept alive, errors told apart, nothing done twice.

Only the standard library is used, so that an environment weighs nothing beside a training framework.
"""

from __future__ import annotations

import http.client
import json
import math
import threading
from collections.abc import Mapping
from multiprocessing.connection import wait
from typing import Any, TypeVar
from urllib.parse import urlsplit

from carla_policy_environment.errors import ServiceError, ServiceUnavailable, refusal

T = TypeVar("T")
SESSION_HEADER = "x-session-id"
MAX_ANSWER_BYTES = 256 * 1024 * 1024
_LOST = (http.client.HTTPException, OSError)


class ServiceClient:
    """The requests to one service at `url`, such as `http://localhost:8090`; threads take turns.

    `timeout` is how many seconds the service may be silent before `ServiceUnavailable` is raised. `session_id`, once
    set, goes along with every request.
    """

    def __init__(self, url: str, timeout: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"server_url: expected an address such as http://localhost:8090, got {url!r}")
        if not (math.isfinite(timeout) and timeout > 0):
            raise ValueError(f"timeout: expected a number of seconds above 0, got {timeout!r}")
        self.url = url.rstrip("/")
        self.session_id: str | None = None
        self._prefix = parts.path.rstrip("/")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        self._lock = threading.Lock()

    def get(self, path: str, timeout: float | None = None) -> dict[str, Any]:
        """The JSON object that GET `path` answers."""
        return self._object(*self._exchange("GET", path, None, repeatable=True, timeout=timeout))

    def get_bytes(self, path: str) -> bytes:
        """What GET `path` answers that is no JSON, such as an image."""
        return self._checked(*self._exchange("GET", path, None, repeatable=True, timeout=None))

    def post(
        self, path: str, content: Mapping[str, Any], *, repeatable: bool = False, timeout: float | None = None
    ) -> dict[str, Any]:
        """The JSON object that POST `path` answers; sent again over a new connection where that is `repeatable`."""
        return self._object(*self._exchange("POST", path, content, repeatable=repeatable, timeout=timeout))

    def delete(self, path: str, timeout: float | None = None) -> None:
        """DELETE `path`."""
        self._checked(*self._exchange("DELETE", path, None, repeatable=False, timeout=timeout))

    def health(self, timeout: float = 2.0) -> dict[str, Any]:
        """What /health says, also where that is that the simulator is unhealthy."""
        status, body = self._exchange("GET", "/health", None, repeatable=True, timeout=timeout)
        if status not in (200, 503):
            self._checked(status, body)
        return self._json(body)

    def close(self) -> None:
        """Close the connection; a later request opens another."""
        with self._lock:
            self._connection.close()

    def _exchange(
        self, method: str, path: str, content: Mapping[str, Any] | None, *, repeatable: bool, timeout: float | None
    ) -> tuple[int, bytes]:
        body = None if content is None else json.dumps(content, allow_nan=False).encode()
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self.session_id:
            headers[SESSION_HEADER] = self.session_id
        with self._lock:
            usual = self._connection.timeout
            if timeout is not None:
                self._set_timeout(timeout)
            try:
                return self._attempts(method, path, body, headers, repeatable)
            finally:
                if timeout is not None:
                    self._set_timeout(usual)

    def _set_timeout(self, timeout: float | None) -> None:
        self._connection.timeout = timeout
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout)

    def _attempts(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], repeatable: bool
    ) -> tuple[int, bytes]:
        # A service closes connections that were idle for some seconds, as while a policy is updated.
        if self._connection.sock is not None and wait([self._connection.sock], timeout=0):
            self._connection.close()
        try:
            return self._attempt(method, path, body, headers)
        except TimeoutError as error:
            raise self._unavailable(f"no answer to {method} {path} in {self._connection.timeout} s") from error
        except _LOST as error:
            if not repeatable or isinstance(error, ConnectionRefusedError):
                raise self._unavailable(f"{method} {path}: {_told(error)}") from error
        try:
            return self._attempt(method, path, body, headers)
        except _LOST as error:
            raise self._unavailable(f"{method} {path}, twice: {_told(error)}") from error

    def _attempt(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        try:
            self._connection.request(method, self._prefix + path, body, headers)
            response = self._connection.getresponse()
            content = response.read(MAX_ANSWER_BYTES + 1)
        except BaseException:
            # Whatever was under way, no later request may read its answer.
            self._connection.close()
            raise
        if len(content) > MAX_ANSWER_BYTES:
            self._connection.close()
            raise ServiceError(f"its answer to {method} {path} has more than {MAX_ANSWER_BYTES} bytes", url=self.url)
        return response.status, content

    def _object(self, status: int, body: bytes) -> dict[str, Any]:
        return self._json(self._checked(status, body))

    def _checked(self, status: int, body: bytes) -> bytes:
        if 200 <= status < 300:
            return body
        raise refusal(self.url, status, self._json(body, status))

    def _json(self, body: bytes, status: int = 200) -> dict[str, Any]:
        try:
            content = json.loads(body)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            kind = ServiceUnavailable if status >= 500 else ServiceError
            raise kind(
                f"what answers there is no environment service: status {status}, {body[:80]!r}",
                url=self.url,
                status=status,
            )
        return content

    def _unavailable(self, reason: str) -> ServiceUnavailable:
        advice = "is it running? Start one with `carla-policy env serve`"
        return ServiceUnavailable(f"{reason}; {advice}", url=self.url)


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__
