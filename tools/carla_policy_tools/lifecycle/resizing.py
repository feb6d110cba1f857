"""More or fewer workers for the versions of a running server, without losing a request."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import requests

from carla_policy.holding import LIMIT_S, hold_directory
from carla_policy_tools.configuration import Profile
from carla_policy_tools.lifecycle.endpoint import Endpoint
from carla_policy_tools.lifecycle.intents import intent
from carla_policy_tools.lifecycle.management import POLL_S, Management
from carla_policy_tools.lifecycle.registering import wait_ready
from carla_policy_tools.lifecycle.registry import RegistryError, RegistryFile
from carla_policy_tools.lifecycle.settling import settle
from carla_policy_tools.lifecycle.status import profiles_of
from carla_policy_tools.worker_log import WorkerLog

HOLD_TIMEOUT_S = LIMIT_S - 1.0
"""For all workers of a version to finish what they work on."""


def resize(
    registry_file: RegistryFile,
    endpoint: Endpoint,
    workers: int | None,
    announce: Callable[[], None],
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, int]:
    """Give every version `workers` workers, or with none what its profile says; the versions that have others now.

    New workers are ready before `announce` says that they are declared, and superfluous ones go afterwards, so health
    stays green. `RegistryError` where new workers do not start, which changes nothing, or old ones cannot be held.
    """
    changed = {}
    with endpoint.management() as management:
        wanted = profiles_of(settle(registry_file, management), workers)
        actual = management.versions()
        for version, profile in wanted.items():
            if version in actual and actual[version].min_workers < profile.workers:
                with intent(registry_file, "resize", version):
                    on_step(f"starting workers of {version}")
                    _enlarge(management, endpoint, version, profile, actual[version].min_workers)
                changed[version] = profile.workers
        announce()
        for version, profile in wanted.items():
            if version in actual and actual[version].min_workers > profile.workers:
                with intent(registry_file, "resize", version):
                    on_step(f"ending workers of {version}")
                    _reduce(management, endpoint, version, profile.workers)
                changed[version] = profile.workers
    return changed


def _enlarge(management: Management, endpoint: Endpoint, version: str, profile: Profile, before: int) -> None:
    log = WorkerLog(endpoint.log_file, version)
    management.scale(version, profile.workers)
    try:
        wait_ready(management, version, profile.workers, log, time.monotonic() + profile.startup_timeout_s)
    except RegistryError:
        with suppress(requests.RequestException, RegistryError):
            _reduce(management, endpoint, version, before)
        raise


def _reduce(management: Management, endpoint: Endpoint, version: str, workers: int) -> None:
    with _held(management, endpoint, version):
        management.scale(version, workers)
        deadline = time.monotonic() + HOLD_TIMEOUT_S
        while (served := management.version(version)) and len(served.workers) > workers:
            if time.monotonic() > deadline:
                raise RegistryError(f"{version}: has {len(served.workers)} workers still, and was to have {workers}")
            time.sleep(POLL_S)


@contextmanager
def _held(management: Management, endpoint: Endpoint, version: str) -> Iterator[None]:
    """While the block runs, no ready worker of `version` has a request; what comes waits in the queue."""
    served = management.version(version)
    count = served.ready_workers if served else 0
    directory = hold_directory(endpoint.run_dir, version)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    with ThreadPoolExecutor(max(count, 1)) as pool:
        try:
            for _ in range(count):
                pool.submit(_occupy, endpoint, version)
            deadline = time.monotonic() + HOLD_TIMEOUT_S
            while len(list(directory.iterdir())) < count:
                if time.monotonic() > deadline:
                    raise RegistryError(
                        f"{version}: keeps its {count} workers, since they are busy for longer than "
                        f"{HOLD_TIMEOUT_S:g} s, or its archive is of an older release: try again when less is asked, "
                        "or start the server anew"
                    )
                time.sleep(POLL_S)
            yield
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _occupy(endpoint: Endpoint, version: str) -> None:
    with suppress(requests.RequestException, RegistryError), endpoint.management() as management:
        management.barrier(version, LIMIT_S + HOLD_TIMEOUT_S)
