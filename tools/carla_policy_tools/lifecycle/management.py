"""TorchServe's management API, as far as versions need it, with its surprises kept in one place."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import requests
from requests.auth import AuthBase

from carla_policy.version import CANDIDATE
from carla_policy_tools.configuration import Profile
from carla_policy_tools.lifecycle.registry import RegistryError
from carla_policy_tools.paths import MODEL_NAME, archive_name
from carla_policy_tools.urls import local_session

TIMEOUT_S = 5.0
POLL_S = 0.02
_BARRIER_TIMEOUT_S = 30.0
_ATTEMPTS = 5
_PAUSE_S = 0.1


@dataclass(frozen=True)
class Worker:
    pid: int
    """0 or -1 while there is no process."""
    status: str


@dataclass(frozen=True)
class ServedVersion:
    """A version as TorchServe describes it."""

    version: str
    workers: tuple[Worker, ...]
    min_workers: int
    queued: int
    batch_size: int
    max_batch_delay_ms: int

    @property
    def ready_workers(self) -> int:
        return sum(worker.status == "READY" for worker in self.workers)

    @property
    def ready(self) -> bool:
        """All workers that it was told to have are READY."""
        return self.ready_workers >= max(self.min_workers, 1)


class Management:
    """The management port of one server. Use as a context manager. Raises `requests.RequestException` if it is gone."""

    def __init__(self, url: str, model: str = MODEL_NAME, auth: AuthBase | None = None) -> None:
        self.model = model
        self._url = url
        self._auth = auth
        self._models = f"{url}/models"
        self._model = f"{self._models}/{model}"
        self._session = local_session(auth)

    def __enter__(self) -> Management:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def candidate(self, version: str) -> Management:
        """The same server's management of `version` under a name that nobody asks."""
        return Management(self._url, f"{MODEL_NAME}{CANDIDATE}{version}", self._auth)

    def versions(self) -> dict[str, ServedVersion]:
        """Every version that the server has, also those without workers."""
        answer = _repeated(lambda: self._session.get(f"{self._model}/all", timeout=TIMEOUT_S))
        return {} if answer.status_code == 404 else {found["modelVersion"]: _served(found) for found in _json(answer)}

    def version(self, version: str) -> ServedVersion | None:
        answer = _repeated(lambda: self._session.get(f"{self._model}/{version}", timeout=TIMEOUT_S))
        return None if answer.status_code == 404 else _served(_json(answer)[0])

    def default(self) -> str | None:
        """The version that answers where none is named: only this answer tells it."""
        answer = _repeated(lambda: self._session.get(self._model, timeout=TIMEOUT_S))
        return None if answer.status_code == 404 else str(_json(answer)[0]["modelVersion"])

    def register(self, version: str, profile: Profile) -> None:
        """Begin to load a version from the server's store; returns at once.

        A synchronous call would hold up an event loop that predictions share. Time-outs and queue size are in the
        archive of the server's store, see `Profile.model_config_yaml`.
        """
        parameters: dict[str, str | int] = {
            "url": archive_name(version),
            "model_name": self.model,
            "initial_workers": profile.workers,
            "batch_size": profile.batch_size,
            "max_batch_delay": profile.max_batch_delay_ms,
            "synchronous": "false",
        }
        _check(self._session.post(self._models, params=parameters, timeout=TIMEOUT_S), f"register {version}")

    def scale(self, version: str, workers: int) -> None:
        """Ask for so many workers; returns at once."""
        parameters: dict[str, str | int] = {"min_worker": workers, "max_worker": workers, "synchronous": "false"}
        url = f"{self._model}/{version}"
        answer = _repeated(lambda: self._session.put(url, params=parameters, timeout=TIMEOUT_S))
        _check(answer, f"scale {version}")

    def set_default(self, version: str) -> None:
        """Promote, and see that it is so. TorchServe does not check that the version has workers."""
        _check(self._session.put(f"{self._model}/{version}/set-default", timeout=TIMEOUT_S), f"promote {version}")
        if (default := self.default()) != version:
            raise RegistryError(f"{version}: was made the default, but the server's default is {default}")

    def unregister(self, version: str) -> None:
        """Remove a version at once: whatever it still works on or has queued is never answered. Drain it before."""
        answer = self._session.delete(f"{self._model}/{version}", timeout=TIMEOUT_S)
        if answer.status_code == 405 and self.version(version) is None:
            return  # a frozen server refuses also to remove what it does not have
        if answer.status_code != 404:
            _check(answer, f"retire {version}")
        deadline = time.monotonic() + TIMEOUT_S
        while self.version(version) is not None:
            if time.monotonic() > deadline:
                raise RegistryError(f"{version}: is still listed {TIMEOUT_S:g} s after it was unregistered")
            time.sleep(POLL_S)

    def clear(self) -> None:
        """Remove every version under this name, the default one last: TorchServe keeps that while there are others."""
        default = self.default()
        for version in sorted(self.versions(), key=lambda version: version == default):
            self.unregister(version)

    def barrier(self, version: str, timeout_s: float = _BARRIER_TIMEOUT_S) -> int | None:
        """Go through the queue of a version; the pid of the worker that answered, which had done all before it.

        None if no worker answers within `timeout_s`.
        """
        try:
            answer = self._session.get(f"{self._model}/{version}", params={"customized": "true"}, timeout=timeout_s)
        except requests.Timeout:
            return None
        if not answer.ok:
            return None
        metadata = _json(answer)[0].get("customizedMetadata")
        return metadata.get("workerPid") if isinstance(metadata, dict) else None


def _served(found: Mapping[str, Any]) -> ServedVersion:
    return ServedVersion(
        version=found["modelVersion"],
        workers=tuple(Worker(int(worker["pid"]), worker["status"]) for worker in found["workers"]),
        min_workers=int(found["minWorkers"]),
        queued=int(found["jobQueueStatus"]["pendingRequests"]),
        batch_size=int(found["batchSize"]),
        max_batch_delay_ms=int(found["maxBatchDelay"]),
    )


def _repeated(ask: Callable[[], requests.Response]) -> requests.Response:
    """The answer to what may be asked again, where the server fails in the middle of it.

    While workers come and go it answers 500 now and then, with the name of a Java exception and no message.
    """
    for _ in range(_ATTEMPTS - 1):
        answer = ask()
        if answer.status_code != 500:
            return answer
        time.sleep(_PAUSE_S)
    return ask()


def _check(answer: requests.Response, what: str) -> None:
    if not answer.ok:
        try:
            reason = answer.json()["message"]
        except (ValueError, KeyError, TypeError):
            reason = answer.text[:200]
        raise RegistryError(f"{what}: the server refused with {answer.status_code}: {reason}")


def _json(answer: requests.Response) -> Any:
    if not answer.ok:
        raise RegistryError(f"{answer.url}: the server answered {answer.status_code}: {answer.text[:200]}")
    return answer.json()
