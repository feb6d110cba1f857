"""Empty a version, or a whole server, of work before it ends: TorchServe drops what it has not answered."""

from __future__ import annotations

import re
import time

from carla_policy_tools.lifecycle.management import Management
from carla_policy_tools.lifecycle.registry import RegistryError
from carla_policy_tools.paths import MODEL_NAME
from carla_policy_tools.urls import local_session

QUIET_S = 1.0
"""So long must nobody have asked a version by its own URL before it is taken away."""

_POLL_S = 0.05


def drain(management: Management, metrics_url: str, version: str, timeout_s: float) -> None:
    """Return when nobody asks `version` by name and it has done all its work; `RegistryError` if not in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        count = wait_until_unused(metrics_url, version, deadline - time.monotonic())
        if not pass_queue(management, version, max(deadline - time.monotonic(), 1.0)):
            raise RegistryError(f"{version}: has not finished its work within {timeout_s:g} s; --force gives it up")
        if _requests_of(metrics_url, version) == count:
            return


def wait_until_unused(metrics_url: str, version: str, timeout_s: float) -> str:
    """Return when no request has named `version` for a while, with TorchServe's count of those that ever did.

    `RegistryError` if that does not happen within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    seen, since = _requests_of(metrics_url, version), time.monotonic()
    while time.monotonic() - since < QUIET_S:
        time.sleep(_POLL_S)
        count = _requests_of(metrics_url, version)
        if count != seen:
            if time.monotonic() > deadline:
                raise RegistryError(
                    f"{version}: clients still ask …/{MODEL_NAME}/{version} by name, and whoever does would lose "
                    "requests; point them elsewhere first, or retire it with --force"
                )
            seen, since = count, time.monotonic()
    return seen


def pass_queue(management: Management, version: str, timeout_s: float) -> bool:
    """Whether every worker of a version has done, within `timeout_s`, all that was queued before.

    Each answers a request that goes through the version's queue. A version without ready workers has nothing to wait
    for.
    """
    deadline = time.monotonic() + timeout_s
    done: set[int] = set()
    while True:
        served = management.version(version)
        waiting = {worker.pid for worker in served.workers if worker.status == "READY"} if served else set()
        if not waiting - done:
            return True
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        pid = management.barrier(version, remaining)
        if pid is None:
            time.sleep(_POLL_S)
        else:
            done.add(pid)


def _requests_of(metrics_url: str, version: str) -> str:
    """TorchServe's own count of requests that named a version, as it prints it."""
    name = "ts_inference_requests_total"
    with local_session() as session:
        page = session.get(f"{metrics_url}/metrics", params={"name[]": name}, timeout=5).text
    labels = rf'model_name="{MODEL_NAME}",model_version="{re.escape(version)}"'
    found = re.search(rf"^{name}{{{labels}[^}}]*}} (\S+)$", page, re.MULTILINE)
    return found[1] if found else "0"
